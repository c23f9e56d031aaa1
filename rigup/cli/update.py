"""`rigup update`: resolve the lock's entries again and show what changes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rigup.cli import _lock
from rigup.cli._parser import Commands
from rigup.errors import RigupError, suggestion
from rigup.lock import lockfile, resolve
from rigup.lock.lockfile import Lock

__all__ = ["register"]


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
        help=f"{', '.join(resolve.KINDS)}, or an entry's name: `docker`, `driver-595`, an image, a checkpoint "
        "(default: everything)",
    )
    parser.add_argument("--check", action="store_true", help="only show what would change")
    _lock.add_options(parser)
    parser.set_defaults(run=_update)


def _update(options: argparse.Namespace) -> int:
    """Raises RigupError for an unknown entry, and where something cannot be resolved."""
    subject = _lock.read(options)
    lock = resolve.resolve(subject.wants, subject.catalog, _without(subject.lock, options.what))
    changes = _lock.changes(subject.lock, lock)
    print("\n".join(changes) if changes else "Nothing changed: the lock is up to date.")
    if options.check:
        return 2 if changes else 0
    lockfile.write(subject.inventory.lock, lock)
    return 0


def _without(lock: Lock, what: Sequence[str]) -> Lock:
    """Return the lock without the entries that are to be resolved again. Raises RigupError for an unknown entry."""
    if not what:
        return Lock()
    words, known = set(what), set(resolve.KINDS)

    def is_kept(*names: str) -> bool:
        known.update(names)
        return words.isdisjoint(names)

    kept = Lock(
        images={tag: image for tag, image in lock.images.items() if is_kept("images", tag)},
        venvs={key: venv for key, venv in lock.venvs.items() if is_kept("venvs", *key.split())},
        checkpoints={
            key: checkpoint
            for key, checkpoint in lock.checkpoints.items()
            if is_kept("checkpoints", key, key.rpartition("@")[0])
        },
        keys={url: key for url, key in lock.keys.items() if is_kept("keys", url)},
        packages={
            distro: {
                group: versions
                for group, versions in groups.items()
                if is_kept("packages", distro, group, *versions)
            }
            for distro, groups in lock.packages.items()
        },
    )  # fmt: skip
    for word in what:
        if word not in known:
            raise RigupError(
                f"the lock has no entry named {word!r}", suggestion(word, known, f"entries: {', '.join(sorted(known))}")
            )
    return kept
