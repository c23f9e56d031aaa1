"""A control group for each lab host: how its processes are told from all others, and ended for certain."""

import contextlib
import os
import time
from pathlib import Path

from lab.settings import CGROUP

_MOUNT = Path("/sys/fs/cgroup")

_SHADOW = _MOUNT / "systemd"
"""Version 1's, in the hybrid layout: nspawn makes the same groups there, and leaves them."""


def _unified() -> Path:
    # With both versions mounted (systemd's "hybrid" layout) version 2 is below.
    hybrid = _MOUNT / "unified"
    return hybrid if (hybrid / "cgroup.procs").exists() else _MOUNT


class Cgroup:
    """The control group of one host. nspawn puts the host's processes into `payload` below it."""

    def __init__(self, host: str) -> None:
        self.parent = _unified() / CGROUP
        self.path = self.parent / host

    def create(self) -> None:
        """Make the group, with the controllers that the machine below hands out; those it does not are left out."""
        for group in (self.parent, self.path):
            group.mkdir(exist_ok=True)
            for controller in (group.parent / "cgroup.controllers").read_text().split():
                # In the hybrid layout version 1 holds the controllers; a host without them works all the same.
                with contextlib.suppress(OSError):
                    (group.parent / "cgroup.subtree_control").write_text(f"+{controller}")

    def join(self) -> None:
        """Move the calling process into the group."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def init_pid(self) -> int | None:
        """The host's process 1, as numbered on the control machine; None while it does not run."""
        for group in ("payload/init.scope", "payload"):
            with contextlib.suppress(OSError):
                for pid in (self.path / group / "cgroup.procs").read_text().split():
                    if _is_init(int(pid)):
                        return int(pid)
        return None

    def populated(self) -> bool:
        """Whether any process is in the group or below."""
        try:
            return "populated 1" in (self.path / "cgroup.events").read_text()
        except FileNotFoundError:
            return False

    def kill(self, timeout: float = 10.0) -> None:
        """End every process in the group at once, as a power cut does; returns when all are gone.

        Raises TimeoutError when some are still there after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while self.populated():
            if time.monotonic() > deadline:
                raise TimeoutError(f"processes in {self.path} do not end")
            with contextlib.suppress(FileNotFoundError):
                (self.path / "cgroup.kill").write_text("1")
            time.sleep(0.02)

    def remove(self) -> None:
        """Kill what runs and remove the group; the common parent too when this was the last host."""
        self.kill()
        _remove_groups(self.path)
        with contextlib.suppress(OSError):
            self.parent.rmdir()
        with contextlib.suppress(OSError):
            _remove_groups(_SHADOW / CGROUP / self.path.name)
            (_SHADOW / CGROUP).rmdir()


def _remove_groups(path: Path) -> None:
    """Remove a group without processes, and those below."""
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
