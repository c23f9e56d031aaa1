"""The lab's kernel packages and module files, read with Debian's own tools."""

import lzma
import shutil
import subprocess
from pathlib import Path

import pytest

from lab.mirror import kernel
from lab.mirror.kernel_module import module_image, read_modinfo

KVER = "6.18.44-lab"


def field(deb: Path, name: str) -> str:
    return subprocess.run(
        ["dpkg-deb", "--field", str(deb), name], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not installed")
    return {field(deb, "Package"): deb for deb in kernel.build(tmp_path_factory.mktemp("debs"), KVER)}


def test_names_and_versions_have_debians_form(built: dict[str, Path]) -> None:
    assert set(built) == {
        f"linux-image-{KVER}",
        "linux-image-amd64",
        f"linux-headers-{KVER}",
        "linux-headers-amd64",
    }
    assert {field(deb, "Version") for deb in built.values()} == {"6.18.44-1"}


@pytest.mark.parametrize("kind", ["image", "headers"])
def test_a_metapackage_pulls_exactly_its_package(built: dict[str, Path], kind: str) -> None:
    assert field(built[f"linux-{kind}-amd64"], "Depends") == f"linux-{kind}-{KVER} (= 6.18.44-1)"


def test_headers_make_the_build_link_that_dkms_looks_for(built: dict[str, Path], tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "--extract", str(built[f"linux-headers-{KVER}"]), str(tmp_path)], check=True)
    assert (tmp_path / f"lib/modules/{KVER}/build").readlink() == Path(f"/usr/src/linux-headers-{KVER}")
    assert (tmp_path / f"usr/src/linux-headers-{KVER}/Makefile").exists()


def test_packages_are_reproducible(built: dict[str, Path], tmp_path: Path) -> None:
    again = kernel.build(tmp_path, KVER)
    assert [deb.read_bytes() for deb in again] == [deb.read_bytes() for deb in built.values()]


def test_a_kernel_release_becomes_a_valid_package_name() -> None:
    assert kernel.package_name("linux-image", "5.15.0-WSL_2") == "linux-image-5.15.0-wsl-2"
    assert kernel.package_version("6.18-rc3") == "6.18-1"


def test_module_fields_are_read_from_plain_and_compressed_modules() -> None:
    image = module_image([("license", "Dual MIT/GPL"), ("alias", "a"), ("alias", "b"), ("parm", "x:what = it does")])
    expected = {"license": "Dual MIT/GPL", "alias": "a", "parm": "x:what = it does"}
    assert read_modinfo(image) == expected
    assert read_modinfo(lzma.compress(image)) == expected


def test_real_modinfo_reads_the_module(tmp_path: Path) -> None:
    modinfo = shutil.which("modinfo", path="/usr/sbin:/usr/bin:/sbin:/bin")
    if modinfo is None:
        pytest.skip("kmod is not installed")
    module = tmp_path / "nvidia.ko"
    module.write_bytes(module_image([("version", "595.71.05"), ("license", "Dual MIT/GPL")]))
    shown = subprocess.run([modinfo, "-F", "version", str(module)], check=True, capture_output=True, text=True)
    assert shown.stdout == "595.71.05\n"


@pytest.mark.parametrize("image", [b"", b"#!/bin/sh\n", b"\x7fELF\x02\x01", module_image([])[:80]])
def test_a_damaged_module_is_a_clear_error(image: bytes) -> None:
    with pytest.raises(ValueError, match=r"ELF|\.modinfo"):
        read_modinfo(image)
