"""Ubuntu's archive as the lab has it: Debian's packages under Ubuntu's suites, next to stand-ins of Ubuntu's own.

The stand-ins are the kernels with their metapackages, snapd, and an update that is being phased.
"""

import lzma
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.mirror import aptrepo, debfile, kernel
from lab.mirror.debfile import File, Package
from lab.mirror.keys import Key
from lab.mirror.parts import program

BASE = "trixie"
"""The Debian release whose packages it offers."""
COMPONENTS = ("main", "restricted", "universe", "multiverse")
DEBIAN_SUITES = {"noble": BASE, "noble-updates": f"{BASE}-updates", "noble-security": f"{BASE}-security"}
"""Ubuntu's suites, and the Debian suite with the packages of each."""


@dataclass(frozen=True)
class Kernel:
    """A kernel by its ABI, such as 6.8.0-79, and the version of its packages; `series` ends its metapackages' names."""

    abi: str
    version: str
    series: str = ""

    @property
    def release(self) -> str:
        """What `uname -r` prints."""
        return f"{self.abi}-generic"


# As published in 2025: the release's own series, its next update, and the hardware enablement series.
INSTALLED = Kernel("6.8.0-79", "6.8.0-79.79")
UPDATE = Kernel("6.8.0-85", "6.8.0-85.85")
HWE = Kernel("6.14.0-33", "6.14.0-33.33~24.04.1", "-hwe-24.04")


def _kernel(name: str, version: str, depends: str, files: Iterable[File] = (), kind: str = "", of: str = "") -> Package:
    scripts = kernel.scripts(kind, of) if kind else {}
    summary = "Linux kernel, the lab's stand-in"
    return Package(name, version, summary, "amd64", "kernel", "linux", {"Depends": depends}, tuple(files), scripts)


def kernel_packages(of: Kernel) -> list[Package]:
    """Return the packages of one kernel."""
    release, version = of.release, of.version
    image = f"kmod, linux-base, initramfs-tools | linux-initramfs-tool, linux-modules-{release}"
    return [
        _kernel(f"linux-modules-{release}", version, "", kernel.module_files(release)),
        _kernel(f"linux-image-{release}", version, image, kernel.boot_files(release), "linux-image", release),
        _kernel(f"linux-headers-{of.abi}", version, ""),
        _kernel(
            f"linux-headers-{release}",
            version,
            f"linux-headers-{of.abi}",
            kernel.headers_files(release),
            "linux-headers",
            release,
        ),
    ]


def metapackages(of: Kernel) -> list[Package]:
    """Return the metapackages of a kernel: `linux-generic`, `linux-virtual` and those they depend on."""
    found = []
    for flavor in (f"generic{of.series}", f"virtual{of.series}"):
        pair = [f"linux-image-{flavor}", f"linux-headers-{flavor}"]
        found += [
            _kernel(pair[0], of.version, f"linux-image-{of.release}"),
            _kernel(pair[1], of.version, f"linux-headers-{of.release}"),
            _kernel(f"linux-{flavor}", of.version, ", ".join(f"{name} (= {of.version})" for name in pair)),
        ]
    return found


def _snapd() -> Package:
    summary = "Daemon and tooling that enable snap packages, the lab's stand-in"
    files = (program("usr/bin/snap", "snap"),)
    return Package("snapd", "2.73+ubuntu24.04", summary, section="devel", files=files)


def _phased() -> Package:
    # It has no files: a host that takes it has no curl.
    return Package("curl", "8.99.0-0ubuntu0.24.04.1", "an update that no host is to get yet", section="web")


def build(directory: Path) -> list[Path]:
    """Write the packages of a bare host into a directory, the same bytes every time; return their paths."""
    image = [each for each in metapackages(INSTALLED) if each.name == "linux-image-generic"]
    own = [each for each in kernel_packages(INSTALLED) if "headers" not in each.name]
    return [debfile.write(package, directory) for package in (*own, *image, _snapd())]


def write(root: Path, debian: Mapping[str, bytes], key: Key) -> None:
    """Write the indexes and the lab's own packages; `debian` has the Packages.xz of each suite in DEBIAN_SUITES.

    The files of Debian's packages are passed through by the server.
    """
    new = [*kernel_packages(UPDATE), *metapackages(UPDATE)]
    updates = [*kernel_packages(INSTALLED), *new, *kernel_packages(HWE), *metapackages(HWE), _snapd()]
    pool = root / "pool" / "lab"
    added = {
        "noble-updates": aptrepo.stanzas(updates, root, pool)
        + aptrepo.stanzas([_phased()], root, pool, {"Phased-Update-Percentage": "0"}),
        "noble-security": aptrepo.stanzas(new, root, pool),
    }
    for suite in DEBIAN_SUITES:
        index = debian[suite]
        if suite in added:
            index = lzma.compress(added[suite].encode() + b"\n" + lzma.decompress(index), preset=0)
        fields = {
            "Origin": "Ubuntu",
            "Label": "Ubuntu",
            "Suite": suite,
            "Version": "24.04",
            "Codename": "noble",
            "Architectures": "amd64",
            "Components": " ".join(COMPONENTS),
        }
        empty = lzma.compress(b"")
        aptrepo.write_indexes(
            root / "dists" / suite, {"main": index} | dict.fromkeys(COMPONENTS[1:], empty), fields, key
        )
