"""The package table, by distribution and branch."""

import re
from pathlib import Path

import pytest

from rigup.config.settings import Settings
from rigup.distros.apt_sources import (
    DOCKER_KEY,
    TOOLKIT_KEY,
    entangled_sources,
    repositories,
    source_uris,
    superseded_sources,
)
from rigup.distros.driver import conflicting, driver_packages, upstream
from rigup.distros.table import CUDA_KEY_FILES, DISTROS, Headers, distro_id, header_packages
from rigup.errors import RigupError
from rigup.lock.lockfile import Lock
from rigup.lock.packages import cuda_group, docker_group, driver_group, driver_install, locked_packages, toolkit_group


@pytest.mark.parametrize(
    ("name", "version", "expected"),
    [("debian", "12", "debian12"), ("debian", "13", "debian13"), ("ubuntu", "24.04", "ubuntu2404")],
)
def test_supported_systems_have_nvidias_names(name: str, version: str, expected: str) -> None:
    assert distro_id({"ID": name, "VERSION_ID": version}) == expected


@pytest.mark.parametrize(
    ("release", "shown"),
    [
        ({"ID": "debian", "VERSION_ID": "11", "PRETTY_NAME": "Debian GNU/Linux 11 (bullseye)"}, "Debian GNU/Linux 11"),
        ({"ID": "ubuntu", "VERSION_ID": "22.04"}, "ubuntu 22.04"),
        ({"ID": "fedora", "VERSION_ID": "41"}, "fedora 41"),
        ({}, "an unknown system"),
    ],
)
def test_another_system_is_refused_and_the_supported_ones_named(release: dict[str, str], shown: str) -> None:
    with pytest.raises(RigupError) as caught:
        distro_id(release)
    assert shown in str(caught.value)
    assert "Debian 12, Debian 13, Ubuntu 24.04" in str(caught.value)


def test_the_default_branch_exists_everywhere() -> None:
    for distro in DISTROS:
        assert driver_packages(distro, Settings().driver_branch).pin == "nvidia-driver-pinning-595"


def test_debian_names_the_module_package_itself_as_nvidia_driver_cuda_pulls_none_in() -> None:
    table = driver_packages("debian13", 595)
    assert table.packages == ("nvidia-driver-cuda", "nvidia-kernel-open-dkms", "nvidia-persistenced")
    assert table.module == "nvidia-kernel-open-dkms"


def test_ubuntus_names_changed_at_590() -> None:
    old, new = driver_packages("ubuntu2404", 580), driver_packages("ubuntu2404", 590)
    assert old.pin is None
    assert old.packages == ("nvidia-headless-580-open", "nvidia-utils-580")
    assert old.module == "nvidia-dkms-580-open"
    assert new.module == "nvidia-dkms-open"
    assert "libnvidia-compute" in new.packages


def test_debian_13_has_no_580() -> None:
    assert driver_packages("debian12", 580).pin == "nvidia-driver-pinning-580"
    with pytest.raises(RigupError, match="driver_branch 580 does not exist for Debian 13: the oldest one there is 590"):
        driver_packages("debian13", 580)


def test_no_table_names_a_package_that_brings_a_desktop_or_a_moving_branch() -> None:
    for distro in DISTROS:
        for branch in (590, 595, 610):
            names = driver_packages(distro, branch).packages
            assert not {"cuda", "cuda-drivers", "nvidia-open", "nvidia-driver-open", "nvidia-open-kernel-dkms"} & {
                *names
            }


def test_groups_are_named_by_what_was_asked_for() -> None:
    plain = Settings()
    assert (driver_group(plain), docker_group(plain), toolkit_group(plain)) == ("driver-595", "docker", "toolkit")
    exact = Settings.from_data(
        {
            "driver_version": "595.71.05",
            "docker_version": "29.6.1",
            "container_toolkit_version": "1.20.1",
            "cuda_toolkit": "off",
        }
    )
    assert driver_group(exact) == "driver-595.71.05"
    assert docker_group(exact) == "docker-29.6.1"
    assert toolkit_group(exact) == "toolkit-1.20.1"
    assert cuda_group(exact) is None
    assert cuda_group(plain) == "cuda-toolkit-13-2"


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("595.71.05-1ubuntu1", "595.71.05"),
        ("595.71.05-1", "595.71.05"),
        ("5:29.6.1-1~debian.13~trixie", "29.6.1"),
        ("1.20.1-1", "1.20.1"),
        ("2.2.6", "2.2.6"),
    ],
)
def test_the_upstream_part_of_a_version(version: str, expected: str) -> None:
    assert upstream(version) == expected


