"""The apt packages of the NVIDIA driver, Docker and the container toolkit, by distribution and driver branch.

Sources: NVIDIA's driver installation guide (kernel modules, version locking) and the indexes of its CUDA repositories.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rigup.distros.table import distro_named
from rigup.errors import RigupError

DOCKER_PACKAGES = ("docker-ce", "docker-ce-cli", "containerd.io", "docker-buildx-plugin", "docker-compose-plugin")

# All four must have the same version: since 1.18 they depend on each other strictly.
TOOLKIT_PACKAGES = (
    "nvidia-container-toolkit",
    "nvidia-container-toolkit-base",
    "libnvidia-container-tools",
    "libnvidia-container1",
)
TOOLKIT_FLOOR = "1.20.1"

# Patterns of the apt packages that each group replaces. Docker's are those of docs.docker.com/engine/install, section
# "Uninstall old versions", and what Debian 13 has split from docker.io. NVIDIA's nvidia-kernel-open-dkms is not
# Debian's nvidia-open-kernel-dkms (550).
REPLACED: Mapping[str, tuple[str, ...]] = {
    "driver": (r"nvidia-open-kernel-dkms", r"nvidia-kernel-dkms", r"nvidia-dkms-\d+", r"linux-modules-nvidia-.*"),
    "docker": (
        *("docker.io", "docker-buildx", "docker-cli", "docker-compose", "docker-compose-v2", "docker-doc"),
        *("podman-docker", "containerd", "runc"),
    ),
    "toolkit": (r"nvidia-docker2?", r"nvidia-container-runtime"),
}


PIN = "nvidia-driver-pinning-"
"""The prefix of packages that pin a driver branch or version; they conflict with each other."""

PREFERENCES = "Package: *\nPin: release l=NVIDIA CUDA\nPin-Priority: 600\n"
"""apt's preference for NVIDIA's packages over Ubuntu's of the same names, as NVIDIA's own cuda-keyring sets it."""

# Before 590, the names of Ubuntu's packages include the branch. These are the packages of a headless driver. Those of a
# desktop are not listed: its owner must decide whether to remove them.
OTHER_DRIVERS = (
    rf"{PIN}[\d.]+",
    r"nvidia-(headless|headless-no-dkms|dkms|kernel-source)-\d+-open",
    r"nvidia-(utils|compute-utils|kernel-common)-\d+",
    r"nvidia-firmware-\d+-[\d.]+",
    r"libnvidia-(compute|cfg1)-\d+",
)
# Ubuntu's packages from 590 on, with their dependencies: to be removed when a host goes back to an older branch.
UBUNTU_UNVERSIONED = (
    r"nvidia-(headless-open|headless-no-dkms-open|dkms-open|utils|kernel-common|firmware|persistenced)",
    r"libnvidia-(compute|cfg1)",
)


@dataclass(frozen=True)
class DriverPackages:
    """The packages of one driver branch on one distribution.

    `pin` keeps apt within the branch, and is installed before the others in its own transaction; it is None if the
    packages' names include the branch. `module` is the package that builds the kernel module; its version counts.
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
    """Return the driver's packages: compute only, open modules (the only ones for Blackwell), no display.

    Raises RigupError if NVIDIA does not offer the branch for the distribution; nothing else decides that.
    """
    known = distro_named(distro)
    packages: tuple[str, ...]
    if branch < known.first_branch:
        raise RigupError(
            f"driver_branch {branch} does not exist for {known.name}",
            f"the oldest one there is {known.first_branch}",
        )
    pin = f"{PIN}{branch}"
    if known.family == "debian":
        # nvidia-driver-cuda has nvidia-smi but does not depend on a kernel module.
        packages = ("nvidia-driver-cuda", "nvidia-kernel-open-dkms", "nvidia-persistenced")
        return DriverPackages(distro, branch, pin, packages, "nvidia-kernel-open-dkms")
    if branch < 590:
        # Before 590 the names of Ubuntu's packages include the branch; those without are of a newer branch.
        packages = (f"nvidia-headless-{branch}-open", f"nvidia-utils-{branch}")
        return DriverPackages(distro, branch, None, packages, f"nvidia-dkms-{branch}-open")
    packages = ("libnvidia-compute", "nvidia-dkms-open", "nvidia-utils", "nvidia-persistenced")
    return DriverPackages(distro, branch, pin, packages, "nvidia-dkms-open")


def upstream(version: str) -> str:
    """Return the upstream part of an apt version: 595.71.05 for 595.71.05-1ubuntu1, 29.6.1 for 5:29.6.1-1~debian.13."""
    return version.split(":", 1)[-1].rsplit("-", 1)[0]


def conflicting(installed: Iterable[str], *groups: str) -> list[str]:
    """Return the installed packages that conflict with those of the groups in REPLACED, by default of all."""
    pattern = re.compile("|".join(name for group in groups or REPLACED for name in REPLACED[group]))
    return sorted(name for name in set(installed) if pattern.fullmatch(name))


def other_drivers(installed: Iterable[str], desired: DriverInstall) -> list[str]:
    """Return the installed packages of other driver branches or versions that may be removed for `desired`."""
    pattern = re.compile("|".join(OTHER_DRIVERS if desired.pin else (*OTHER_DRIVERS, *UBUNTU_UNVERSIONED)))
    # Dependencies of the desired packages have the same branch in their names, if any.
    own = re.compile(rf"(?!{PIN}).*-{desired.version.partition('.')[0]}(-.*)?")
    candidates = {*installed} - {*desired.pin, *desired.packages}
    return sorted(name for name in candidates if pattern.fullmatch(name) and not own.fullmatch(name))
