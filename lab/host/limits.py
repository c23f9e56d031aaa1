"""A limit of the machine below that a few hosts exhaust: raised while the lab exists, restored afterwards."""

import contextlib
from pathlib import Path

from lab.settings import STATE

_INSTANCES = Path("/proc/sys/fs/inotify/max_user_instances")
_BEFORE = STATE / "run" / "inotify-instances"

_ENOUGH = 1024
"""All hosts share root's inotify instances: Linux allows 128 by default, a serving host uses 15."""


def lift() -> None:
    """Raise the limit of inotify instances, if this process may."""
    before = int(_INSTANCES.read_text())
    if before >= _ENOUGH:
        return
    with contextlib.suppress(OSError):
        _INSTANCES.write_text(str(_ENOUGH))
        _BEFORE.write_text(str(before))


def restore() -> None:
    """Restore the limit that `lift` found, unless someone has changed it since."""
    if _BEFORE.exists() and int(_INSTANCES.read_text()) == _ENOUGH:
        _INSTANCES.write_text(_BEFORE.read_text())
