"""The sockets that listen on an address, and whose they are, from the kernel's tables.

While an engine restarts, any local user can listen in its place, and so can another service of the engine's user. The
control group tells them apart: each unit and each container has its own.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from rigup_host import paths

PROC = paths.ROOT / "proc"
LISTENING = "0A"
UNIFIED = "0::"


class NoGroup(Exception):
    """The kernel does not keep a process apart from those of others; the message says why."""


def listening(url: str) -> dict[int, int]:
    """Return the sockets that listen at the address and port of a URL: the user of each by its inode (proc(5))."""
    parts = urlsplit(url)
    address = ipaddress.ip_address(parts.hostname or "")
    # Each word of four bytes is a number in the byte order of the machine.
    packed = address.packed
    words = [packed[start : start + 4][::-1].hex().upper() for start in range(0, len(packed), 4)]
    place = f"{''.join(words)}:{parts.port:04X}"
    table = (PROC / ("net/tcp6" if address.version == 6 else "net/tcp")).read_text()
    rows = [line.split() for line in table.splitlines()[1:]]
    return {int(row[9]): int(row[7]) for row in rows if row[1] == place and row[3] == LISTENING}


def group_of(pid: int) -> str:
    """Return the control group of a process. Raise NoGroup if it has none of its own, and OSError if it has ended."""
    lines = (PROC / str(pid) / "cgroup").read_text().splitlines()
    group = next((line.removeprefix(UNIFIED) for line in lines if line.startswith(UNIFIED)), "/")
    if group == "/":
        raise NoGroup(
            "the kernel does not keep the engine's processes apart from others (no cgroup v2), so anyone could answer "
            "in its place: remove systemd.unified_cgroup_hierarchy from the kernel's arguments and reboot"
        )
    return group


def are_held_in(group: str, sockets: Iterable[int]) -> bool:
    """Return whether processes in a control group hold all of these sockets, given by inode."""
    left = {f"socket:[{inode}]" for inode in sockets}
    for process in PROC.glob("[0-9]*"):
        # It may have ended, or be starting, when it hides what it has open.
        with suppress(OSError, NoGroup):
            if f"{group_of(int(process.name))}/".startswith(f"{group}/"):
                left -= _open_in(process)
        if not left:
            return True
    return False


def _open_in(process: Path) -> set[str]:
    found = set()
    for link in (process / "fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(os.readlink(link))
    return found
