"""The supported distributions, and what differs between them: driver branches, CUDA, Python and kernel headers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rigup.errors import RigupError


@dataclass(frozen=True)
class Distro:
    """A supported distribution.

    `id` is NVIDIA's name for it and `family` Docker's; `first_branch` is the oldest driver branch that NVIDIA offers
    for it, `python` the version of its own Python, and `cuda_key` the fingerprint of its CUDA repository's key.
    """

    id: str
    name: str
    family: str
    codename: str
    first_branch: int
    python: str
    cuda_key: str

    @property
    def cuda_key_file(self) -> str:
        """The file with that key in the CUDA repository."""
        return CUDA_KEY_FILES[self.cuda_key]


# The README of NVIDIA/cuda-repo-management lists which repository has which key. apt on Debian 13 rejects the older one
# (issue 39 there).
_CUDA_KEY = "EB693B3035CD5710E231E123A4B469963BF863CC"
_CUDA_KEY_2025 = "02182E60104FCDC26EAE1B8597A5D4CB8793F200"
CUDA_KEY_FILES = {_CUDA_KEY: "3bf863cc.pub", _CUDA_KEY_2025: "8793F200.pub"}

# Debian 13 has no 580: NVIDIA recreated that repository, with a new key (cuda-repo-management issues 38 to 40).
DISTROS: Mapping[str, Distro] = {
    distro.id: distro
    for distro in (
        Distro("debian12", "Debian 12", "debian", "bookworm", 580, "3.11", _CUDA_KEY),
        Distro("debian13", "Debian 13", "debian", "trixie", 590, "3.13", _CUDA_KEY_2025),
        Distro("ubuntu2404", "Ubuntu 24.04", "ubuntu", "noble", 580, "3.12", _CUDA_KEY),
    )
}


# The CUDA version of each driver branch. An image must not need a newer one, else PTX and NCCL fail.
BRANCH_CUDA: Mapping[int, str] = {580: "13.0", 590: "13.1", 595: "13.2", 610: "13.3", 615: "13.4"}


def short_of_cuda(branch: int, required: str) -> tuple[str, list[int]] | None:
    """Return the CUDA of a driver branch and the branches that have `required`; None if the branch has it.

    Nothing is known about branches below the table; one above it has at least the CUDA of the last.
    """
    known = [number for number in BRANCH_CUDA if number <= branch]
    brings = BRANCH_CUDA[max(known)] if known else None
    if brings is None or branch > max(BRANCH_CUDA) or major_minor(required) <= major_minor(brings):
        return None
    return brings, [number for number, cuda in BRANCH_CUDA.items() if major_minor(cuda) >= major_minor(required)]


def major_minor(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version such as `13.2`, for comparisons."""
    major, _, minor = version.partition(".")
    return int(major), int(minor.partition(".")[0] or 0)


def distro_id(os_release: Mapping[str, str]) -> str:
    """Return NVIDIA's name for the distribution in /etc/os-release. Raises RigupError if it is not supported."""
    name, version = os_release.get("ID", ""), os_release.get("VERSION_ID", "").strip('"')
    found = name.strip('"') + version.replace(".", "")
    if found in DISTROS:
        return found
    shown = os_release.get("PRETTY_NAME") or f"{name} {version}".strip() or "an unknown system"
    known = ", ".join(distro.name for distro in DISTROS.values())
    raise RigupError(f"{shown} is not supported", f"install one of these: {known}")


def distro_named(distro: str) -> Distro:
    """Return the distribution that NVIDIA calls `distro`. Raises RigupError if it is not supported."""
    if distro not in DISTROS:
        raise RigupError(f"{distro!r} is not a supported distribution", f"use one of {', '.join(DISTROS)}")
    return DISTROS[distro]


