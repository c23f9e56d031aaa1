"""The lab's repositories as the real apt and dpkg see them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lab.mirror import aptrepo, container_toolkit, debfile, keys, nvidia
from lab.mirror.debfile import File, Package
from lab.mirror.distributions import DISTRIBUTIONS
from lab.mirror.keys import Key
from rigup.distros.driver import TOOLKIT_PACKAGES
from tests.unit.private_apt import CUDA, DISTRIBUTION, DKMS, Apt, apt_for

pytestmark = pytest.mark.skipif(
    not (shutil.which("apt-get") and shutil.which("gpg")), reason="needs Debian's apt-get, and gpg"
)


@pytest.fixture(scope="session")
def other_key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return keys.ensure("two", "two <two@rigup.invalid>", tmp_path_factory.mktemp("keys"))


@pytest.fixture
def debian(cuda: Path, key: Key, tmp_path: Path) -> Apt:
    return apt_for(tmp_path, cuda / "debian13", key)


@pytest.fixture
def ubuntu(cuda: Path, key: Key, tmp_path: Path) -> Apt:
    return apt_for(tmp_path, cuda / "ubuntu2404", key)


def small_repository(directory: Path, key: Key) -> Path:
    aptrepo.write_flat(directory, [Package("foo", "1.0-1", "a package", "all")], CUDA, key)
    return directory


def test_apt_takes_a_repository_whose_key_it_has(key: Key, tmp_path: Path) -> None:
    repository = small_repository(tmp_path / "repository", key)
    for public in (key.keyring, key.armored):
        apt = Apt.make(tmp_path / public.name, f"deb [signed-by={public}] file:{repository} ./")
        assert apt.update().returncode == 0
        assert apt.would_install("foo") == {"foo": "1.0-1"}


def test_apt_refuses_a_repository_signed_with_another_key(key: Key, other_key: Key, tmp_path: Path) -> None:
    repository = small_repository(tmp_path / "repository", key)
    apt = Apt.make(tmp_path / "apt", f"deb [signed-by={other_key.keyring}] file:{repository} ./")
    done = apt.update()
    assert done.returncode != 0
    assert "is not signed" in done.stderr


def test_apt_refuses_an_index_that_was_changed_after_signing(key: Key, tmp_path: Path) -> None:
    repository = small_repository(tmp_path / "repository", key)
    for name in ("Packages", "Packages.gz"):
        (repository / name).write_bytes((repository / name).read_bytes() + b"\n")
    apt = Apt.make(tmp_path / "apt", f"deb [signed-by={key.keyring}] file:{repository} ./")
    assert apt.update().returncode != 0


def test_a_key_is_made_once_and_its_secret_is_its_owners_alone(tmp_path: Path) -> None:
    first = keys.ensure("name", "owner <o@rigup.invalid>", tmp_path)
    assert keys.ensure("name", "owner <o@rigup.invalid>", tmp_path) == first
    assert first.secret.stat().st_mode & 0o077 == 0
    assert first.directory.stat().st_mode & 0o077 == 0


def test_dpkg_reads_what_was_written(tmp_path: Path) -> None:
    package = Package(
        "foo",
        "1:2.0-1",
        "a package",
        relations={"Depends": "bar (>= 1)", "Conflicts": "baz"},
        files=(
            File("usr/bin/foo", b"#!/bin/sh\n", 0o755),
            File("usr/bin/link", link="foo"),
            File("etc/foo/foo.conf", b"x"),
        ),
        scripts={"postinst": "#!/bin/sh\ntrue\n"},
    )
    deb = debfile.write(package, tmp_path)
    assert deb.name == "foo_2.0-1_amd64.deb"
    field = ["dpkg-deb", "--field", str(deb), "Version", "Depends", "Conflicts"]
    assert subprocess.run(field, check=True, capture_output=True, text=True).stdout == (
        "Version: 1:2.0-1\nDepends: bar (>= 1)\nConflicts: baz\n"
    )
    subprocess.run(["dpkg-deb", "--raw-extract", str(deb), str(tmp_path / "x")], check=True)
    assert (tmp_path / "x/usr/bin/foo").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "x/usr/bin/link").readlink() == Path("foo")
    assert (tmp_path / "x/DEBIAN/conffiles").read_text() == "/etc/foo/foo.conf\n"
    assert (tmp_path / "x/DEBIAN/postinst").stat().st_mode & 0o111
    assert "  usr/bin/foo\n" in (tmp_path / "x/DEBIAN/md5sums").read_text()


def test_the_same_package_has_the_same_bytes(tmp_path: Path) -> None:
    package = Package("foo", "1.0-1", "a package", files=(File("b", b"2"), File("a", b"1")))
    assert debfile.write(package, tmp_path / "1").read_bytes() == debfile.write(package, tmp_path / "2").read_bytes()


def test_a_relation_debian_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="Dependz"):
        Package("foo", "1", "x", relations={"Dependz": "bar"}).control()


DRIVER = ("nvidia-driver-cuda", "nvidia-kernel-open-dkms", "nvidia-persistenced")
OF_580, *_, OF_595, NEWEST = next(each for each in DISTRIBUTIONS if each.family == "ubuntu").drivers


def test_without_a_pin_the_newest_branch_comes(debian: Apt) -> None:
    chosen = debian.would_install(*DRIVER)
    assert {chosen[name] for name in DRIVER} == {f"{NEWEST}-1"}


@pytest.mark.parametrize(("pin", "version"), [("595_595", OF_595), ("595.71.05_595.71.05", "595.71.05")])
def test_a_pinning_package_keeps_everything_of_the_driver_on_it(
    debian: Apt, cuda: Path, pin: str, version: str
) -> None:
    debian.pin(cuda / f"debian13/nvidia-driver-pinning-{pin}-1_all.deb")
    chosen = debian.would_install(*DRIVER)
    driver = {name: found for name, found in chosen.items() if "nvidia" in name or name == "libcuda1"}
    assert len(driver) >= 9
    assert set(driver.values()) == {f"{version}-1"}


def test_a_pinning_package_works_on_ubuntu_too(ubuntu: Apt, cuda: Path) -> None:
    ubuntu.pin(cuda / "ubuntu2404/nvidia-driver-pinning-595_595-1ubuntu1_all.deb")
    chosen = ubuntu.would_install("libnvidia-compute", "nvidia-dkms-open", "nvidia-utils", "nvidia-persistenced")
    assert {chosen["nvidia-dkms-open"], chosen["libnvidia-compute"]} == {f"{OF_595}-1ubuntu1"}
    assert f"{NEWEST}-1ubuntu1" not in chosen.values()


def test_the_versioned_metapackage_alone_does_not_pin(ubuntu: Apt) -> None:
    chosen = ubuntu.would_install(f"nvidia-open={OF_595}-1ubuntu1")
    assert chosen["nvidia-dkms-open"] == f"{NEWEST}-1ubuntu1"


def test_the_compute_package_brings_no_kernel_module(debian: Apt) -> None:
    assert not [name for name in debian.would_install("nvidia-driver-cuda") if "dkms" in name]


def test_names_with_the_branch_are_the_pin_on_ubuntu_before_590(ubuntu: Apt) -> None:
    chosen = ubuntu.would_install("nvidia-headless-580-open", "nvidia-utils-580")
    assert chosen["nvidia-dkms-580-open"] == f"{OF_580}-1ubuntu1"
    assert chosen["libnvidia-compute-580"] == f"{OF_580}-1ubuntu1"


def test_debian_13_has_no_580(debian: Apt) -> None:
    assert "nvidia-driver-pinning-580" in debian.refusal("nvidia-driver-pinning-580")


def test_a_cuda_toolkit_brings_no_driver_and_the_short_names_do(debian: Apt) -> None:
    assert not [name for name in debian.would_install("cuda-toolkit-13-2") if "nvidia" in name]
    for meta in ("cuda", "cuda-13-2", "cuda-drivers"):
        assert "nvidia-kernel-dkms" in debian.would_install(meta), meta
    assert "cuda-toolkit-13-4" in debian.would_install("cuda-toolkit")


def test_the_open_and_the_proprietary_modules_exclude_each_other(debian: Apt) -> None:
    debian.refusal("nvidia-kernel-open-dkms", "nvidia-kernel-dkms")


def test_the_keyring_package_drops_nvidias_own_address_and_this_distributions_key(cuda: Path, key: Key) -> None:
    for distro in (each.id for each in DISTRIBUTIONS):
        deb = cuda / distro / "cuda-keyring_1.1-1_all.deb"
        tree = cuda / f"keyring-{distro}"
        subprocess.run(["dpkg-deb", "--extract", str(deb), str(tree)], check=True)
        line = (tree / f"etc/apt/sources.list.d/cuda-{distro}-x86_64.list").read_text()
        assert line == (
            "deb [signed-by=/usr/share/keyrings/cuda-archive-keyring.gpg] "
            f"https://developer.download.nvidia.com/compute/cuda/repos/{distro}/x86_64/ /\n"
        )
        assert (tree / "usr/share/keyrings/cuda-archive-keyring.gpg").read_bytes() == key.keyring.read_bytes()
        priority = tree / "etc/apt/preferences.d/cuda-repository-pin-600"
        assert priority.exists() == distro.startswith("ubuntu")


@pytest.fixture
def toolkits(key: Key, tmp_path: Path) -> Apt:
    aptrepo.write_flat(tmp_path / "repository", [*container_toolkit.packages(), *DISTRIBUTION], CUDA, key)
    return apt_for(tmp_path, tmp_path / "repository", key)


BEFORE_CDI_REFRESH, OLDER, NEWER = container_toolkit.VERSIONS


def test_the_toolkits_four_packages_come_in_one_version_or_not_at_all(toolkits: Apt) -> None:
    first, base, *_ = TOOLKIT_PACKAGES
    assert set(toolkits.would_install(first)) >= set(TOOLKIT_PACKAGES)
    older = toolkits.would_install(*(f"{name}={OLDER}-1" for name in TOOLKIT_PACKAGES))
    assert {older[name] for name in TOOLKIT_PACKAGES} == {f"{OLDER}-1"}
    assert base in toolkits.refusal(f"{first}={OLDER}-1")


def test_only_toolkits_from_1_18_on_refresh_the_cdi_specification() -> None:
    bases = {
        package.version: package for package in container_toolkit.packages() if package.name == TOOLKIT_PACKAGES[1]
    }
    units = {
        version: [file.path for file in base.files if "nvidia-cdi-refresh.service" in file.path]
        for version, base in bases.items()
    }
    assert not units[f"{BEFORE_CDI_REFRESH}-1"]
    assert units[f"{OLDER}-1"] and units[f"{NEWER}-1"]


def test_every_stand_in_package_can_be_written_and_no_placeholder_is_left(cuda: Path, key: Key) -> None:
    for distro in DISTRIBUTIONS:
        for package in [*nvidia.packages(distro, key, DKMS), *container_toolkit.packages()]:
            texts = [file.content.decode() for file in package.files if file.content and "keyring" not in file.path]
            for text in (*texts, *package.scripts.values()):
                assert not re.search("@[A-Z]+@", text), package.name


def test_maintainer_scripts_are_valid_shell(key: Key, tmp_path: Path) -> None:
    for package in [*nvidia.packages(DISTRIBUTIONS[0], key, DKMS), *container_toolkit.packages()]:
        for name, text in package.scripts.items():
            done = subprocess.run(["sh", "-n"], input=text, text=True, capture_output=True)
            assert done.returncode == 0, f"{package.name} {name}: {done.stderr}"
