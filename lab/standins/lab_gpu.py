"""Shared code of the stand-ins of NVIDIA's container toolkit: which GPUs a container gets, and as which files."""

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
"""Where a container finds the simulated hardware: its own /proc does not show the host's driver."""


class Mount(NamedTuple):
    """A read-only bind mount of a host's file into a container."""

    host: Path
    container: Path


class DriverError(Exception):
    """No usable driver for a container; the message is NVML's error name."""


def on_host(path: Path) -> Path:
    """Return the path below the root that the stand-ins work on."""
    return ROOT / path.relative_to("/")


def module_version() -> str:
    """Return the loaded kernel module's version. Raises DriverError without one."""
    try:
        text = on_host(MODULE_VERSION).read_text()
    except FileNotFoundError:
        raise DriverError("ERROR_DRIVER_NOT_LOADED") from None
    match = re.search(r"x86_64\s+(\S+)", text)
    if match is None:
        raise DriverError("ERROR_UNKNOWN")
    return match[1]


def library() -> Path:
    """Return the driver's management library. Raises DriverError unless one of the module's version is installed."""
    found = sorted(on_host(LIBRARIES).glob("libnvidia-ml.so.*.*"))
    if not found:
        raise DriverError("ERROR_LIBRARY_NOT_FOUND")
    if found[-1].name != f"libnvidia-ml.so.{module_version()}":
        raise DriverError("ERROR_LIB_RM_VERSION_MISMATCH")
    return LIBRARIES / found[-1].name


def gpus() -> list[dict[str, Any]]:
    """Return the driver's GPUs. Raises DriverError without a working driver."""
    library()
    return list(json.loads(on_host(HARDWARE).read_text())["gpus"])


def common_mounts() -> list[Mount]:
    """Return the mounts of every container with a GPU. Raises DriverError without a working driver."""
    shared = library()
    return [
        Mount(SMI, SMI),
        Mount(shared, shared),
        Mount(HARDWARE, CONTAINER / "lab.json"),
        Mount(MODULE_VERSION, CONTAINER / "version"),
    ]


def device_cgroup_mounts() -> list[Mount]:
    """Return the mount by which a container loses its GPUs at a daemon-reload, as if systemd managed its device cgroup.

    The hook adds devices without systemd, so they are gone when systemd rewrites the cgroup; with Docker's cgroupfs
    driver this cannot happen (NVIDIA/nvidia-container-toolkit issue 48).
    """
    try:
        options = json.loads(on_host(DAEMON_CONFIG).read_text()).get("exec-opts", [])
    except FileNotFoundError:
        options = []
    if "native.cgroupdriver=cgroupfs" in options or not (on_host(GENERATED) / "lab-device-cgroup").exists():
        return []
    return [Mount(GENERATED, CONTAINER / "device-cgroup")]


def gpu_mount(gpu: dict[str, Any]) -> Mount:
    """Return the mount that makes one GPU visible."""
    return Mount(HARDWARE, CONTAINER / "gpus" / gpu["uuid"])


def select(wanted: str) -> list[dict[str, Any]]:
    """Return the GPUs in a value of NVIDIA_VISIBLE_DEVICES: `all`, indices and UUIDs, or none for `void` and empty.

    Raises DriverError without a working driver and for an unknown GPU.
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
    """Return NVIDIA_VISIBLE_DEVICES of a container's `NAME=value` entries; the last one wins, empty without one."""
    values = [entry.partition("=")[2] for entry in environment if entry.startswith("NVIDIA_VISIBLE_DEVICES=")]
    return values[-1] if values else ""
