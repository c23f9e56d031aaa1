"""Which apt packages a host needs, by distribution and driver branch: one table, no host touched.

Sources: NVIDIA's driver installation guide (kernel modules, version locking) and the indexes of its CUDA repositories.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from rigup.errors import RigupError
from rigup.lock import Lock
from rigup.settings import Settings

__all__ = [
    "BRANCH_CUDA",
    "DISTROS",
    "DOCKER_PACKAGES",
    "PIN",
    "TOOLKIT_PACKAGES",
    "Distro",
    "DriverInstall",
    "DriverPackages",
    "Repository",
    "conflicting",
    "cuda_group",
    "distro_id",
    "docker_group",
    "driver_group",
    "driver_install",
    "driver_packages",
    "entangled_sources",
    "header_packages",
    "locked_packages",
    "major_minor",
    "other_drivers",
    "repositories",
    "short_of_cuda",
    "source_uris",
    "superseded_sources",
    "toolkit_group",
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

SOURCES = "/etc/apt/sources.list.d/"

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


@dataclass(frozen=True)
class Repository:
    """An apt repository as a host shall know it.

    `key_url` is a keyring package for NVIDIA's CUDA repository and a key file for the others. `stale` are the source
    files that older guides leave behind: with another Signed-By for the same address apt stops altogether.
    """

    name: str
    index_url: str
    key_url: str
    key_path: str
    source_path: str
    source_text: str
    stale: tuple[str, ...]

    @property
    def uris(self) -> set[str]:
        """Where the repository lies, as `source_uris` has it."""
        return source_uris(self.source_path, self.source_text)


def distro_id(os_release: Mapping[str, str]) -> str:
    """NVIDIA's name for the distribution in /etc/os-release. Raises RigupError for one that rigup does not know."""
    name, version = os_release.get("ID", ""), os_release.get("VERSION_ID", "").strip('"')
    found = name.strip('"') + version.replace(".", "")
    if found in DISTROS:
        return found
    shown = os_release.get("PRETTY_NAME") or f"{name} {version}".strip() or "an unknown system"
    known = ", ".join(distro.name for distro in DISTROS.values())
    raise RigupError(f"{shown} is not supported: use {known}")


def _distro(distro: str) -> Distro:
    if distro not in DISTROS:
        raise RigupError(f"{distro!r} is no distribution that rigup knows: {', '.join(DISTROS)}")
    return DISTROS[distro]


