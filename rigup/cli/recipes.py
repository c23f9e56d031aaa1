"""`rigup recipes`: list the catalog's recipes."""

from __future__ import annotations

import argparse
import sys
from typing import get_args

from rich import box
from rich.table import Table
from rich.text import Text

from rigup.catalog.loader import Catalog, default_catalog
from rigup.catalog.rank import ranked
from rigup.catalog.recipe import Recipe
from rigup.cli._catalog import show_problems
from rigup.cli._parser import Commands
from rigup.cli._terminal import SafeConsole
from rigup.config.need import EngineName, Workload

HIDDEN = ("superseded", "broken")
STATUSES = get_args(Recipe.model_fields["status"].annotation)


def register(commands: Commands) -> None:
    """Add `rigup recipes`."""
    parser = commands.add_parser(
        "recipes",
        help="list the catalog's recipes: the ways to serve a model",
        description="Superseded and broken recipes are hidden unless --all is given.",
    )
    parser.add_argument("--for", dest="workload", choices=get_args(Workload), help="rank for this workload and say why")
    parser.add_argument("--gpus", type=int, metavar="N", help="only recipes that need at most N GPUs")
    parser.add_argument("--engine", choices=get_args(EngineName), help="only recipes of this engine")
    parser.add_argument("--model", help="only recipes of this model, such as Qwen3.5-397B-A17B")
    parser.add_argument("--status", action="append", choices=STATUSES, help="only recipes of this status")
    parser.add_argument("--all", action="store_true", help="include superseded and broken recipes")
    parser.set_defaults(run=_recipes)


def _recipes(options: argparse.Namespace) -> int:
    catalog = default_catalog()
    show_problems(catalog)
    if options.workload:
        choices = ranked(catalog, options.workload, options.gpus, options.engine, options.model)
        chosen = [choice for choice in choices if not options.status or choice.recipe.status in options.status]
        table = _table("recipe", "GPUs", "why")
        for choice in chosen:
            table.add_row(choice.recipe.id, str(choice.recipe.gpus), Text(choice.reason))
        _print(table)
        return 0
    table = _table("recipe", "workload", "engine", "GPUs", "speed", "tool calls", "status", "description")
    hidden = 0
    for recipe in catalog.recipes.values():
        if not _matches(recipe, catalog, options):
            continue
        if recipe.status in HIDDEN and not options.all and not options.status:
            hidden += 1
            continue
        table.add_row(*(Text(cell) for cell in _row(recipe)))
    _print(table)
    if hidden:
        print(f"{hidden} superseded or broken recipes are hidden; --all shows them", file=sys.stderr)
    return 0


def _matches(recipe: Recipe, catalog: Catalog, options: argparse.Namespace) -> bool:
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
    # A pipe has no width: print one line per recipe, for grep.
    SafeConsole(width=None if sys.stdout.isatty() else 400).print(table)
