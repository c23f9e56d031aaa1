"""Disks of a host beside the one it boots from: file systems in files, which stay when the host is made bare again.

A host finds them where udev puts a real disk's: `/dev/disk/by-label/LABEL`.
"""

import subprocess
from pathlib import Path


def make(host: Path, label: str, size: int) -> None:
    """Add an empty disk of `size` bytes to the host in this directory; it is there from the next boot on."""
    path = _place(host) / f"{label}.img"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    _run("mkfs.ext4", "-q", "-L", label, str(path))


def attach(host: Path) -> dict[str, str]:
    """Make the host's disks block devices of this machine; returns the devices by label."""
    found = {}
    for path in sorted(_place(host).glob("*.img")):
        found[path.stem] = _device(path) or _run("losetup", "--find", "--show", str(path))
    return found


def detach(host: Path) -> None:
    """Undo `attach`."""
    for path in _place(host).glob("*.img"):
        if device := _device(path):
            _run("losetup", "--detach", device)


def _place(host: Path) -> Path:
    return host / "disks"


def _device(path: Path) -> str:
    return _run("losetup", "--associated", str(path)).partition(":")[0]


def _run(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
