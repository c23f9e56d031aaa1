"""`rigup show`: exactly what a host would run for a recipe."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from rigup.catalog.loader import default_catalog
from rigup.cli._catalog import add_recipe, show_problems
from rigup.cli._hosts import add_host, add_inventory, find_endpoint, find_target, read_inventory
from rigup.cli._output import print_json
from rigup.cli._parser import Commands, add_json
from rigup.errors import RigupError
from rigup.render import export

JSON = {
    "recipe": "its name",
    "form": "its form",
    "text": "the recipe in this form",
    "about": "a list of lines: title, status, caveats, and what is missing in the text",
    "evidence": "a list of lines: where the recipe comes from",
    "sources": "a list: value (of the command), key (of the recipe), place (file and line)",
}


def register(commands: Commands) -> None:
    """Add `rigup show`."""
    parser = commands.add_parser("show", help="show exactly what a host would run, in one of several forms")
    add_recipe(parser, help="a recipe of the catalog; HOST[/ENDPOINT] in its place is the one that is served there")
    add_host(parser, "?", endpoints=True, help="use this host's settings, and include its patched files")
    parser.add_argument("--as", dest="form", choices=sorted(export.FORMS), default="docker", help="default: docker")
    parser.add_argument("--explain", action="store_true", help="also print where the recipe and each value come from")
    add_json(parser, JSON)
    add_inventory(parser)
    parser.set_defaults(run=_show)


def _show(options: argparse.Namespace) -> int:
    if not options.host:
        _name_recipe_of_host(options)
    inventory = read_inventory(options) if options.host or options.inventory else None
    host = endpoint = None
    if inventory and options.host:
        target = find_target(inventory, options.host)
        host, endpoint = target.host.name, target.endpoint
    path = inventory.path if inventory else None
    catalog = default_catalog()
    show_problems(catalog)
    shown = export.shown(catalog, options.name, options.form, path, host, endpoint)
    if options.json:
        print_json({"recipe": options.name, "form": options.form, **asdict(shown)})
    else:
        print(shown.render(options.explain), end="")
    return 0


def _name_recipe_of_host(options: argparse.Namespace) -> None:
    """Replace a host given as the recipe: set the recipe that the inventory assigns to it, and the host.

    Raises RigupError for an endpoint that the host does not have. A recipe of the same name comes first.
    """
    try:
        inventory = read_inventory(options)
    except RigupError:
        # None is needed for a recipe.
        return
    if options.name.partition("/")[0] in inventory.hosts and options.name not in default_catalog().recipes:
        host, endpoint = find_endpoint(inventory, options.name)
        options.name = host.settings.endpoints[endpoint].recipe or host.settings.recipe
        options.host = f"{host.name}/{endpoint}"
