"""The lab's repositories are built once for the same inputs, and again when an input changes."""

import lzma
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lab.mirror import distributions, repos
from lab.mirror.debfile import Package
from lab.mirror.docker import Archive
from lab.mirror.passthrough import Cache, client
from lab.mirror.repos import Repositories
from rigup.config.settings import Settings
from rigup.distros.apt_sources import repositories
from tests.unit.mirror_upstream import Upstream
from tests.unit.test_lab_mirror_docker import world as world

REPOSITORIES = {
    *("cuda/debian12", "cuda/debian13", "cuda/ubuntu2404"),
    *("libnvidia-container", "docker", "kernel", "ubuntu"),
}


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    # All with the C library of Debian's newest build: the miniature archive has no other.
    newest = tuple(replace(each, libc="2.41") for each in distributions.DISTRIBUTIONS)
    monkeypatch.setattr(distributions, "DISTRIBUTIONS", newest)
    yield []


def build(world: Upstream, directory: Path, said: list[str]) -> set[str]:
    """Build what is missing; return what was built."""
    said.clear()
    archive = Archive(f"{world.url}/debian", Cache(directory / "cache/passed-on", client()))
    Repositories(directory / "cache", directory / "www", archive, said.append).build()
    return {line.removeprefix("mirror: building ") for line in said if "building" in line}


def test_what_is_built_is_published_and_not_built_again(world: Upstream, tmp_path: Path, said: list[str]) -> None:
    assert build(world, tmp_path, said) == REPOSITORIES
    for published in (
        "cuda/debian13/x86_64/InRelease",
        "cuda/debian13/x86_64/8793F200.pub",
        "docker/linux/debian/gpg",
        "docker/linux/debian/dists/trixie/stable/binary-amd64/Packages.gz",
        "libnvidia-container/gpgkey",
        "libnvidia-container/stable/deb/nvidia-container-toolkit.list",
        "libnvidia-container/stable/deb/amd64/InRelease",
        "kernel/Packages",
    ):
        assert (tmp_path / "www" / published).is_file(), published
    assert build(world, tmp_path, said) == set()
    keys = {
        name: (tmp_path / f"cache/keys/{name}/public.asc").read_bytes() for name in ("cuda-3bf863cc", "cuda-8793F200")
    }
    assert len(set(keys.values())) == 2
    for distro, name in (("debian12", "cuda-3bf863cc"), ("debian13", "cuda-8793F200"), ("ubuntu2404", "cuda-3bf863cc")):
        published = repositories(distro, Settings())["cuda"].key_url.rpartition("/")[2]
        assert (tmp_path / f"www/cuda/{distro}/x86_64/{published}").read_bytes() == keys[name]


def test_another_kernel_rebuilds_its_repository_alone(
    world: Upstream, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build(world, tmp_path, said)
    before = (tmp_path / "www/kernel").resolve()
    monkeypatch.setattr(repos, "KVER", "6.99.0-other")
    assert build(world, tmp_path, said) == {"kernel"}
    assert (tmp_path / "www/kernel").resolve() != before
    assert before.is_dir(), "another lab may still serve it"


def test_debians_updates_rebuild_ubuntus_archive_alone(world: Upstream, tmp_path: Path, said: list[str]) -> None:
    build(world, tmp_path, said)
    world.add("/debian-security/dists/trixie-security/main/binary-amd64/Packages.xz", lzma.compress(b"Package: new\n"))
    assert build(world, tmp_path, said) == {"ubuntu"}
    index = tmp_path / "www/ubuntu/dists/noble-security/main/binary-amd64/Packages.xz"
    assert lzma.decompress(index.read_bytes()).endswith(b"\n\nPackage: new\n")


def test_a_build_that_fails_leaves_what_was_published(
    world: Upstream, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build(world, tmp_path, said)
    before = (tmp_path / "www/kernel").resolve()
    monkeypatch.setattr(repos, "KVER", "6.99.0-other")

    def fail(_kver: str) -> list[Package]:
        raise OSError("disk full")

    monkeypatch.setattr(repos.kernel, "packages", fail)
    with pytest.raises(OSError, match="disk full"):
        build(world, tmp_path, said)
    assert (tmp_path / "www/kernel").resolve() == before
    assert not list((tmp_path / "cache/repositories").glob(".building-*"))
