"""Additional disks of a host: file systems in image files, which survive a reset of the host.

The host finds them where udev puts a real disk: `/dev/disk/by-label/LABEL`.
"""

import subprocess
from pathlib import Path


def make(host: Path, label: str, size: int) -> None:
    """Add an empty disk of `size` bytes to the host with this directory; it appears at the next boot."""
    path = _directory(host) / f"{label}.img"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    _run("mkfs.ext4", "-q", "-L", label, str(path))


def attach(host: Path) -> dict[str, str]:
    """Attach the host's disks to loop devices; return the devices by label."""
    found = {}
    for path in sorted(_directory(host).glob("*.img")):
        found[path.stem] = _device(path) or _run("losetup", "--find", "--show", str(path))
    return found


def detach(host: Path) -> None:
    """Undo `attach`."""
    for path in _directory(host).glob("*.img"):
        if device := _device(path):
            _run("losetup", "--detach", device)


def _directory(host: Path) -> Path:
    return host / "disks"


def _device(path: Path) -> str:
    return _run("losetup", "--associated", str(path)).partition(":")[0]


def _run(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
