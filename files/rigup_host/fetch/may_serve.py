"""Decide whether the rsync daemon may serve what a peer asks for: only what this machine has verified.

The daemon runs this before each transfer (rsyncd.conf(5), `pre-xfer exec`), with the store and the request in the
environment. A directory that was put into the store by hand, or changed since it was verified, is refused; the daemon's
own list names checkpoints of the plan only.

Exit status: 0 serve, 1 refuse; the peer receives the reason.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from itertools import count, takewhile
from pathlib import Path

from rigup_host.fetch.store import REVISION, Store

STAGING = re.compile(rf"\.({REVISION.pattern})\.incoming")


class Refused(Exception):
    """The request must not be served."""


def main(argv: list[str]) -> int:
    """Decide; return the exit status."""
    description = "Decide whether the rsync daemon may serve a request."
    argparse.ArgumentParser(prog="rigup-host may-serve", description=description).parse_args(argv)
    try:
        for path in requested(os.environ):
            check(Path(os.environ["RSYNC_MODULE_PATH"]), path)
    except Refused as error:
        print(error)
        return 1
    return 0


def requested(environment: Mapping[str, str]) -> list[str]:
    """Return the paths that a client asks for. Raise Refused if they cannot be told from its options."""
    given = [environment[name] for name in takewhile(environment.__contains__, map("RSYNC_ARG{}".format, count(1)))]
    options = list(takewhile(lambda word: word != ".", given))
    paths = given[len(options) + 1 :]
    # What is not an option before the `.` may be a path, too, or name a file with paths.
    if not paths or not all(option.startswith("-") for option in options):
        raise Refused("rigup serves single paths only")
    return paths


def check(store: Path, path: str) -> None:
    """Raise Refused unless a path leads into a verified checkpoint, or to nothing."""
    parts = path.split("/")
    if len(parts) < 3 or not {"", ".", ".."}.isdisjoint(parts[:-1]) or parts[-1] in (".", ".."):
        raise Refused(f"{path} is not in a checkpoint")
    owner, name, place = parts[:3]
    staging = STAGING.fullmatch(place)
    revision = staging[1] if staging else place
    checkpoint = Store(f"{owner}/{name}", revision, store / owner / name / revision, {})
    directory = checkpoint.staging if staging else checkpoint.dest
    if os.path.lexists(directory) and not (REVISION.fullmatch(revision) and checkpoint.is_verified(directory)):
        raise Refused(f"{owner}/{name}/{place} is not a checkpoint that this host has verified")
