"""`rigup update`: resolve the lock's entries again and show what changes."""

from __future__ import annotations

import argparse

from rigup.cli import _lock
from rigup.cli._parser import Commands
from rigup.lock import lockfile, resolve


def register(commands: Commands) -> None:
    """Add `rigup update`."""
    parser = commands.add_parser(
        "update",
        help="resolve the lock's entries again and show what changes",
        description="Updates entries of the lock. The next deploy brings the hosts to them.",
        epilog="Exit codes: 0 success (with --check: nothing would change), 2 with --check: something would change, "
        "1 failure.",
    )
    parser.add_argument(
        "what",
        nargs="*",
        metavar="WHAT",
        help=f"{', '.join(lockfile.KINDS)}, or an entry's name: `docker`, `driver-595`, an image, a checkpoint, "
        "`agents-4gpu` "
        "(default: everything)",
    )
    parser.add_argument("--check", action="store_true", help="only show what would change")
    _lock.add_options(parser)
    parser.set_defaults(run=_update)


def _update(options: argparse.Namespace) -> int:
    """Run `rigup update`. Raises RigupError for an unknown entry, and if something cannot be resolved."""
    subject = _lock.read(options)
    lock = resolve.resolve(subject.wants, subject.catalog, subject.lock.without(options.what))
    changes = _lock.changes(subject.lock, lock)
    _lock.tell(options, subject.inventory.lock, changes, "Nothing changed: the lock is up to date.")
    if options.check:
        return 2 if changes else 0
    lockfile.write(subject.inventory.lock, lock)
    return 0
