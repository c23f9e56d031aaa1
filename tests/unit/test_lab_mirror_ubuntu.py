"""The lab's Ubuntu archive as the real apt sees it."""

import lzma
import shutil
from pathlib import Path

import pytest

from lab.mirror import ubuntu
from lab.mirror.keys import Key
from tests.unit.private_apt import Apt

pytestmark = pytest.mark.skipif(
    not (shutil.which("apt-get") and shutil.which("gpg")), reason="needs Debian's apt-get, and gpg"
)

NEEDED = "".join(
    f"Package: {name}\nVersion: 1\nArchitecture: all\nFilename: pool/main/{name}.deb\nSize: 1\n\n"
    for name in ("initramfs-tools", "kmod", "linux-base")
)


@pytest.fixture
def apt(key: Key, tmp_path: Path) -> Apt:
    debian = dict.fromkeys(ubuntu.DEBIAN_SUITES, lzma.compress(b"")) | {"noble": lzma.compress(NEEDED.encode())}
    ubuntu.write(tmp_path / "archive", debian, key)
    suites = "\n".join(
        f"deb [signed-by={key.keyring}] file:{tmp_path}/archive {suite} {' '.join(ubuntu.COMPONENTS)}"
        for suite in ubuntu.DEBIAN_SUITES
    )
    apt = Apt.make(tmp_path / "apt", suites)
    done = apt.update()
    assert (done.returncode, done.stderr) == (0, "")
    return apt


def test_a_kernel_comes_with_debians_packages_that_it_needs(apt: Apt) -> None:
    chosen = apt.would_install("linux-generic")
    assert chosen["linux-image-6.8.0-85-generic"] == chosen["linux-headers-6.8.0-85-generic"] == "6.8.0-85.85"
    assert chosen["kmod"] == "1"


def test_the_headers_of_an_older_kernel_are_still_there(apt: Apt) -> None:
    assert apt.would_install("linux-headers-6.8.0-79-generic") == {
        "linux-headers-6.8.0-79": "6.8.0-79.79",
        "linux-headers-6.8.0-79-generic": "6.8.0-79.79",
    }


@pytest.mark.parametrize("flavor", ["generic", "virtual"])
def test_the_enablement_series_has_metapackages_of_its_own(apt: Apt, flavor: str) -> None:
    chosen = apt.would_install(f"linux-{flavor}-hwe-24.04")
    assert "linux-image-6.14.0-33-generic" in chosen
    assert "linux-headers-6.14.0-33-generic" in chosen