LOCK = Lock(
    packages={
        "debian13": {
            "driver-595": {
                "nvidia-driver-pinning-595.71.05": "595.71.05-1",
                "nvidia-driver-cuda": "595.71.05-1",
                "nvidia-kernel-open-dkms": "595.71.05-1",
                "nvidia-persistenced": "595.71.05-1",
            },
            "docker": {"docker-ce": "5:29.6.1-1~debian.13~trixie"},
            "toolkit": {"nvidia-container-toolkit": "1.20.1-1"},
            "cuda-toolkit-13-2": {"cuda-toolkit-13-2": "13.2.1-1"},
        }
    }
)


def test_a_locked_driver_keeps_its_pin_apart() -> None:
    install = driver_install(LOCK, "debian13", Settings())
    assert install.version == "595.71.05"
    assert install.pin == {"nvidia-driver-pinning-595.71.05": "595.71.05-1"}
    assert set(install.packages) == {"nvidia-driver-cuda", "nvidia-kernel-open-dkms", "nvidia-persistenced"}


def test_a_driver_that_was_never_resolved_says_what_to_run() -> None:
    with pytest.raises(RigupError, match="rigup lock"):
        driver_install(LOCK, "debian12", Settings())


def test_the_other_groups_follow_the_settings() -> None:
    assert set(locked_packages(LOCK, "debian13", Settings())) == {"docker", "toolkit", "cuda"}
    assert set(locked_packages(LOCK, "debian13", Settings.from_data({"cuda_toolkit": False}))) == {"docker", "toolkit"}


def test_what_must_go_first_is_found_and_what_may_stay_is_not() -> None:
    installed = [
        "docker.io",
        "containerd",
        "runc",
        "podman-docker",
        # Debian 13 has split these from docker.io.
        "docker-cli",
        "docker-buildx",
        "nvidia-docker2",
        "nvidia-open-kernel-dkms",
        "nvidia-kernel-dkms",
        "nvidia-dkms-580",
        "linux-modules-nvidia-580-open-generic",
        "docker-ce",
        "containerd.io",
        "nvidia-kernel-open-dkms",
        "nvidia-dkms-580-open",
        "nvidia-container-toolkit",
    ]
    assert conflicting(installed) == [
        "containerd",
        "docker-buildx",
        "docker-cli",
        "docker.io",
        "linux-modules-nvidia-580-open-generic",
        "nvidia-dkms-580",
        "nvidia-docker2",
        "nvidia-kernel-dkms",
        "nvidia-open-kernel-dkms",
        "podman-docker",
        "runc",
    ]
    docker = ["containerd", "docker-buildx", "docker-cli", "docker.io", "podman-docker", "runc"]
    assert conflicting(installed, "docker") == docker
    assert conflicting(installed, "toolkit") == ["nvidia-docker2"]


