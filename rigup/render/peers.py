"""Render the configuration of the rsync daemon that serves a host's checkpoints to its peers. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from rigup.errors import RigupError
from rigup.paths import HOST_PROGRAM, PEERS_RUNTIME

# A download copies four files of a peer at once and reads its report; several downloads may run.
CONNECTIONS_PER_PEER = 16


def connections_for(allowed: Sequence[str]) -> int:
    """Return how many connections the daemon serves at the same time."""
    return CONNECTIONS_PER_PEER * len(allowed)


def daemon_config(
    store: str,
    port: int,
    allowed: Sequence[str],
    checkpoints: Sequence[str],
    runtime: str = PEERS_RUNTIME,
    program: str = HOST_PROGRAM,
) -> str:
    """Return the configuration of the rsync daemon that serves these checkpoints of the store, read-only.

    `allowed` are the peers' IP addresses: the daemon can resolve no name. `checkpoints` are directories below `store`.
    Only what the downloader writes is served: files that it has verified, which the host program `program` checks for
    each request, and its report. The rest of the store is not.
    """
    places = [PurePosixPath(each).relative_to(store) for each in checkpoints]
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
[reports]
path = {store}
include = {_rules(places, "{}.shared.json")}
exclude = *
[models]
path = {store}
pre-xfer exec = {program} may-serve
filter = - .arriving
include = {_rules(places, "{}/***", ".{}.incoming/***")}
exclude = *
"""


def _rules(places: Iterable[PurePosixPath], *forms: str) -> str:
    """Return the rules that let in, beside each revision of a checkpoint, the names of these forms."""
    rules = set()
    for place in places:
        owner, name, revision = place.parts
        rules |= {f"/{owner}/", f"/{owner}/{name}/"} | {f"/{owner}/{name}/{form.format(revision)}" for form in forms}
    return " ".join(sorted(rules))
