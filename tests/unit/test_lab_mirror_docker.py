"""Docker's repository, repacked from a Debian archive in miniature."""

import lzma
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.errors import LabError
from lab.mirror import debfile, docker
from lab.mirror.debfile import File, Package
from lab.mirror.distributions import DISTRIBUTIONS, Distribution
from lab.mirror.docker import Archive
from lab.mirror.passthrough import Cache, client
from tests.unit.mirror_upstream import Upstream, upstream

BOOKWORM, TRIXIE, _ = DISTRIBUTIONS
PLUGINS = "usr/libexec/docker/cli-plugins"
PROGRAMS = {
    "docker.io": ("usr/sbin/dockerd", "usr/sbin/docker-proxy"),
    "docker-cli": ("usr/bin/docker",),
    "containerd": ("usr/bin/containerd", "usr/bin/containerd-shim-runc-v2", "usr/bin/ctr"),
    "runc": ("usr/sbin/runc",),
    "docker-buildx": (f"{PLUGINS}/docker-buildx",),
    "docker-compose": (f"{PLUGINS}/docker-compose",),
    "tini-static": ("usr/bin/tini-static",),
    "dkms": ("usr/sbin/dkms", "usr/lib/dkms/common.postinst", "usr/share/doc/dkms/copyright"),
}


def suite(world: Upstream, directory: Path, name: str, packages: dict[str, tuple[str, str]]) -> None:
    """Publish a suite: package names with version and Depends."""
    stanzas = []
    for package, (version, depends) in packages.items():
        files = tuple(File(path, f"{name} {path}".encode(), 0o755) for path in PROGRAMS[package])
        made = Package(package, version, "x", relations={"Depends": depends} if depends else {}, files=files)
        deb = debfile.write(made, directory)
        filename = f"pool/{name}/{deb.name}"
        world.add(f"/debian/{filename}", deb.read_bytes())
        stanzas.append(made.control() + f"Filename: {filename}\n")
    index = lzma.compress("\n".join(stanzas).encode())
    world.add(f"/debian/dists/{name}/main/binary-amd64/Packages.xz", index)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Upstream]:
    old, new = "libc6 (>= 2.34)", "libc6 (>= 2.38), libseccomp2 (>= 2.5.0)"
    with upstream() as running:
        forky = {name: ("28.5.2+dfsg4-5", old) for name in PROGRAMS if name not in ("runc", "tini-static", "dkms")}
        forky |= {"runc": ("1.3.6+ds1-1", new), "tini-static": ("0.19.0-6+b2", ""), "dkms": ("3.2.2-1", "kmod")}
        suite(running, tmp_path / "forky", "forky", forky)
        suite(running, tmp_path / "bookworm", "bookworm", {"runc": ("1.1.5+ds1-1", old)})
        yield running


def archive(world: Upstream, directory: Path) -> Archive:
    return Archive(f"{world.url}/debian", Cache(directory / "cache", client()))


def repack(world: Upstream, directory: Path, distribution: Distribution) -> dict[str, Package]:
    return {package.name: package for package in docker.packages(archive(world, directory), distribution)}


def test_dockers_names_hold_debians_binaries_where_docker_has_them(world: Upstream, tmp_path: Path) -> None:
    packages = repack(world, tmp_path, TRIXIE)
    assert set(packages) == {
        "docker-ce",
        "docker-ce-cli",
        "containerd.io",
        "docker-buildx-plugin",
        "docker-compose-plugin",
    }
    contents = {file.path: file.content for package in packages.values() for file in package.files}
    assert contents["usr/bin/dockerd"] == b"forky usr/sbin/dockerd"
    assert contents["usr/bin/docker-init"] == b"forky usr/bin/tini-static"
    assert contents["usr/bin/runc"] == b"forky usr/sbin/runc"
    assert "usr/lib/systemd/system/docker.socket" in contents


def test_versions_have_dockers_form_and_tell_the_true_upstream(world: Upstream, tmp_path: Path) -> None:
    packages = repack(world, tmp_path, BOOKWORM)
    assert packages["docker-ce"].version == "5:28.5.2-1~debian.12~bookworm"
    assert packages["containerd.io"].version == "28.5.2-1~debian.12~bookworm"
    assert "28.5.2+dfsg4-5" in packages["docker-ce"].summary


def test_each_distribution_gets_the_newest_build_its_c_library_can_run(world: Upstream, tmp_path: Path) -> None:
    def runc(distribution: Distribution) -> bytes:
        packages = repack(world, tmp_path, distribution)
        return next(file.content for file in packages["containerd.io"].files if file.path == "usr/bin/runc")

    assert runc(TRIXIE) == b"forky usr/sbin/runc"
    assert runc(BOOKWORM) == b"bookworm usr/sbin/runc"


def test_packages_depend_on_the_libraries_of_what_is_inside(world: Upstream, tmp_path: Path) -> None:
    packages = repack(world, tmp_path, TRIXIE)
    assert packages["containerd.io"].relations["Depends"] == (
        "libc6 (>= 2.34), libc6 (>= 2.38), libseccomp2 (>= 2.5.0)"
    )
    assert "iptables" in packages["docker-ce"].relations["Depends"]
    assert "docker.io" in packages["docker-ce"].relations["Conflicts"]
    assert packages["containerd.io"].relations["Conflicts"] == "containerd, runc"


def test_nvidias_dkms_is_debians_real_one(world: Upstream, tmp_path: Path) -> None:
    package = docker.dkms(archive(world, tmp_path))
    assert (package.name, package.version) == ("dkms", "1:3.4.0-1")
    assert [file.path for file in package.files] == ["usr/lib/dkms/common.postinst", "usr/sbin/dkms"]


def test_an_archive_that_is_away_is_named(world: Upstream, tmp_path: Path) -> None:
    away = archive(world, tmp_path)
    world.go_away()
    with pytest.raises(LabError, match=r"cannot download Debian's index of forky: http://127\.0\.0\.1"):
        docker.packages(away, TRIXIE)


def test_a_release_without_a_fitting_build_is_named(tmp_path: Path) -> None:
    with upstream() as empty, pytest.raises(LabError, match=r"docker\.io that runs with C library 2\.41"):
        docker.packages(archive(empty, tmp_path), TRIXIE)
