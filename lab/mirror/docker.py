"""Docker's apt repository: Debian's real binaries with Docker's names, paths and dependencies.

Docker's own repository is unreachable in an air gap; Debian builds the same sources. Each distribution gets the newest
build that runs with its C library, so Debian 12 has a current Docker too.
"""

import lzma
import re
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from debian.debian_support import Version

from lab.errors import LabError
from lab.mirror.debfile import File, Package
from lab.mirror.distributions import Distribution
from lab.mirror.parts import script, standin, text_of, unit, unit_scripts
from lab.mirror.passthrough import Cache, UpstreamError

SUITES = ("forky", "trixie", "bookworm")
"""Debian releases to take binaries from, newest first."""


@dataclass(frozen=True)
class Source:
    """A package of Debian's archive."""

    name: str
    version: str
    depends: str
    filename: str

    @property
    def upstream(self) -> str:
        """The version without what Debian added: 28.5.2 for 28.5.2+dfsg4-5."""
        match = re.match(r"[\d.]*\d", self.version.partition(":")[2] or self.version)
        return match[0] if match else self.version

    @property
    def libc(self) -> Version:
        """The oldest C library that it runs with."""
        match = re.search(r"libc6 \(>= ([^)]+)\)", self.depends)
        return Version(match[1] if match else "0")


def parse_packages(text: str, wanted: set[str]) -> dict[str, Source]:
    """Return the wanted packages of a Packages index."""
    found = {}
    for stanza in text.split("\n\n"):
        name = stanza.partition("\n")[0].removeprefix("Package: ")
        if name in wanted:
            fields = dict(re.findall(r"^(Version|Depends|Filename): (.*)$", stanza, re.MULTILINE))
            found[name] = Source(name, fields["Version"], fields.get("Depends", ""), fields["Filename"])
    return found


_WANTED = {"docker.io", "docker-cli", "containerd", "runc", "docker-buildx", "docker-compose", "tini-static", "dkms"}


class Archive:
    """The packages of Debian's archive that the lab repacks; `security` is the address of its security updates."""

    def __init__(self, base: str, cache: Cache, security: str = "") -> None:
        self._base = base
        self._security = security or f"{base}-security"
        self._cache = cache
        self._suites: dict[str, dict[str, Source]] = {}
        self._contents: dict[str, dict[str, File]] = {}

    def index(self, suite: str) -> bytes:
        """Return the Packages.xz of a suite, an empty one if the archive lacks it. Raises LabError."""
        path = f"dists/{suite}/main/binary-amd64/Packages.xz"
        name, base = ("debian-security", self._security) if suite.endswith("-security") else ("debian", self._base)
        try:
            return self._cache.get(f"{name}/{path}", f"{base}/{path}", 3600).wait().read_bytes()
        except UpstreamError as error:
            if error.status != 404:
                raise LabError(f"cannot download Debian's index of {suite}: {error}") from error
            # A mirror of only this machine's release is enough.
            return lzma.compress(b"")

    def _suite(self, name: str) -> dict[str, Source]:
        if name not in self._suites:
            self._suites[name] = parse_packages(lzma.decompress(self.index(name)).decode(), _WANTED)
        return self._suites[name]

    def newest(self, name: str, libc: str) -> Source:
        """Return the newest build of a package that runs with that C library. Raises LabError without one."""
        for suite in SUITES:
            source = self._suite(suite).get(name)
            if source is not None and source.libc <= Version(libc):
                return source
        raise LabError(f"No Debian release has a {name} that runs with C library {libc}")

    def files(self, source: Source) -> dict[str, File]:
        """Return the files of a package by path, downloading it unless cached. Raises LabError when that fails."""
        if source.filename not in self._contents:
            try:
                deb = self._cache.get(f"debian/{source.filename}", f"{self._base}/{source.filename}", None).wait()
            except UpstreamError as error:
                raise LabError(f"cannot download {source.name}: {error}") from error
            self._contents[source.filename] = {file.path: file for file in _contents(deb)}
        return self._contents[source.filename]


def _contents(deb: Path) -> Iterator[File]:
    archive = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(deb)], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        for member in tar:
            path = member.name.removeprefix("./")
            if member.issym():
                yield File(path, link=member.linkname)
            elif member.isfile() and (content := tar.extractfile(member)) is not None:
                yield File(path, content.read(), member.mode & 0o777)


def _depends(source: Source, *more: str) -> str:
    """Return the libraries that a build needs, and the other dependencies of Docker's package."""
    libraries = [entry for entry in source.depends.split(", ") if entry.startswith("lib")]
    return ", ".join([*libraries, *more])


def _program(archive: Archive, source: Source, old: str, new: str) -> File:
    if (file := archive.files(source).get(old)) is None:
        raise LabError(f"Debian's {source.name} {source.version} no longer contains /{old}")
    return File(new, file.content, 0o755)


