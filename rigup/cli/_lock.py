"""What `rigup lock` and `rigup update` share: the lock, what the inventory needs from it, and what has changed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rigup.catalog.check_names import check_names
from rigup.catalog.loader import Catalog, default_catalog
from rigup.cli._catalog import show_problems
from rigup.cli._hosts import add_inventory, read_inventory
from rigup.cli._output import print_json
from rigup.cli._parser import Parser, add_json
from rigup.config.inventory import Inventory
from rigup.distros.table import DISTROS
from rigup.lock import lockfile
from rigup.lock.lockfile import Lock
from rigup.lock.resolve import Want

JSON = {
    "lock": "the path of the lock",
    "changes": "a list: entry, before (null if it is new), after (null if it is removed)",
}


@dataclass(frozen=True)
class Subject:
    """The lock of an inventory as it is, and what the inventory needs from it."""

    inventory: Inventory
    catalog: Catalog
    lock: Lock
    wants: list[Want]
    distros: list[str]


def add_options(parser: Parser) -> None:
    """Add the options that both commands have."""
    add_json(parser, JSON)
    add_inventory(parser)
    parser.add_argument(
        "--distro",
        action="append",
        choices=sorted(DISTROS),
        help="also resolve packages for this distribution (default: those that the lock already has)",
    )


def read(options: argparse.Namespace) -> Subject:
    """Read inventory, catalog and lock. Raises RigupError."""
    inventory, catalog = read_inventory(options), default_catalog()
    show_problems(catalog)
    check_names(inventory, catalog)
    lock = lockfile.read(inventory.lock)
    distros = sorted({*lock.packages, *(options.distro or ())})
    settings = [host.settings for host in inventory.hosts.values()]
    wants = [Want(each, distro) for each in settings for distro in distros or [None]]
    return Subject(inventory, catalog, lock, wants, distros)


@dataclass(frozen=True)
class Change:
    """An entry of the lock that is added (`before` is None), removed (`after` is None) or changed."""

    entry: str
    before: str | None
    after: str | None

    def __str__(self) -> str:
        return f"{self.entry}: {self.before or '(new)'} -> {self.after or '(removed)'}"


def changes(before: Lock, after: Lock) -> list[Change]:
    """Return what differs between two locks."""
    old, new = before.flat(), after.flat()
    return [
        Change(name, old.get(name), new.get(name)) for name in sorted({*old, *new}) if old.get(name) != new.get(name)
    ]


def tell(options: argparse.Namespace, lock: Path, changes: Sequence[Change], otherwise: str) -> None:
    """Print the changes, or `otherwise` if there are none."""
    if options.json:
        print_json({"lock": str(lock), "changes": [asdict(change) for change in changes]})
    else:
        print("\n".join(map(str, changes)) or otherwise)
