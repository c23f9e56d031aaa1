"""The three apt repositories that a host needs, at the configured mirrors, and the source files that they replace."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from rigup.config.settings import Settings
from rigup.distros.table import distro_named

SOURCES = "/etc/apt/sources.list.d/"

DOCKER_KEY = "9DC858229FC7DD38854AE2D88D81803C0EBFCD88"
"""Fingerprint of Docker's key (docs.docker.com, `Install Docker Engine on Debian`)."""
TOOLKIT_KEY = "C95B321B61E88C1809C4F759DDCAE044F796ECB0"
"""Fingerprint of the key of NVIDIA's container toolkit (nvidia.github.io/libnvidia-container/gpgkey)."""


@dataclass(frozen=True)
class Repository:
    """An apt repository, as configured on a host.

    `fingerprints` are those of the keys that may sign it. `stale` are the source files that older guides create: apt
    refuses to work with two different Signed-By for the same address.
    """

    name: str
    index_url: str
    key_url: str
    key_path: str
    fingerprints: frozenset[str]
    source_path: str
    source_text: str
    stale: tuple[str, ...]

    @property
    def setting(self) -> str:
        """The setting that decides where it is."""
        return f"{self.name}_mirror"

    @property
    def uris(self) -> set[str]:
        """The addresses of the repository, in the form of `source_uris`."""
        return source_uris(self.source_path, self.source_text)


def source_uris(path: str, text: str) -> set[str]:
    """Return the addresses of the enabled repositories in an apt source file (sources.list(5))."""
    found: list[str] = []
    if path.endswith(".sources"):
        for paragraph in re.split(r"\n\s*\n", text):
            lines = "\n".join(line for line in paragraph.splitlines() if not line.startswith("#"))
            fields = [line.partition(":")[::2] for line in re.sub(r"\n[ \t]+", " ", lines).splitlines()]
            values = {name.strip().lower(): value.strip() for name, value in fields}
            if values.get("enabled", "yes").lower() not in ("no", "false", "without", "off", "disable"):
                found += values.get("uris", "").split()
    else:
        found = re.findall(r"^\s*deb(?:-src)?\s+(?:\[[^\]]*\]\s*)?(\S+)", text, re.MULTILINE)
    return {uri.replace("$(ARCH)", "amd64").rstrip("/") for uri in found}


def superseded_sources(repository: Repository, sources: Mapping[str, Collection[str]]) -> list[str]:
    """Return the source files to remove: those of older guides, and those in `sources` with only this repository."""
    same = (path for path, uris in sources.items() if {*uris} == repository.uris and path.startswith(SOURCES))
    return list(dict.fromkeys((*repository.stale, *sorted({*same} - {repository.source_path}))))


def entangled_sources(repository: Repository, sources: Mapping[str, Collection[str]]) -> list[str]:
    """Return other source files with this repository that cannot be removed, because they have others as well."""
    named = [path for path, uris in sources.items() if repository.uris & {*uris} and path != repository.source_path]
    return sorted({*named} - {*superseded_sources(repository, sources)})


def repositories(distro: str, settings: Settings) -> dict[str, Repository]:
    """Return the three repositories `cuda`, `docker` and `toolkit`, at the mirrors in the settings."""
    known = distro_named(distro)
    cuda = f"{settings.cuda_mirror}/{distro}/x86_64"
    docker = f"{settings.docker_mirror}/{known.family}"
    toolkit = settings.toolkit_mirror
    keyrings = "/usr/share/keyrings"

    def accepted(published: str) -> frozenset[str]:
        return frozenset({published, *settings.apt_keys})

    return {
        "cuda": Repository(
            name="cuda",
            index_url=f"{cuda}/Packages.gz",
            # Not the package cuda-keyring: its scripts would run as root before any signature is checked.
            key_url=f"{cuda}/{known.cuda_key_file}",
            key_path=f"{keyrings}/cuda-archive-keyring.asc",
            fingerprints=accepted(known.cuda_key),
            source_path=f"{SOURCES}cuda-{distro}-x86_64.list",
            source_text=f"deb [signed-by={keyrings}/cuda-archive-keyring.asc] {cuda}/ /\n",
            stale=(f"{SOURCES}cuda.list", f"{SOURCES}cuda-repo.list"),
        ),
        "docker": Repository(
            name="docker",
            index_url=f"{docker}/dists/{known.codename}/stable/binary-amd64/Packages.gz",
            key_url=f"{docker}/gpg",
            key_path="/etc/apt/keyrings/docker.asc",
            fingerprints=accepted(DOCKER_KEY),
            source_path=f"{SOURCES}docker.sources",
            source_text=(
                f"Types: deb\nURIs: {docker}\nSuites: {known.codename}\nComponents: stable\n"
                "Architectures: amd64\nSigned-By: /etc/apt/keyrings/docker.asc\n"
            ),
            stale=(f"{SOURCES}docker.list", f"{SOURCES}docker-ce.list"),
        ),
        "toolkit": Repository(
            name="toolkit",
            index_url=f"{toolkit}/stable/deb/amd64/Packages.gz",
            key_url=f"{toolkit}/gpgkey",
            key_path=f"{keyrings}/nvidia-container-toolkit-keyring.asc",
            fingerprints=accepted(TOOLKIT_KEY),
            source_path=f"{SOURCES}nvidia-container-toolkit.list",
            source_text=(
                f"deb [signed-by={keyrings}/nvidia-container-toolkit-keyring.asc] {toolkit}/stable/deb/amd64 /\n"
            ),
            stale=(
                f"{SOURCES}libnvidia-container.list",
                f"{SOURCES}nvidia-docker.list",
            ),
        ),
    }
