"""Render the configuration of the rsync daemon that serves a host's checkpoints to its peers. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from rigup.errors import RigupError
from rigup.paths import PEERS_RUNTIME

# A download copies four files of a peer at once and reads its report; several downloads may run.
CONNECTIONS_PER_PEER = 16


def connections_for(allowed: Sequence[str]) -> int:
    """Return how many connections the daemon serves at the same time."""
    return CONNECTIONS_PER_PEER * len(allowed)


def daemon_config(
    store: str, port: int, allowed: Sequence[str], checkpoints: Sequence[str], runtime: str = PEERS_RUNTIME
) -> str:
    """Return the configuration of the rsync daemon that serves these checkpoints of the store, read-only.

    `allowed` are the peers' IP addresses: the daemon can resolve no name. `checkpoints` are directories below `store`.
    Only what the downloader writes is served: files that it has verified, and its report; the rest of the store is not.
    """
    for value in (store, runtime, *allowed, *checkpoints):
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
max connections = {connections_for(allowed)}
lock file = {runtime}/lock
[models]
path = {store}
filter = - .arriving
include = {" ".join(sorted({rule for each in checkpoints for rule in _rules(PurePosixPath(each), store)}))}
exclude = *
"""


def _rules(checkpoint: PurePosixPath, store: str) -> list[str]:
    owner, name, revision = checkpoint.relative_to(store).parts
    place = f"/{owner}/{name}"
    return [
        f"/{owner}/",
        f"{place}/",
        f"{place}/{revision}.shared.json",
        f"{place}/{revision}/***",
        f"{place}/.{revision}.incoming/***",
    ]
