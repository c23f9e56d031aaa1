"""Render the configuration of the rsync daemon that serves a host's model store to its peers. Pure."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["daemon_config"]


def daemon_config(store: str, port: int, allowed: Sequence[str]) -> str:
    """Return the configuration of the rsync daemon that serves the store, read-only, to these addresses only."""
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
