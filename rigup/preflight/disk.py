"""Preflight's look at the disks: whether what is still to come finds its room where it will lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rigup.config.settings import Settings
from rigup.distros.driver import upstream
from rigup.host_config import USUAL_STORE, DockerStore, docker_store
from rigup.lock.packages import cuda_group, docker_group, driver_group
from rigup.plan.model import ENGINES
from rigup.preflight.snapshot import GIB, Case, amount

__all__ = ["disk", "disk_paths", "holds", "own_disk", "source"]

# An image on disk against its compressed size: unpacked about 2.2 times, and Docker 29's store keeps both.
IMAGE_FACTOR = 3.2
PROGRAMS, TOOLKIT = "/usr", "/usr/local"
# What packages need below them: driver and Docker, and the CUDA toolkit.
SYSTEM_BYTES = 4 * GIB
CUDA_BYTES = 10 * GIB
# torch, its CUDA libraries and the kernels of an engine that runs without a container, and their downloads.
VENV_BYTES = 24 * GIB
# What fetch.py leaves free where the store shares the disk with the system.
MARGIN = 2 * GIB


def disk_paths(settings: Settings, store: DockerStore = USUAL_STORE) -> list[str]:
    """The paths whose file systems matter."""
    return [PROGRAMS, TOOLKIT, ENGINES, settings.model_store, store.data, store.containerd]


def disk(case: Case) -> None:
    needs: dict[str, list[tuple[int, str]]] = {}
    for path, size, what in _needed_bytes(case):
        disk = case.facts.disks.get(path)
        if disk is None:
            case.problem("disk", f"no file system was found for {path}", "check what is mounted there")
            continue
        needs.setdefault(disk.mount, []).append((size, what))
    free = {disk.mount: disk.available for disk in case.facts.disks.values()}
    for mount, entries in needs.items():
        total = sum(size for size, _ in entries) + MARGIN
        if free[mount] < total:
            parts = ", ".join(f"{amount(size)} for {what}" for size, what in entries)
            case.problem(
                "disk",
                f"{mount} has {amount(free[mount])} free and needs {amount(total)}: {parts}, {amount(MARGIN)} spare",
                f"make {amount(total - free[mount])} of room, or mount a larger disk",
            )


def _needed_bytes(case: Case) -> list[tuple[str, int, str]]:
    """Path, bytes and purpose of everything that is not there yet."""
    needed: list[tuple[str, int, str]] = []
    for checkpoint in case.plan.checkpoints:
        missing = max(0, checkpoint.bytes - case.facts.stored.get(checkpoint.path, 0))
        # What an own disk has free is known once it is mounted; the download looks again.
        if missing and not _own_disk_to_mount(case):
            needed.append((case.settings.model_store, missing, f"checkpoint {checkpoint.repo}"))
    sizes = {endpoint.image or "": endpoint.image_bytes for endpoint in case.plan.endpoints}
    for image, tag in case.plan.images.items():
        if image not in case.facts.images:
            needed.append((_image_path(case), int(sizes[image] * IMAGE_FACTOR), f"image {tag}"))
    for venv in case.plan.venvs:
        if venv.path not in case.facts.venvs:
            needed.append((ENGINES, VENV_BYTES, ", ".join(venv.packages)))
    if case.missing(driver_group(case.settings), docker_group(case.settings)):
        needed.append((PROGRAMS, SYSTEM_BYTES, "driver and Docker"))
    cuda = cuda_group(case.settings)
    if cuda and case.missing(cuda):
        needed.append((TOOLKIT, CUDA_BYTES, cuda))
    return needed


def own_disk(case: Case) -> None:
    label, labels = case.settings.model_disk, case.facts.labels
    if label and label not in labels:
        case.problem(
            "disk",
            f"no file system has the label {label} (`model_disk`); there is {', '.join(sorted(labels)) or 'none'}",
            f"give it to the disk for the checkpoints, `e2label DEVICE {label}` for ext4, or check its cable",
        )


def _own_disk_to_mount(case: Case) -> bool:
    """Whether the store is still to be mounted."""
    disk = case.facts.disks.get(case.settings.model_store)
    return bool(case.settings.model_disk) and disk is not None and disk.mount != case.settings.model_store


def _image_path(case: Case) -> str:
    """Where images will lie: a fresh Docker 29 keeps them in containerd's directory, an older one in its own."""
    store = docker_store(case.facts.daemon, case.facts.containerd)
    installed = case.facts.installed.get("docker-ce")
    coming = case.lock.packages.get(case.distro or "", {}).get(docker_group(case.settings), {}).get("docker-ce")
    version = installed or coming
    fresh = version is not None and int(upstream(version).split(".")[0]) >= 29
    return store.containerd if (fresh if store.snapshotter is None else store.snapshotter) else store.data


def source(case: Case) -> None:
    # Once all is in the store, the disk may be carried away again.
    if not case.facts.source and case.checkpoints_to_come():
        case.problem(
            "source",
            f"{case.settings.model_source} (`model_source`) is no directory on the host",
            "mount the disk that it lies on, correct it, or leave it out: all comes from the hub then",
        )


def holds(places: Sequence[Mapping[str, int] | None], listing: Mapping[str, str]) -> bool:
    """Whether every published file is in one of these places, in its size; what is in it, the download verifies."""
    sizes = [(path, int(entry.partition(" ")[0])) for path, entry in listing.items()]
    return bool(sizes) and all(any(place and place.get(path) == size for place in places) for path, size in sizes)
