"""What `rigup lock` and `rigup update` share: the lock, what the inventory needs from it, and what has changed."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from rigup.catalog.check_names import check_names
from rigup.catalog.loader import Catalog, default_catalog
from rigup.cli._catalog import show_problems
from rigup.cli._hosts import add_inventory, read_inventory
from rigup.config.inventory import Inventory
from rigup.distros.table import DISTROS
from rigup.lock import lockfile
from rigup.lock.lockfile import Lock
from rigup.lock.resolve import Want


@dataclass(frozen=True)
class Subject:
    """The lock of an inventory as it is, and what the inventory needs from it."""

    inventory: Inventory
    catalog: Catalog
    lock: Lock
    wants: list[Want]
    distros: list[str]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that both commands have."""
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


def changes(before: Lock, after: Lock) -> list[str]:
    """Return one line for each entry that is added, removed or changed."""
    old, new = before.flat(), after.flat()
    return [
        f"{name}: {old.get(name, '(new)')} -> {new.get(name, '(removed)')}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]
