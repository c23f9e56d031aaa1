"""`rigup show`: exactly what a host would run for a recipe."""

from __future__ import annotations

import argparse

from rigup.catalog.loader import default_catalog
from rigup.cli._catalog import show_problems
from rigup.cli._hosts import add_inventory, find_target, read_inventory
from rigup.cli._parser import Commands
from rigup.render import export


def register(commands: Commands) -> None:
    """Add `rigup show`."""
    parser = commands.add_parser("show", help="show exactly what a host would run, in one of several forms")
    parser.add_argument("name", metavar="RECIPE", help="a recipe of the catalog")
    parser.add_argument(
        "target", nargs="?", metavar="HOST[/ENDPOINT]", help="use this host's settings, and include its patched files"
    )
    parser.add_argument("--as", dest="form", choices=sorted(export.FORMS), default="docker", help="default: docker")
    add_inventory(parser)
    parser.set_defaults(run=_show)


def _show(options: argparse.Namespace) -> int:
    inventory = read_inventory(options) if options.target or options.inventory else None
    host = endpoint = None
    if inventory and options.target:
        target = find_target(inventory, options.target)
        host, endpoint = target.host.name, target.endpoint
    path = inventory.path if inventory else None
    catalog = default_catalog()
    show_problems(catalog)
    print(export.shown(catalog, options.name, options.form, path, host, endpoint), end="")
    return 0
