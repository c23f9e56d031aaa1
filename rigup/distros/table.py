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


def header_packages(distro: str, kernel: str, image_packages: Iterable[str]) -> tuple[str, ...]:
    """Return the kernel headers to install: those of the kernel, and the metapackage for future kernels.

    `kernel` is a release as printed by `uname -r`, `image_packages` the installed packages named linux-image-*. Without
    the metapackage, the driver would be missing after the next kernel update.
    """
    known = distro_named(distro)
    # A metapackage is linux-image-<flavor>; a single kernel is linux-image-<version>.
    metas = [
        name.replace("linux-image-", "linux-headers-", 1)
        for name in sorted(set(image_packages))
        if name.startswith("linux-image-")
        and not re.match(r"linux-image-(unsigned-)?\d", name)
        and not name.endswith(("-dbg", "-dbgsym"))
    ]
    if not metas:
        metas = ["linux-headers-generic" if known.family == "ubuntu" else "linux-headers-amd64"]
    return (f"linux-headers-{kernel}", *metas)
