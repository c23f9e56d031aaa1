"""A limit of the machine beneath that a handful of hosts uses up: raised while the lab is there, then put back."""

import contextlib
from pathlib import Path

from lab.settings import STATE

_INSTANCES = Path("/proc/sys/fs/inotify/max_user_instances")
_BEFORE = STATE / "run" / "inotify-instances"

_ENOUGH = 1024
"""All hosts are root's to the kernel and share its inotify instances: Linux allows 128, a host that serves takes 15."""


def lift() -> None:
    """Allow as many inotify instances as many hosts need. Where the limit cannot be written it stays."""
    before = int(_INSTANCES.read_text())
    if before >= _ENOUGH:
        return
    with contextlib.suppress(OSError):
        _INSTANCES.write_text(str(_ENOUGH))
        _BEFORE.write_text(str(before))


def restore() -> None:
    """Put back what `lift` found, unless somebody has changed it since."""
    if _BEFORE.exists() and int(_INSTANCES.read_text()) == _ENOUGH:
        _INSTANCES.write_text(_BEFORE.read_text())