def packages(archive: Archive, distribution: Distribution) -> list[Package]:
    """Return Docker's packages for one distribution. Raises LabError when Debian's archive is unreachable."""

    def newest(name: str) -> Source:
        return archive.newest(name, distribution.libc)

    def pick(source: Source) -> Callable[[str, str], File]:
        return lambda old, new: _program(archive, source, old, new)

    engine, cli, containerd, runc = (newest(name) for name in ("docker.io", "docker-cli", "containerd", "runc"))
    buildx, compose, tini = (newest(name) for name in ("docker-buildx", "docker-compose", "tini-static"))

    def package(
        name: str,
        source: Source,
        summary: str,
        relations: dict[str, str],
        files: list[File],
        scripts: dict[str, str] | None = None,
        epoch: str = "5:",
    ) -> Package:
        text = f"{summary} (Debian's {source.name} {source.version}, repacked by the lab)"
        version = f"{epoch}{source.upstream}-1~{distribution.docker_suffix}"
        return Package(name, version, text, "amd64", "admin", "", relations, tuple(files), scripts or {})

    def plugin(name: str, source: Source, summary: str, **relations: str) -> Package:
        path = f"usr/libexec/docker/cli-plugins/{name.removesuffix('-plugin')}"
        return package(
            name, source, summary, {"Depends": _depends(source), **relations}, [pick(source)(path, path)], epoch=""
        )

    group = text_of("maintainer/group.postinst", GROUP="docker")
    units = ["docker.socket", "docker.service"]
    return [
        package(
            "docker-ce",
            engine,
            "Docker: the open-source application container engine",
            {
                "Depends": _depends(engine, "containerd.io (>= 1.7.24)", "docker-ce-cli", "iptables", "passwd"),
                "Recommends": "apparmor, ca-certificates, docker-buildx-plugin, docker-compose-plugin, git, xz-utils",
                "Conflicts": "docker, docker-engine, docker.io",
                "Replaces": "docker-engine",
            },
            [
                pick(engine)("usr/sbin/dockerd", "usr/bin/dockerd"),
                pick(engine)("usr/sbin/docker-proxy", "usr/bin/docker-proxy"),
                pick(tini)("usr/bin/tini-static", "usr/bin/docker-init"),
                *(unit(name) for name in units),
            ],
            unit_scripts(units, [group]),
        ),
        package(
            "docker-ce-cli",
            cli,
            "Docker CLI: the open-source application container engine",
            {
                "Depends": _depends(cli),
                "Recommends": "docker-buildx-plugin, docker-compose-plugin",
                "Conflicts": "docker, docker-engine, docker-engine-cs, docker.io, docker-cli",
                "Breaks": "docker-engine (<< 5:0), docker.io",
                "Replaces": "docker-engine (<< 5:0), docker.io",
            },
            [pick(cli)("usr/bin/docker", "usr/bin/docker")],
        ),
        package(
            "containerd.io",
            containerd,
            f"An open and reliable container runtime, with Debian's runc {runc.version}",
            {
                "Depends": ", ".join(sorted({*_depends(containerd).split(", "), *_depends(runc).split(", ")})),
                **dict.fromkeys(("Provides", "Conflicts", "Replaces"), "containerd, runc"),
            },
            [
                *(
                    pick(containerd)(f"usr/bin/{name}", f"usr/bin/{name}")
                    for name in ("containerd", "containerd-shim-runc-v2", "ctr")
                ),
                pick(runc)("usr/sbin/runc", "usr/bin/runc"),
                standin("etc/containerd/config.toml", "etc/containerd.toml"),
                unit("containerd.service"),
            ],
            unit_scripts(["containerd.service"]),
            epoch="",
        ),
        plugin(
            "docker-buildx-plugin",
            buildx,
            "Docker Buildx plugin for the Docker CLI",
            Enhances="docker-ce-cli",
            Conflicts="docker-buildx",
        ),
        plugin(
            "docker-compose-plugin",
            compose,
            "Docker Compose (V2) plugin for the Docker CLI",
            Conflicts="docker-compose-v2",
        ),
    ]


def dkms(archive: Archive) -> Package:
    """Return NVIDIA's `dkms`: Debian's real one with NVIDIA's version, without a compiler, which the lab never uses."""
    source = archive.newest("dkms", "2.36")
    kept = ("usr/sbin/", "usr/lib/dkms/", "etc/")
    files = tuple(file for path, file in archive.files(source).items() if path.startswith(kept))
    return Package(
        "dkms",
        "1:3.4.0-1",
        f"Dynamic Kernel Module System (DKMS) (Debian's {source.version}, repacked by the lab)",
        "all",
        "kernel",
        "dkms",
        {"Depends": "kmod, make, patch", "Recommends": "fakeroot, sudo"},
        files,
        {"postinst": script("mkdir -p /var/lib/dkms")},
    )