@pytest.mark.parametrize(
    ("distro", "kernel", "packages", "metas", "kernels"),
    [
        (
            "debian13",
            "6.12.48+deb13-amd64",
            ["linux-image-amd64", "linux-image-6.12.48+deb13-amd64"],
            ["amd64"],
            ["amd64"],
        ),
        ("debian12", "6.1.0-30-cloud-amd64", ["linux-image-cloud-amd64"], ["cloud-amd64"], ["cloud-amd64"]),
        # Headers for all kernels that may come, but no kernel of another flavor.
        (
            "debian12",
            "6.1.0-30-rt-amd64",
            ["linux-image-amd64", "linux-image-rt-amd64"],
            ["amd64", "rt-amd64"],
            ["rt-amd64"],
        ),
        ("debian13", "6.12.48+deb13-amd64", ["linux-image-cloud-amd64"], ["cloud-amd64"], []),
        ("debian13", "6.12.12+bpo-amd64", ["linux-image-6.12.48+deb13-amd64-dbg"], ["amd64"], []),
        (
            "ubuntu2404",
            "6.14.0-33-generic",
            ["linux-image-generic-hwe-24.04", "linux-image-6.14.0-33-generic", "linux-image-unsigned-6.8.0-1-generic"],
            ["generic-hwe-24.04"],
            ["generic-hwe-24.04"],
        ),
        ("ubuntu2404", "6.8.0-45-generic", ["linux-image-virtual"], ["virtual"], ["virtual"]),
        ("ubuntu2404", "6.8.0-45-generic", [], ["generic"], []),
        ("ubuntu2404", "6.8.0-45-lowlatency", ["linux-image-generic"], ["generic"], []),
        ("ubuntu2404", "6.8.0-1021-aws", ["linux-image-aws-lts-24.04"], ["aws-lts-24.04"], ["aws-lts-24.04"]),
        ("ubuntu2404", "6.11.0-1018-azure", ["linux-image-azure"], ["azure"], ["azure"]),
        ("ubuntu2404", "6.8.0-1019-gcp", [], ["gcp"], []),
        # Not of the distribution, but from packages with headers of that name.
        ("debian12", "6.12.9-x64v3-xanmod1", ["linux-image-6.12.9-x64v3-xanmod1"], [], []),
        (
            "debian12",
            "6.12.9-1-liquorix-amd64",
            ["linux-image-6.12.9-1-liquorix-amd64", "linux-image-liquorix-amd64", "linux-image-amd64"],
            ["amd64", "liquorix-amd64"],
            ["liquorix-amd64"],
        ),
        ("debian12", "6.12.41", ["linux-image-6.12.41", "linux-image-amd64"], ["amd64"], []),
    ],
)
def test_headers_follow_the_kernel_and_what_may_come_in_its_place_is_of_its_flavor(
    distro: str, kernel: str, packages: list[str], metas: list[str], kernels: list[str]
) -> None:
    found = header_packages(distro, kernel, packages)
    assert found.package == f"linux-headers-{kernel}"
    assert list(found.metas) == [f"linux-headers-{meta}" for meta in metas]
    assert list(found.kernels) == [f"linux-image-{meta}" for meta in kernels]


@pytest.mark.parametrize(
    ("kernel", "packages", "expected"),
    [
        (
            "6.8.12-9-pve",
            ["proxmox-default-kernel", "proxmox-kernel-6.8", "proxmox-kernel-6.8.12-9-pve-signed", "linux-image-amd64"],
            Headers(
                "proxmox-headers-6.8.12-9-pve",
                ("proxmox-default-headers", "proxmox-headers-6.8"),
                ("proxmox-default-kernel", "proxmox-kernel-6.8"),
            ),
        ),
        (
            "6.2.16-3-pve",
            ["pve-kernel-6.2", "pve-kernel-6.2.16-3-pve"],
            Headers("pve-headers-6.2.16-3-pve", ("pve-headers-6.2",), ("pve-kernel-6.2",)),
        ),
        ("6.14.11-4-pve", [], Headers("proxmox-headers-6.14.11-4-pve", ())),
    ],
)
def test_proxmox_has_names_of_its_own(kernel: str, packages: list[str], expected: Headers) -> None:
    assert header_packages("debian12", kernel, packages) == expected


@pytest.mark.parametrize("kernel", ["6.12.9-x64v3-xanmod1", "6.12.9-1-liquorix-amd64", "6.12.41", "6.12.41-mine+"])
def test_a_kernel_whose_headers_have_no_known_name_is_refused(kernel: str) -> None:
    with pytest.raises(RigupError, match=f"no package linux-image-{re.escape(kernel)} is installed") as caught:
        header_packages("debian13", kernel, ["linux-image-amd64"])
    assert "such as linux-image-amd64" in str(caught.value.remedy)


