"""The unit that mounts a file system of its own, by its label, where the checkpoints lie. Pure."""

from __future__ import annotations

import re

__all__ = ["mount_text", "mount_unit"]


def mount_unit(path: str) -> str:
    """The unit's name, which systemd wants to be that of the place (systemd.unit(5), "String escaping")."""
    escaped = re.sub(r"[^A-Za-z0-9:_./]", lambda found: f"\\x{ord(found[0]):02x}", path.strip("/"))
    return f"{escaped.replace('/', '-')}.mount"


def mount_text(path: str, label: str) -> str:
    """The unit. A disk that is missing does not keep the host from booting: what needs the store waits, and says so."""
    return f"""\
# Written by rigup; the next deploy undoes changes made here.
[Unit]
Description=rigup: the disk that holds the checkpoints

[Mount]
What=/dev/disk/by-label/{label}
Where={path}
Options=noatime

[Install]
WantedBy=multi-user.target
"""
