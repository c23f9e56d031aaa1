"""What the stand-ins of NVIDIA's container toolkit share: which GPUs a container gets, by which files."""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(os.environ.get("LAB_ROOT", "/"))
HARDWARE = Path("/usr/lib/lab-hardware/lab.json")
MODULE_VERSION = Path("/proc/driver/nvidia/version")
LIBRARIES = Path("/usr/lib/x86_64-linux-gnu/nvidia")
SMI = Path("/usr/bin/nvidia-smi")
DAEMON_CONFIG = Path("/etc/docker/daemon.json")
GENERATED = Path("/run/systemd/generator")
CONTAINER = Path("/run/lab-gpu")
"""Where a container finds the simulated hardware: its own /proc says nothing about the host's driver."""


class Mount(NamedTuple):
    """A read-only bind mount of a host's file into a container."""

    host: Path
    container: Path


class DriverError(Exception):
    """No driver to give to a container; the message is NVML's name for why."""


def on_host(path: Path) -> Path:
    """The path below the root that the stand-ins work on."""
    return ROOT / path.relative_to("/")


def module_version() -> str:
    """The loaded kernel module's version. Raises DriverError while none is loaded."""
    try:
        text = on_host(MODULE_VERSION).read_text()
    except FileNotFoundError:
        raise DriverError("ERROR_DRIVER_NOT_LOADED") from None
    match = re.search(r"x86_64\s+(\S+)", text)
    if match is None:
        raise DriverError("ERROR_UNKNOWN")
    return match[1]


def library() -> Path:
    """The driver's management library. Raises DriverError when there is none or it is not of the module's version."""
    found = sorted(on_host(LIBRARIES).glob("libnvidia-ml.so.*.*"))
    if not found:
        raise DriverError("ERROR_LIBRARY_NOT_FOUND")
    if found[-1].name != f"libnvidia-ml.so.{module_version()}":
        raise DriverError("ERROR_LIB_RM_VERSION_MISMATCH")
    return LIBRARIES / found[-1].name


def gpus() -> list[dict[str, Any]]:
    """The GPUs that the driver has. Raises DriverError without a working driver."""
    library()
    return list(json.loads(on_host(HARDWARE).read_text())["gpus"])


def common_mounts() -> list[Mount]:
    """What every container with a GPU gets. Raises DriverError without a working driver."""
    shared = library()
    return [
        Mount(SMI, SMI),
        Mount(shared, shared),
        Mount(HARDWARE, CONTAINER / "lab.json"),
        Mount(MODULE_VERSION, CONTAINER / "version"),
    ]


def device_cgroup_mounts() -> list[Mount]:
    """What lets a container lose its GPUs at a daemon-reload, as it does where systemd manages its device cgroup.

    The hook adds devices behind systemd's back, so they are gone when systemd writes the cgroup anew; with Docker's
    cgroupfs driver there is nothing to lose (NVIDIA/nvidia-container-toolkit issue 48).
    """
    try:
        options = json.loads(on_host(DAEMON_CONFIG).read_text()).get("exec-opts", [])
    except FileNotFoundError:
        options = []
    if "native.cgroupdriver=cgroupfs" in options or not (on_host(GENERATED) / "lab-device-cgroup").exists():
        return []
    return [Mount(GENERATED, CONTAINER / "device-cgroup")]


def gpu_mount(gpu: dict[str, Any]) -> Mount:
    """What makes one GPU visible."""
    return Mount(HARDWARE, CONTAINER / "gpus" / gpu["uuid"])


def select(wanted: str) -> list[dict[str, Any]]:
    """The GPUs that a value of NVIDIA_VISIBLE_DEVICES names: `all`, or indices and UUIDs; none for `void` and empty.

    Raises DriverError without a working driver, and for a GPU that is not there.
    """
    if wanted in ("", "void", "none"):
        return []
    present = gpus()
    if wanted == "all":
        return present
    return [_one(word, present) for word in wanted.split(",")]


def _one(word: str, present: Iterable[dict[str, Any]]) -> dict[str, Any]:
    for gpu in present:
        if word in (str(gpu["index"]), gpu["uuid"]):
            return gpu
    raise DriverError(f"{word}: unknown device")


def visible_devices(environment: Iterable[str]) -> str:
    """NVIDIA_VISIBLE_DEVICES among a container's `NAME=value` entries; the last one counts, empty without one."""
    values = [entry.partition("=")[2] for entry in environment if entry.startswith("NVIDIA_VISIBLE_DEVICES=")]
    return values[-1] if values else ""