def driver_packages(distro: str, branch: int) -> DriverPackages:
    """The table. Compute only, open modules (Blackwell has no others), no display.

    Raises RigupError where the branch does not exist for the distribution.
    """
    known = _distro(distro)
    packages: tuple[str, ...]
    if branch < known.first_branch:
        raise RigupError(
            f"driver_branch {branch} does not exist for {known.name}: "
            f"NVIDIA's oldest there is {known.first_branch}; 595 is on all distributions"
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


def driver_group(settings: Settings) -> str:
    """The driver's name in the lock."""
    return f"driver-{settings.driver_version or settings.driver_branch}"


def docker_group(settings: Settings) -> str:
    """Docker's name in the lock."""
    return f"docker-{settings.docker_version}" if settings.docker_version else "docker"


def toolkit_group(settings: Settings) -> str:
    """The container toolkit's name in the lock."""
    wanted = settings.container_toolkit_version
    return f"toolkit-{wanted}" if wanted else "toolkit"


def cuda_group(settings: Settings) -> str | None:
    """The CUDA toolkit's apt package, which is its name in the lock too; None where the setting is off.

    Never `cuda` or `cuda-13-2`: those metapackages pull in a driver.
    """
    return f"cuda-toolkit-{settings.cuda_toolkit}" if settings.cuda_toolkit else None


def driver_install(lock: Lock, distro: str, settings: Settings) -> DriverInstall:
    """The driver's exact packages from the lock. Raises RigupError where they were never resolved."""
    table = driver_packages(distro, settings.driver_branch)
    versions = dict(lock.versions(distro, driver_group(settings)))
    pin = {name: version for name, version in versions.items() if name.startswith(PIN)}
    module = versions.get(table.module)
    if module is None:
        raise RigupError(f"the lock has no {table.module} for {distro}: run `rigup update packages`")
    packages = {name: version for name, version in versions.items() if name not in pin}
    return DriverInstall(upstream(module), table.module, pin, packages)


def locked_packages(lock: Lock, distro: str, settings: Settings) -> dict[str, Mapping[str, str]]:
    """The groups a host needs: `docker`, `toolkit`, and `cuda` where it is on. Raises RigupError for a missing one."""
    groups = {
        "docker": lock.versions(distro, docker_group(settings)),
        "toolkit": lock.versions(distro, toolkit_group(settings)),
    }
    if cuda := cuda_group(settings):
        groups["cuda"] = lock.versions(distro, cuda)
    return groups


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


def source_uris(path: str, text: str) -> set[str]:
    """The addresses of the repositories that an apt source file names (sources.list(5)), as far as they are enabled."""
    found: list[str] = []
    if path.endswith(".sources"):
        for paragraph in re.split(r"\n\s*\n", text):
            lines = "\n".join(line for line in paragraph.splitlines() if not line.startswith("#"))
            fields = [line.partition(":")[::2] for line in re.sub(r"\n[ \t]+", " ", lines).splitlines()]
            values = {name.strip().lower(): value.strip() for name, value in fields}
            if values.get("enabled", "yes").lower() not in ("no", "false", "without", "off", "disable"):
                found += values.get("uris", "").split()
    else:
        found = re.findall(r"^\s*deb(?:-src)?\s+(?:\[[^\]]*\]\s*)?(\S+)", text, re.MULTILINE)
    return {uri.replace("$(ARCH)", "amd64").rstrip("/") for uri in found}


def superseded_sources(repository: Repository, sources: Mapping[str, Collection[str]]) -> list[str]:
    """The source files that make way: those of older guides, and of `sources` those that name this repository alone."""
    same = (path for path, uris in sources.items() if {*uris} == repository.uris and path.startswith(SOURCES))
    return list(dict.fromkeys((*repository.stale, *sorted({*same} - {repository.source_path}))))


def entangled_sources(repository: Repository, sources: Mapping[str, Collection[str]]) -> list[str]:
    """The source files of others that name this repository and cannot make way: they are for other things too."""
    named = [path for path, uris in sources.items() if repository.uris & {*uris} and path != repository.source_path]
    return sorted({*named} - {*superseded_sources(repository, sources)})


def repositories(distro: str, settings: Settings) -> dict[str, Repository]:
    """The three repositories `cuda`, `docker` and `toolkit`, at the mirrors that the settings name."""
    known = _distro(distro)
    cuda = f"{settings.cuda_mirror}/{distro}/x86_64"
    docker = f"{settings.docker_mirror}/{known.family}"
    toolkit = settings.toolkit_mirror
    keyring = "/usr/share/keyrings/nvidia-container-toolkit-keyring.gpg"
    return {
        "cuda": Repository(
            name="cuda",
            index_url=f"{cuda}/Packages.gz",
            # One file name on all distributions, but a key of its own on Debian 13: never take it from another's path.
            key_url=f"{cuda}/cuda-keyring_1.1-1_all.deb",
            key_path="/usr/share/keyrings/cuda-archive-keyring.gpg",
            source_path=f"/etc/apt/sources.list.d/cuda-{distro}-x86_64.list",
            source_text=f"deb [signed-by=/usr/share/keyrings/cuda-archive-keyring.gpg] {cuda}/ /\n",
            stale=("/etc/apt/sources.list.d/cuda.list", "/etc/apt/sources.list.d/cuda-repo.list"),
        ),
        "docker": Repository(
            name="docker",
            index_url=f"{docker}/dists/{known.codename}/stable/binary-amd64/Packages.gz",
            key_url=f"{docker}/gpg",
            key_path="/etc/apt/keyrings/docker.asc",
            source_path="/etc/apt/sources.list.d/docker.sources",
            source_text=(
                f"Types: deb\nURIs: {docker}\nSuites: {known.codename}\nComponents: stable\n"
                "Architectures: amd64\nSigned-By: /etc/apt/keyrings/docker.asc\n"
            ),
            stale=("/etc/apt/sources.list.d/docker.list", "/etc/apt/sources.list.d/docker-ce.list"),
        ),
        "toolkit": Repository(
            name="toolkit",
            index_url=f"{toolkit}/stable/deb/amd64/Packages.gz",
            key_url=f"{toolkit}/gpgkey",
            key_path=keyring.replace(".gpg", ".asc"),
            source_path="/etc/apt/sources.list.d/nvidia-container-toolkit.list",
            source_text=f"deb [signed-by={keyring.replace('.gpg', '.asc')}] {toolkit}/stable/deb/amd64 /\n",
            stale=(
                "/etc/apt/sources.list.d/libnvidia-container.list",
                "/etc/apt/sources.list.d/nvidia-docker.list",
            ),
        ),
    }
