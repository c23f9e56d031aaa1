"""`rigup lock`: resolve the inventory's loose names and write them to the lock."""

from __future__ import annotations

import argparse

from rigup.cli import _lock
from rigup.cli._parser import Commands
from rigup.lock import resolve


def register(commands: Commands) -> None:
    """Add `rigup lock`."""
    parser = commands.add_parser(
        "lock",
        help="resolve the inventory's loose names and write them to the lock",
        description="Resolves what is not in the lock yet and keeps existing entries. A deploy does the same, and "
        "knows the hosts' distributions.",
    )
    _lock.add_options(parser)
    parser.set_defaults(run=_resolve_missing)


def _resolve_missing(options: argparse.Namespace) -> int:
    subject = _lock.read(options)
    path = subject.inventory.lock
    lock = resolve.ensure(path, subject.wants, subject.catalog)
    changes = _lock.changes(subject.lock, lock)
    _lock.tell(options, path, changes, f"{path} is complete: {len(lock.flat())} entries")
    if not subject.distros and not options.json:
        print("Packages are resolved by the first deploy, which knows the distributions. To do it now, give --distro.")
    return 0
