"""Which apt packages a host needs, by distribution and driver branch: one table, no host touched.

Sources: NVIDIA's driver installation guide (kernel modules, version locking) and the indexes of its CUDA repositories.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rigup.distros.table import _distro
from rigup.errors import RigupError

__all__ = [
    "DOCKER_PACKAGES",
    "PIN",
    "TOOLKIT_PACKAGES",
    "DriverInstall",
    "DriverPackages",
    "conflicting",
    "driver_packages",
    "other_drivers",
]


DOCKER_PACKAGES = ("docker-ce", "docker-ce-cli", "containerd.io", "docker-buildx-plugin", "docker-compose-plugin")

# All four at one version: they have depended on each other strictly since 1.18.
TOOLKIT_PACKAGES = (
    "nvidia-container-toolkit",
    "nvidia-container-toolkit-base",
    "libnvidia-container-tools",
    "libnvidia-container1",
)
TOOLKIT_FLOOR = "1.20.1"

# docs.docker.com/engine/install, "Uninstall old versions".
CONFLICTS_DOCKER = (
    "docker.io",
    "docker-doc",
    "docker-compose",
    "docker-compose-v2",
    "podman-docker",
    "containerd",
    "runc",
)

# Patterns of apt names. The archive's nvidia-open-kernel-dkms (550) is not NVIDIA's nvidia-kernel-open-dkms.
CONFLICTS_DRIVER = (
    r"nvidia-open-kernel-dkms",
    r"nvidia-kernel-dkms",
    r"nvidia-dkms-\d+",
    r"linux-modules-nvidia-.*",
    r"nvidia-docker2?",
    r"nvidia-container-runtime",
)


PIN = "nvidia-driver-pinning-"
"""Begins the names of the packages that pin a driver branch or version; they exclude each other."""

# Ubuntu's packages before 590 carry the branch in their names: these are what a headless driver of such a branch is
# made of. A desktop's are not here: it is for its owner to say that they may go.
OTHER_DRIVERS = (
    rf"{PIN}[\d.]+",
    r"nvidia-(headless|headless-no-dkms|dkms|kernel-source)-\d+-open",
    r"nvidia-(utils|compute-utils|kernel-common)-\d+",
    r"nvidia-firmware-\d+-[\d.]+",
    r"libnvidia-(compute|cfg1)-\d+",
)
# The table's own for Ubuntu from 590 on, and what they bring: what makes way when a host goes back before it.
UBUNTU_UNVERSIONED = (
    r"nvidia-(headless-open|headless-no-dkms-open|dkms-open|utils|kernel-common|firmware|persistenced)",
    r"libnvidia-(compute|cfg1)",
)


@dataclass(frozen=True)
class DriverPackages:
    """The packages of one driver branch on one distribution.

    `pin` keeps apt within the branch and is installed in a transaction of its own before the rest; where it is None,
    the packages' names hold the branch. `module` is the package that builds the kernel module and whose version counts.
    """

    distro: str
    branch: int
    pin: str | None
    packages: tuple[str, ...]
    module: str


@dataclass(frozen=True)
class DriverInstall:
    """A resolved driver: exact apt versions of pin and packages. `version` is NVIDIA's, such as 595.71.05."""

    version: str
    module: str
    pin: Mapping[str, str]
    packages: Mapping[str, str]


def driver_packages(distro: str, branch: int) -> DriverPackages:
    """The table. Compute only, open modules (Blackwell has no others), no display.

    Raises RigupError where the branch does not exist for the distribution.
    """
    known = _distro(distro)
    packages: tuple[str, ...]
    if branch < known.first_branch:
        raise RigupError(
            f"driver_branch {branch} does not exist for {known.name}",
            f"NVIDIA's oldest there is {known.first_branch}; 595 is on all distributions",
        )
    pin = f"{PIN}{branch}"
    if known.family == "debian":
        # nvidia-driver-cuda has nvidia-smi but pulls in no kernel module.
        packages = ("nvidia-driver-cuda", "nvidia-kernel-open-dkms", "nvidia-persistenced")
        return DriverPackages(distro, branch, pin, packages, "nvidia-kernel-open-dkms")
    if branch < 590:
        # Before 590 Ubuntu's packages carried the branch in their names, and the unversioned ones mean a newer branch.
        packages = (f"nvidia-headless-{branch}-open", f"nvidia-utils-{branch}")
        return DriverPackages(distro, branch, None, packages, f"nvidia-dkms-{branch}-open")
    packages = ("libnvidia-compute", "nvidia-dkms-open", "nvidia-utils", "nvidia-persistenced")
    return DriverPackages(distro, branch, pin, packages, "nvidia-dkms-open")


def upstream(version: str) -> str:
    """The upstream part of an apt version: 595.71.05 of 595.71.05-1ubuntu1, 29.6.1 of 5:29.6.1-1~debian.13~trixie."""
    return version.split(":", 1)[-1].rsplit("-", 1)[0]


def conflicting(installed: Iterable[str]) -> list[str]:
    """Which of the installed packages must go before Docker CE and NVIDIA's own driver can come."""
    pattern = re.compile("|".join((*map(re.escape, CONFLICTS_DOCKER), *CONFLICTS_DRIVER)))
    return sorted(name for name in set(installed) if pattern.fullmatch(name))


def other_drivers(installed: Iterable[str], wanted: DriverInstall) -> list[str]:
    """Which of the installed packages are of another driver branch or version and may make way for `wanted`."""
    pattern = re.compile("|".join(OTHER_DRIVERS if wanted.pin else (*OTHER_DRIVERS, *UBUNTU_UNVERSIONED)))
    # What the wanted packages depend on has their branch in its name, where it has any.
    own = re.compile(rf"(?!{PIN}).*-{wanted.version.partition('.')[0]}(-.*)?")
    candidates = {*installed} - {*wanted.pin, *wanted.packages}
    return sorted(name for name in candidates if pattern.fullmatch(name) and not own.fullmatch(name))
