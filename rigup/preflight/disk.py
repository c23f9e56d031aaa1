"""Preflight's disk checks: whether everything that is still missing fits on the file system that it goes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
# What packages need below these paths: the driver and Docker, and the CUDA toolkit.
SYSTEM_BYTES = 4 * GIB
CUDA_BYTES = 10 * GIB
# The packages themselves, which apt-get keeps. Counted only if they are on another file system than the programs.
SYSTEM_ARCHIVE_BYTES = 1 * GIB
CUDA_ARCHIVE_BYTES = 5 * GIB
# torch, its CUDA libraries, the kernels of an engine that runs without a container, and their downloads.
VENV_BYTES = 24 * GIB
# What the download leaves free if the store shares the disk with the system. A file system of boot files or of packages
# needs nothing to spare.
MARGIN = 2 * GIB


def disk_paths(settings: Settings, store: DockerStore = USUAL_STORE) -> list[str]:
    """Return the paths whose file systems are checked."""
    return [PROGRAMS, TOOLKIT, ENGINES, settings.model_store, store.data, store.containerd, BOOT, ARCHIVES]


def disk(host: HostCheck) -> None:
    """Check the free space of every file system that a deploy writes to."""
    disks = host.facts.disk.disks
    needs: dict[str, list[tuple[int, str]]] = {}
    read_only: dict[str, list[str]] = {}
    spare: dict[str, int] = {}
    for path, count, what in _needed_bytes(host):
        disk = disks.get(path)
        if disk is None:
            host.problem("disk-missing", f"no file system was found for {path}", "check what is mounted there")
            continue
        if disk.read_only:
            read_only.setdefault(disk.mount, []).append(what)
        else:
            needs.setdefault(disk.mount, []).append((count, what))
            spare[disk.mount] = max(spare.get(disk.mount, 0), 0 if path in (BOOT, ARCHIVES) else MARGIN)
    for mount, purposes in read_only.items():
        host.problem(
            "disk-read-only",
            f"{mount} is mounted read-only, and {', '.join(purposes)} must be written there",
            f"run `mount -o remount,rw {mount}` there and correct /etc/fstab, or choose another directory "
            "(`model_store`; Docker's `data-root`)",
        )
    free = {disk.mount: disk.available for disk in disks.values()}
    for mount, entries in needs.items():
        total = sum(count for count, _ in entries) + spare[mount]
        if free[mount] < total:
            parts = ", ".join(f"{size(count, binary=True)} for {what}" for count, what in entries)
            parts += f", {size(spare[mount], binary=True)} spare" if spare[mount] else ""
            host.problem(
                "disk-space",
                f"{mount} has {size(free[mount], binary=True)} free and needs {size(total, binary=True)}: {parts}",
                f"free {size(total - free[mount], binary=True)} there, or mount a larger disk"
                + ("; `apt-get autoremove --purge` removes old kernels" if mount == BOOT else ""),
            )


def _needed_bytes(host: HostCheck) -> list[tuple[str, int, str]]:
    """Return path, bytes and purpose of everything that is still missing."""
    needed: list[tuple[str, int, str]] = []
    for checkpoint in host.plan.checkpoints:
        missing = max(0, checkpoint.bytes - host.facts.disk.stored_bytes.get(checkpoint.path, 0))
        # The free space of the store's own disk is known only once it is mounted; the download checks it then.
        if missing and not _must_mount_own_disk(host):
            needed.append((host.settings.model_store, missing, f"checkpoint {checkpoint.repo}"))
    for image, tag in host.plan.images.items():
        if image not in host.facts.software.images:
            needed.append((_image_path(host), int(host.plan.image_bytes[image] * IMAGE_FACTOR), f"image {tag}"))
    for venv in host.plan.venvs:
        if venv.path not in host.facts.software.venvs:
            needed.append((ENGINES, VENV_BYTES, ", ".join(venv.packages)))
    if host.lacks_packages(driver_group(host.settings), docker_group(host.settings)):
        needed.append((PROGRAMS, SYSTEM_BYTES, "driver and Docker"))
        needed += _archives(host, SYSTEM_ARCHIVE_BYTES, "the packages of driver and Docker")
    cuda = cuda_group(host.settings)
    if cuda and host.lacks_packages(cuda):
        needed.append((TOOLKIT, CUDA_BYTES, cuda))
        needed += _archives(host, CUDA_ARCHIVE_BYTES, f"the packages of {cuda}")
    initrds = host.facts.disk.initrd_bytes
    if initrds and host.lacks_packages(driver_group(host.settings)):
        # The new ones are written one after the other, each before it replaces the old one (update-initramfs(8)).
        needed.append((BOOT, max(initrds.values()), "a new initramfs"))
    return needed


def _archives(host: HostCheck, count: int, what: str) -> list[tuple[str, int, str]]:
    """Return what downloaded packages need beside the programs; nothing if they share a file system."""
    mounts = [disk.mount for path in (PROGRAMS, ARCHIVES) if (disk := host.facts.disk.disks.get(path))]
    return [] if len(set(mounts)) < 2 else [(ARCHIVES, count, what)]


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
    store = docker_store(host.facts.software.daemon_json, host.facts.software.containerd_toml)
    installed = host.facts.software.installed.get("docker-ce")
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
