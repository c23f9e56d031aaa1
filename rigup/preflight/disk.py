"""Preflight's disk checks: whether everything that is still missing fits on the file system that it goes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rigup.config.settings import Settings
from rigup.distros.driver import upstream
from rigup.host_config import USUAL_STORE, DockerStore, docker_store
from rigup.lock.packages import cuda_group, docker_group, driver_group
from rigup.paths import ENGINES
from rigup.preflight.snapshot import GIB, HostCheck
from rigup.text import size

# The size of an image on disk relative to its compressed size: about 2.2 times unpacked, and Docker 29's store keeps
# both.
IMAGE_FACTOR = 3.2
PROGRAMS, TOOLKIT, BOOT, ARCHIVES = "/usr", "/usr/local", "/boot", "/var/cache/apt/archives"
BUILDS = "/var/lib/dkms"
# What packages need below these paths: the driver and Docker, and the CUDA toolkit.
SYSTEM_BYTES = 4 * GIB
CUDA_BYTES = 10 * GIB
# The packages themselves, which apt-get keeps.
SYSTEM_ARCHIVE_BYTES = 1 * GIB
CUDA_ARCHIVE_BYTES = 5 * GIB
# The driver's objects while DKMS builds them, its modules for each kernel, and apt's lists, all below /var/lib.
BUILD_BYTES = 1 * GIB
# torch, its CUDA libraries, the kernels of an engine that runs without a container, and their downloads.
VENV_BYTES = 24 * GIB
# About how many files these have: kernel headers alone bring 20 000.
IMAGE_FILES, VENV_FILES, SYSTEM_FILES, CUDA_FILES, BUILD_FILES = 150_000, 60_000, 40_000, 20_000, 5_000
# What the download leaves free if the store shares the disk with the system. A file system of boot files or of packages
# needs nothing to spare.
MARGIN = 2 * GIB


@dataclass(frozen=True)
class Need:
    """What is still missing: about how many bytes and files, where, and what they are."""

    path: str
    bytes: int
    files: int
    what: str


def disk_paths(settings: Settings, store: DockerStore = USUAL_STORE) -> list[str]:
    """Return the paths whose file systems are checked."""
    return [PROGRAMS, TOOLKIT, ENGINES, settings.model_store, store.data, store.containerd, BOOT, ARCHIVES, BUILDS]


def disk(host: HostCheck) -> None:
    """Check the free space of every file system that a deploy writes to."""
    disks = host.facts.disk.disks
    needs: dict[str, list[Need]] = {}
    read_only: dict[str, list[str]] = {}
    for need in _needs(host):
        disk = disks.get(need.path)
        if disk is None:
            host.problem("disk-missing", f"no file system was found for {need.path}", "check what is mounted there")
        elif disk.read_only:
            read_only.setdefault(disk.mount, []).append(need.what)
        else:
            needs.setdefault(disk.mount, []).append(need)
    for mount, purposes in read_only.items():
        host.problem(
            "disk-read-only",
            f"{mount} is mounted read-only, and {', '.join(purposes)} must be written there",
            f"run `mount -o remount,rw {mount}` there and correct /etc/fstab, or choose another directory "
            "(`model_store`; Docker's `data-root`)",
        )
    free = {disk.mount: disk for disk in disks.values()}
    for mount, entries in needs.items():
        _space(host, mount, free[mount].available, entries)
        _inodes(host, mount, free[mount].files, entries)


def _space(host: HostCheck, mount: str, free: int, needs: Sequence[Need]) -> None:
    spare = 0 if all(need.path in (BOOT, ARCHIVES) for need in needs) else MARGIN
    total = sum(need.bytes for need in needs) + spare
    if free < total:
        parts = ", ".join(f"{size(need.bytes, binary=True)} for {need.what}" for need in needs)
        parts += f", {size(spare, binary=True)} spare" if spare else ""
        host.problem(
            "disk-space",
            f"{mount} has {size(free, binary=True)} free and needs {size(total, binary=True)}: {parts}",
            f"free {size(total - free, binary=True)} there, or mount a larger disk"
            + ("; `apt-get autoremove --purge` removes old kernels" if mount == BOOT else ""),
        )


def _inodes(host: HostCheck, mount: str, free: int | None, needs: Sequence[Need]) -> None:
    """Check the free inodes: without one a file cannot be created, whatever space is left."""
    total = sum(need.files for need in needs)
    if free is not None and free < total:
        host.problem(
            "disk-inodes",
            f"{mount} can have {free} more files (`df -i`) and needs about {total}: "
            f"{', '.join(need.what for need in needs)}",
            f"delete small files there (`du --inodes -x {mount} | sort -n | tail` finds them), or mount another disk",
        )


def _needs(host: HostCheck) -> list[Need]:
    """Return what is still missing."""
    needed: list[Need] = []
    for checkpoint in host.plan.checkpoints:
        missing = max(0, checkpoint.bytes - host.facts.disk.stored_bytes.get(checkpoint.path, 0))
        # The free space of the store's own disk is known only once it is mounted; the download checks it then.
        if missing and not _must_mount_own_disk(host):
            files = len(checkpoint.listing)
            needed.append(Need(host.settings.model_store, missing, files, f"checkpoint {checkpoint.repo}"))
    for image, tag in host.plan.images.items():
        if image not in host.facts.software.images:
            count = int(host.plan.image_bytes[image] * IMAGE_FACTOR)
            needed.append(Need(_image_path(host), count, IMAGE_FILES, f"image {tag}"))
    for venv in host.plan.venvs:
        if venv.path not in host.facts.software.venvs:
            needed.append(Need(ENGINES, VENV_BYTES, VENV_FILES, ", ".join(venv.packages)))
    if host.lacks_packages(driver_group(host.settings), docker_group(host.settings)):
        needed.append(Need(PROGRAMS, SYSTEM_BYTES, SYSTEM_FILES, "driver and Docker"))
        needed.append(Need(ARCHIVES, SYSTEM_ARCHIVE_BYTES, 0, "the packages of driver and Docker"))
    cuda = cuda_group(host.settings)
    if cuda and host.lacks_packages(cuda):
        needed.append(Need(TOOLKIT, CUDA_BYTES, CUDA_FILES, cuda))
        needed.append(Need(ARCHIVES, CUDA_ARCHIVE_BYTES, 0, f"the packages of {cuda}"))
    if host.lacks_packages(driver_group(host.settings)):
        needed.append(Need(BUILDS, BUILD_BYTES, BUILD_FILES, "what DKMS builds"))
        # The new ones are written one after the other, each before it replaces the old one (update-initramfs(8)).
        if initrds := host.facts.disk.initrd_bytes:
            needed.append(Need(BOOT, max(initrds.values()), 1, "a new initramfs"))
    return needed


def own_disk(host: HostCheck) -> None:
    """Check that the disk of the `model_disk` setting exists."""
    label, labels = host.settings.model_disk, host.facts.disk.labels
    if label and label not in labels:
        host.problem(
            "disk-label",
            f"no file system has the label {label} (`model_disk`); there is {', '.join(sorted(labels)) or 'none'}",
            f"label the disk for the checkpoints, `e2label DEVICE {label}` for ext4, or check its cable",
        )


def _must_mount_own_disk(host: HostCheck) -> bool:
    """Return whether the store's own disk is not mounted yet."""
    disk = host.facts.disk.disks.get(host.settings.model_store)
    return bool(host.settings.model_disk) and disk is not None and disk.mount != host.settings.model_store