# The kernels of each family, by the end of their release, whose headers are linux-headers-RELEASE, with a metapackage
# linux-headers-FLAVOR.
FLAVORS: Mapping[str, frozenset[str]] = {
    "debian": frozenset({"amd64", "cloud-amd64", "rt-amd64"}),
    "ubuntu": frozenset({"generic", "lowlatency", "aws", "azure", "gcp", "gke", "ibm", "nvidia", "oracle"}),
}
FLAVOR = re.compile(r"\d[^-]*(?:-\d[^-]*)*-(.+)")
# Proxmox renamed its packages in 2023, with kernel 6.2.16-6.
PROXMOX = {"proxmox-kernel-": "proxmox-headers-", "pve-kernel-": "pve-headers-"}
PROXMOX_DEFAULT = ("proxmox-default-kernel", "proxmox-default-headers")
KERNEL_PACKAGES = ("linux-image-*", *(f"{prefix}*" for prefix in PROXMOX), PROXMOX_DEFAULT[0])
"""The names of kernel packages, as patterns."""


@dataclass(frozen=True)
class Headers:
    """The kernel headers to install: `package` for one kernel, and the metapackages for future ones.

    `kernels` are metapackages of kernels of the same flavor, to install if `package` is no longer offered.
    """

    package: str
    metas: tuple[str, ...]
    kernels: tuple[str, ...] = ()


def header_packages(distro: str, kernel: str, installed: Iterable[str]) -> Headers:
    """Return the headers for a kernel, a release as printed by `uname -r`.

    `installed` has at least the installed packages of KERNEL_PACKAGES. Without the metapackages, the driver would be
    missing after the next kernel update. Raises RigupError if the name of the kernel's headers is unknown.
    """
    known, packages = distro_named(distro), sorted(set(installed))
    flavor = match[1] if (match := FLAVOR.fullmatch(kernel)) else ""
    if flavor == "pve":
        return _proxmox_headers(kernel, packages)
    # A metapackage is linux-image-<flavor>; a single kernel is linux-image-<version>.
    images = [
        name.removeprefix("linux-image-")
        for name in packages
        if name.startswith("linux-image-")
        and not re.match(r"linux-image-(unsigned-)?\d", name)
        and not name.endswith(("-dbg", "-dbgsym"))
    ]
    own = {f"linux-image-{kernel}", f"linux-image-unsigned-{kernel}"}
    if flavor not in FLAVORS[known.family] and own.isdisjoint(packages):
        usual = "linux-image-generic" if known.family == "ubuntu" else "linux-image-amd64"
        raise RigupError(
            f"kernel {kernel}, which boots next, is no kernel of {known.name}, and no package linux-image-{kernel} is "
            "installed: the name of its headers, which the driver is built against, is unknown",
            f"install and boot a kernel of the distribution, such as {usual}, or one from a package with headers",
        )
    metas = images or ([flavor] if flavor in FLAVORS[known.family] else [])
    same = [name for name in images if flavor and f"{_flavor_of(name)}-".startswith(f"{flavor}-")]
    return Headers(
        f"linux-headers-{kernel}",
        tuple(f"linux-headers-{name}" for name in metas),
        tuple(f"linux-image-{name}" for name in same),
    )


def _flavor_of(meta: str) -> str:
    """Return the flavor of a metapackage's kernels: that of Ubuntu's `virtual` is generic."""
    return re.sub(r"^virtual\b", "generic", meta)


def _proxmox_headers(kernel: str, packages: Iterable[str]) -> Headers:
    own, metas, kernels = f"proxmox-headers-{kernel}", list[str](), list[str]()
    for name in packages:
        for prefix, headers in PROXMOX.items():
            rest = name.removeprefix(prefix)
            if name == f"{prefix}{kernel}":
                own = f"{headers}{kernel}"
            elif rest != name and re.fullmatch(r"\d+\.\d+", rest):
                metas.append(f"{headers}{rest}")
                kernels.append(name)
        if name == PROXMOX_DEFAULT[0]:
            metas.append(PROXMOX_DEFAULT[1])
            kernels.append(name)
    return Headers(own, tuple(metas), tuple(kernels))
