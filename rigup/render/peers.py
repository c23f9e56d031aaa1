"""Render the configuration of the rsync daemon that serves a host's model store to its peers. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rigup.errors import RigupError

__all__ = ["daemon_config"]


def daemon_config(store: str, port: int, allowed: Sequence[str]) -> str:
    """Return the configuration of the rsync daemon that serves the store, read-only, to these addresses only."""
    for value in (store, *allowed):
        if not re.fullmatch(r"[A-Za-z0-9_./+@=:-]+", value):
            raise RigupError(f"{value!r} cannot be written to rsync's configuration", "correct model_store or address")
    return f"""\
# Written by rigup; the next deploy undoes changes made here.
port = {port}
use chroot = no
read only = yes
list = no
reverse lookup = no
hosts allow = {" ".join(sorted(allowed))}
hosts deny = *
timeout = 60
[models]
path = {store}
exclude = .arriving
"""
