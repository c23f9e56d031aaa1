"""`rigup recipes`, `rigup check` and `rigup show`: the catalog at the command line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, get_args

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rigup.catalog.engine_options import releases_of
from rigup.catalog.lint import Hardware, check_catalog
from rigup.catalog.loader import Catalog, default_catalog
from rigup.catalog.memory import fit
from rigup.catalog.rank import ranked
from rigup.catalog.recipe import Recipe
from rigup.config.inventory import find_inventory
from rigup.config.need import EngineName, Workload
from rigup.errors import InputError
from rigup.render import export

__all__ = ["add_commands"]

HIDDEN = ("superseded", "broken")
STATUSES = get_args(Recipe.model_fields["status"].annotation)


def add_commands(commands: Any) -> None:
    """Adds the three commands to `rigup`'s own parser."""
    recipes = commands.add_parser(
        "recipes",
        help="the catalog: how a model can be served",
        description="Without --all, what something better has taken the place of is not shown.",
    )
    recipes.add_argument("--for", dest="workload", choices=get_args(Workload), help="rank for this, and say why")
    recipes.add_argument("--gpus", type=int, metavar="N", help="only those that need at most N GPUs")
    recipes.add_argument("--engine", choices=get_args(EngineName))
    recipes.add_argument("--model", help="only of this model, such as Qwen3.5-397B-A17B")
    recipes.add_argument("--status", action="append", choices=STATUSES, help="only of this status")
    recipes.add_argument("--all", action="store_true", help="superseded and broken ones too")
    recipes.set_defaults(run=_recipes)

    check = commands.add_parser(
        "check",
        help="look for what cannot work in recipes",
        description="Schema, references, contradictions, fit, and the arguments against what released engines know.",
        epilog="Exit codes: 0 nothing found, 1 something is wrong.",
    )
    check.add_argument("names", nargs="*", metavar="RECIPE", help="by default all")
    check.add_argument("--gpus", type=int, metavar="N", help="whether they run on N GPUs")
    check.add_argument("--vram", type=int, metavar="MIB", help="whether they fit GPUs with so much memory each")
    check.add_argument("--driver", type=int, metavar="BRANCH", help="whether the driver is new enough, such as 595")
    check.set_defaults(run=_check)

    show = commands.add_parser("show", help="exactly what a host would run, in several forms")
    show.add_argument("name", metavar="RECIPE")
    show.add_argument("--as", dest="form", choices=sorted(export.FORMS), default="docker", help="by default docker")
    show.add_argument("--inventory", type=Path, metavar="FILE", help="take digests from the lock beside this inventory")
    show.add_argument("--host", metavar="HOST", help="with this host's settings, and its patched files")
    show.set_defaults(run=_show)


def _recipes(options: argparse.Namespace) -> int:
    catalog = default_catalog()
    if options.workload:
        choices = ranked(catalog, options.workload, options.gpus, options.engine, options.model)
        chosen = [choice for choice in choices if not options.status or choice.recipe.status in options.status]
        table = _table("recipe", "GPUs", "why")
        for choice in chosen:
            table.add_row(choice.recipe.id, str(choice.recipe.gpus), Text(choice.reason))
        _print(table)
        return 0
    table = _table("recipe", "workload", "engine", "GPUs", "speed", "tool calls", "status", "what it is")
    hidden = 0
    for recipe in catalog.recipes.values():
        if not _wanted(recipe, catalog, options):
            continue
        if recipe.status in HIDDEN and not options.all and not options.status:
            hidden += 1
            continue
        table.add_row(*(Text(cell) for cell in _row(recipe)))
    _print(table)
    if hidden:
        print(f"{hidden} superseded or broken ones are not shown: --all", file=sys.stderr)
    return 0


def _wanted(recipe: Recipe, catalog: Catalog, options: argparse.Namespace) -> bool:
    return (
        (options.gpus is None or recipe.gpus <= options.gpus)
        and (options.engine is None or recipe.engine.name == options.engine)
        and (options.model is None or catalog.checkpoint(recipe.checkpoint).model == options.model)
        and (not options.status or recipe.status in options.status)
    )


def _row(recipe: Recipe) -> tuple[str, ...]:
    return (
        recipe.id,
        ", ".join(recipe.workload),
        recipe.engine.name,
        str(recipe.gpus),
        recipe.speed,
        recipe.tool_calls,
        f"{recipe.status} by {recipe.superseded_by}" if recipe.superseded_by else recipe.status,
        recipe.title,
    )


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=column == "recipe", overflow="fold")
    return table


def _print(table: Table) -> None:
    # A pipe has no width: one line for each recipe, for grep.
    Console(highlight=False, width=None if sys.stdout.isatty() else 400).print(table)


def _check(options: argparse.Namespace) -> int:
    catalog = default_catalog()
    names = options.names or list(catalog.recipes)
    findings = check_catalog(catalog, names, Hardware(options.gpus, options.vram, options.driver))
    if findings:
        raise InputError(findings)
    for name in options.names:
        recipe = catalog.recipe(name)
        if recipe.status == "broken":
            print(f"{name} is broken: {recipe.caveats[0]}")
            continue
        judged = ", ".join(release.name for release in releases_of(recipe))
        print(f"{name}: arguments known to {judged}")
        estimate = fit(recipe, catalog.checkpoint(recipe.checkpoint), options.vram)
        print(f"{name}: {estimate or 'fit not known: no size, or another model'}")
    print(f"{len(names)} recipes: nothing found")
    return 0


def _show(options: argparse.Namespace) -> int:
    inventory = options.inventory or (find_inventory(Path.cwd() / "inventory") if options.host else None)
    print(export.shown(default_catalog(), options.name, options.form, inventory, options.host), end="")
    return 0