def _image_path(host: HostCheck) -> str:
    """Return where images go: a new Docker 29 keeps them in containerd's directory, an older one in its own."""
    software = host.facts.software
    store = docker_store(software.daemon_json, software.containerd_toml, software.dockerd_flags)
    installed = software.installed.get("docker-ce")
    locked = host.lock.packages.get(host.distro or "", {}).get(docker_group(host.settings), {}).get("docker-ce")
    version = installed or locked
    new = version is not None and int(upstream(version).split(".")[0]) >= 29
    return store.containerd if (new if store.snapshotter is None else store.snapshotter) else store.data


def source(host: HostCheck) -> None:
    """Check that the directory of the `model_source` setting exists while a checkpoint is missing."""
    # Once every checkpoint is in the store, the disk may be taken away.
    if not host.facts.disk.has_model_source and host.missing_checkpoints():
        host.problem(
            "disk-source",
            f"{host.settings.model_source} (`model_source`) is not a directory on the host",
            "mount the disk that holds it, correct the path, or remove the setting to download everything from the hub",
        )


def has_all_files(directories: Sequence[Mapping[str, int] | None], listing: Mapping[str, str]) -> bool:
    """Return whether every published file is in one of the directories with its size; the download verifies content.

    `directories` map file names to sizes in bytes, or are None if there is no directory. `listing` has
    `SIZE DIGEST` by file name.
    """
    sizes = [(path, int(entry.partition(" ")[0])) for path, entry in listing.items()]
    return bool(sizes) and all(
        any(files and files.get(path) == count for files in directories) for path, count in sizes
    )