def test_repositories_lie_at_the_mirrors() -> None:
    settings = Settings.from_data(
        {"cuda_mirror": "http://m/cuda", "docker_mirror": "http://m/docker/linux", "toolkit_mirror": "http://m/toolkit"}
    )
    found = repositories("ubuntu2404", settings)
    assert found["cuda"].index_url == "http://m/cuda/ubuntu2404/x86_64/Packages.gz"
    assert found["cuda"].key_url == "http://m/cuda/ubuntu2404/x86_64/3bf863cc.pub"
    assert found["docker"].index_url == "http://m/docker/linux/ubuntu/dists/noble/stable/binary-amd64/Packages.gz"
    assert "URIs: http://m/docker/linux/ubuntu\nSuites: noble\n" in found["docker"].source_text
    assert found["toolkit"].key_url == "http://m/toolkit/gpgkey"
    assert found["toolkit"].source_text.endswith("http://m/toolkit/stable/deb/amd64 /\n")


def test_each_distribution_takes_the_key_from_its_own_repository() -> None:
    urls = {repositories(distro, Settings())["cuda"].key_url for distro in DISTROS}
    assert len(urls) == len(DISTROS)
    # The short ids that NVIDIA lists are the ends of the fingerprints.
    for distro, known in DISTROS.items():
        assert known.cuda_key.lower().endswith(CUDA_KEY_FILES[known.cuda_key].removesuffix(".pub").lower()), distro


def test_only_the_publishers_keys_may_sign_a_repository_and_those_that_the_inventory_names() -> None:
    other = "0123456789abcdef0123456789ABCDEF01234567"
    for distro in DISTROS:
        own = {name: each.fingerprints for name, each in repositories(distro, Settings()).items()}
        assert own == {"cuda": {DISTROS[distro].cuda_key}, "docker": {DOCKER_KEY}, "toolkit": {TOOLKIT_KEY}}
        settings = Settings.from_data({"apt_keys": [f"{other[:4]} {other[4:]}"]})
        for name, each in repositories(distro, settings).items():
            assert each.fingerprints == own[name] | {other.upper()}


def test_every_source_names_the_key_that_signs_it_and_is_not_itself_stale() -> None:
    for distro in DISTROS:
        for repository in repositories(distro, Settings()).values():
            assert repository.key_path in repository.source_text
            assert repository.source_path not in repository.stale
            assert Path(repository.source_path).suffix in (".list", ".sources")


DOCKER = "https://download.docker.com/linux/debian"


@pytest.mark.parametrize(
    ("path", "text", "uris"),
    [
        ("a.list", f"deb [arch=amd64 signed-by=/etc/apt/keyrings/docker.gpg] {DOCKER} trixie stable\n", {DOCKER}),
        ("a.list", f"# deb {DOCKER} trixie stable\n#deb {DOCKER}/ x y\n", set()),
        ("a.list", f"deb {DOCKER}/ trixie stable\n  deb-src [trusted=yes] http://b c d\n", {DOCKER, "http://b"}),
        ("a.list", "deb https://m/stable/deb/$(ARCH) /\n", {"https://m/stable/deb/amd64"}),
        ("a.sources", f"# mine\nTypes: deb\nuris: {DOCKER}/\n http://b\nSuites: x\n", {DOCKER, "http://b"}),
        ("a.sources", f"Types: deb\nURIs: http://b\n\nEnabled: no\nURIs: {DOCKER}\n", {"http://b"}),
        ("a.sources", "", set()),
    ],
)
def test_the_repositories_that_a_source_file_names(path: str, text: str, uris: set[str]) -> None:
    assert source_uris(path, text) == uris


def test_files_that_name_the_same_repository_make_way_whatever_they_are_called_unless_they_are_for_more() -> None:
    docker = repositories("debian13", Settings())["docker"]
    below = "/etc/apt/sources.list.d"
    sources = {
        "/etc/apt/sources.list": {"http://debian.example.org/debian", DOCKER},
        f"{below}/download_docker_com_linux_debian.list": {DOCKER},
        f"{below}/docker.sources": {DOCKER},
        f"{below}/mine.list": {DOCKER, "http://mine"},
        f"{below}/other.list": {"http://other"},
        f"{below}/off.list": set[str](),
    }
    assert docker.uris == {DOCKER}
    assert superseded_sources(docker, sources) == [*docker.stale, f"{below}/download_docker_com_linux_debian.list"]
    assert entangled_sources(docker, sources) == ["/etc/apt/sources.list", f"{below}/mine.list"]
