"""A control group per lab host: it tells the host's processes from all others, and kills all of them."""

import contextlib
import os
import time
from pathlib import Path

from lab.settings import CGROUP

_MOUNT = Path("/sys/fs/cgroup")

_SHADOW = _MOUNT / "systemd"
"""Version 1's groups, in the hybrid layout: nspawn creates the same groups there and leaves them behind."""


def _unified() -> Path:
    # With both versions mounted (systemd's "hybrid" layout), version 2 is a subdirectory.
    hybrid = _MOUNT / "unified"
    return hybrid if (hybrid / "cgroup.procs").exists() else _MOUNT


class Cgroup:
    """The control group of one host. nspawn puts the host's processes into `payload` below it."""

    def __init__(self, host: str) -> None:
        self.parent = _unified() / CGROUP
        self.path = self.parent / host

    def create(self) -> None:
        """Create the group with every controller that the machine below delegates."""
        for group in (self.parent, self.path):
            group.mkdir(exist_ok=True)
            for controller in (group.parent / "cgroup.controllers").read_text().split():
                # In the hybrid layout version 1 owns the controllers; a host works without them.
                with contextlib.suppress(OSError):
                    (group.parent / "cgroup.subtree_control").write_text(f"+{controller}")

    def join(self) -> None:
        """Move the calling process into the group."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def init_pid(self) -> int | None:
        """Return the process id of the host's init on the control machine; None while the host is off."""
        for group in ("payload/init.scope", "payload"):
            with contextlib.suppress(OSError):
                for pid in (self.path / group / "cgroup.procs").read_text().split():
                    if _is_init(int(pid)):
                        return int(pid)
        return None

    def populated(self) -> bool:
        """Whether any process is in the group or its children."""
        try:
            return "populated 1" in (self.path / "cgroup.events").read_text()
        except FileNotFoundError:
            return False

    def kill(self, timeout: float = 10.0) -> None:
        """Kill every process in the group at once, as a power cut does; return when all are gone.

        Raises TimeoutError when some still exist after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while self.populated():
            if time.monotonic() > deadline:
                raise TimeoutError(f"processes in {self.path} do not exit")
            with contextlib.suppress(FileNotFoundError):
                (self.path / "cgroup.kill").write_text("1")
            time.sleep(0.02)

    def remove(self) -> None:
        """Kill all processes and remove the group, and the common parent after the last host."""
        self.kill()
        _remove_groups(self.path)
        with contextlib.suppress(OSError):
            self.parent.rmdir()
        with contextlib.suppress(OSError):
            _remove_groups(_SHADOW / CGROUP / self.path.name)
            (_SHADOW / CGROUP).rmdir()


def _remove_groups(path: Path) -> None:
    """Remove a group without processes, and its children."""
    for group in sorted(path.rglob("*"), reverse=True):
        if group.is_dir():
            group.rmdir()
    with contextlib.suppress(FileNotFoundError):
        path.rmdir()


def _is_init(pid: int) -> bool:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return line.split()[-1] == "1"
    return False
