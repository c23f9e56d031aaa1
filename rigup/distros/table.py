"""TODO."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rigup.errors import RigupError

__all__ = [
    "BRANCH_CUDA",
    "DISTROS",
    "Distro",
    "distro_id",
    "header_packages",
    "major_minor",
    "short_of_cuda",
]


@dataclass(frozen=True)
class Distro:
    """A distribution that rigup knows. `id` is NVIDIA's name for it, `family` Docker's, `python` its own Python."""

    id: str
    name: str
    family: str
    codename: str
    first_branch: int
    python: str


# Debian 13 has no 580: NVIDIA made that repository anew, with a new key (cuda-repo-management issues 38 to 40).
DISTROS: Mapping[str, Distro] = {
    distro.id: distro
    for distro in (
        Distro("debian12", "Debian 12", "debian", "bookworm", 580, "3.11"),
        Distro("debian13", "Debian 13", "debian", "trixie", 590, "3.13"),
        Distro("ubuntu2404", "Ubuntu 24.04", "ubuntu", "noble", 580, "3.12"),
    )
}


# The CUDA version that a driver branch brings; an image must not ask for more (PTX and NCCL fail otherwise).
BRANCH_CUDA: Mapping[int, str] = {580: "13.0", 590: "13.1", 595: "13.2", 610: "13.3", 615: "13.4"}


def short_of_cuda(branch: int, wanted: str) -> tuple[str, list[int]] | None:
    """The CUDA that a driver branch brings, and the branches that bring `wanted`; None where the branch is not short.

    Of a branch below the table nothing is known, and one above it brings at least the last one's CUDA.
    """
    known = [number for number in BRANCH_CUDA if number <= branch]
    brings = BRANCH_CUDA[max(known)] if known else None
    if brings is None or branch > max(BRANCH_CUDA) or major_minor(wanted) <= major_minor(brings):
        return None
    return brings, [number for number, cuda in BRANCH_CUDA.items() if major_minor(cuda) >= major_minor(wanted)]


def major_minor(version: str) -> tuple[int, int]:
    """`13.2` as numbers, for comparisons; what follows them does not count."""
    major, _, minor = version.partition(".")
    return int(major), int(minor.partition(".")[0] or 0)


def distro_id(os_release: Mapping[str, str]) -> str:
    """NVIDIA's name for the distribution in /etc/os-release. Raises RigupError for one that rigup does not know."""
    name, version = os_release.get("ID", ""), os_release.get("VERSION_ID", "").strip('"')
    found = name.strip('"') + version.replace(".", "")
    if found in DISTROS:
        return found
    shown = os_release.get("PRETTY_NAME") or f"{name} {version}".strip() or "an unknown system"
    known = ", ".join(distro.name for distro in DISTROS.values())
    raise RigupError(f"{shown} is not supported", f"install one of these: {known}")


def _distro(distro: str) -> Distro:
    if distro not in DISTROS:
        raise RigupError(f"{distro!r} is not a supported distribution", f"use one of {', '.join(DISTROS)}")
    return DISTROS[distro]


def header_packages(distro: str, kernel: str, image_packages: Iterable[str]) -> tuple[str, ...]:
    """The kernel headers to install: that kernel's, and the meta that follows the installed image meta.

    `kernel` is a release as of `uname -r`, `image_packages` the installed packages named linux-image-*. Without the
    meta, the next kernel comes without a driver.
    """
    known = _distro(distro)
    # A meta is linux-image-<flavour>; a kernel of its own is linux-image-<version>.
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
