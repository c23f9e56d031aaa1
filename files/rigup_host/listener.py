"""The user that listens on an address, from the kernel's table of sockets."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from urllib.parse import urlsplit

LISTENING = "0A"


def is_of(url: str, pid: int) -> bool:
    """Return whether only the user of a process listens at the address and port of a URL.

    While an engine restarts, any local user can listen there and answer in its place.
    """
    parts = urlsplit(url)
    address = ipaddress.ip_address(parts.hostname or "")
    # Each word of four bytes is a number in the byte order of the machine.
    packed = address.packed
    words = [packed[start : start + 4][::-1].hex().upper() for start in range(0, len(packed), 4)]
    place = f"{''.join(words)}:{parts.port:04X}"
    table = Path("/proc/net/tcp6" if address.version == 6 else "/proc/net/tcp").read_text()
    rows = [line.split() for line in table.splitlines()[1:]]
    owners = {int(row[7]) for row in rows if row[1] == place and row[3] == LISTENING}
    try:
        return owners == {os.stat(f"/proc/{pid}").st_uid}
    except FileNotFoundError:
        return False
