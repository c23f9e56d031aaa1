"""`rigup recipes`: list the catalog's recipes, or the details of one."""

from __future__ import annotations

import argparse
import sys
from typing import Any, NamedTuple, get_args

from rigup.catalog.loader import Catalog, default_catalog
from rigup.catalog.rank import ranked
from rigup.catalog.recipe import Recipe
from rigup.cli._catalog import add_recipe, show_problems
from rigup.cli._output import print_json
from rigup.cli._parser import Commands, add_json
from rigup.cli._table import Table, show
from rigup.config.need import EngineName, Workload
from rigup.errors import RigupError

HIDDEN = ("superseded", "broken")
STATUSES = get_args(Recipe.model_fields["status"].annotation)
JSON = {
    "recipes": "a list, with --for best first: recipe, title, workload, gpus, vram_mib, tok_s (null if not measured), "
    "speeds, tool_calls, status, superseded_by, engine, model, checkpoint, image, packages, caveats, findings (by id), "
    "sources (kind, source, who, when, says, changed), file, why (with --for, else null)",
    "hidden": "the number of superseded and broken recipes that are left out",
}


class Chosen(NamedTuple):
    """A recipe to show, and the reason for its rank if it is ranked."""

    recipe: Recipe
    why: str | None = None


def register(commands: Commands) -> None:
    """Add `rigup recipes`."""
    parser = commands.add_parser(
        "recipes",
        help="list the catalog's recipes, or show one: the ways to serve a model",
        description="Superseded and broken recipes are hidden unless --all is given.",
        epilog="Exit codes: 0 success, 2 no recipe matches, 1 failure.",
    )
    add_recipe(parser, "?", help="show the details of this recipe")
    parser.add_argument("--for", dest="workload", choices=get_args(Workload), help="rank for this workload and say why")
    parser.add_argument("--gpus", type=int, metavar="N", help="only recipes that need at most N GPUs")
    parser.add_argument("--engine", choices=get_args(EngineName), help="only recipes of this engine")
    parser.add_argument("--model", help="only recipes of this model, such as Qwen3.5-397B-A17B")
    parser.add_argument("--status", action="append", choices=STATUSES, help="only recipes of this status")
    parser.add_argument("--all", action="store_true", help="include superseded and broken recipes")
    add_json(parser, JSON)
    parser.set_defaults(run=_recipes)


def _recipes(options: argparse.Namespace) -> int:
    """Run `rigup recipes`. Raises RigupError for an unknown recipe, and for one together with filters."""
    catalog = default_catalog()
    show_problems(catalog)
    if options.name:
        filters = (options.workload, options.gpus, options.engine, options.model, options.status)
        if any(each is not None for each in filters):
            raise RigupError("a recipe's name and filters were given", "give one of them")
        chosen, hidden = [Chosen(catalog.recipe(options.name))], 0
    else:
        chosen, hidden = _chosen(catalog, options)
    if options.json:
        print_json({"recipes": [_data(catalog, *each) for each in chosen], "hidden": hidden})
    elif options.name:
        _print_details(_data(catalog, *chosen[0]))
    elif chosen:
        show(_table(chosen))
    if not chosen:
        print("No recipe matches.", file=sys.stderr)
    if hidden:
        print(f"{hidden} superseded or broken recipes are hidden; --all shows them", file=sys.stderr)
    return 0 if chosen else 2


def _chosen(catalog: Catalog, options: argparse.Namespace) -> tuple[list[Chosen], int]:
    """Return the recipes that match, with the reason for their rank if they are ranked, and how many are hidden."""
    if options.workload:
        choices = ranked(catalog, options.workload, options.gpus, options.engine, options.model)
        return [Chosen(each.recipe, each.reason) for each in choices if _has_status(each.recipe, options)], 0
    matching = [recipe for recipe in catalog.recipes.values() if _matches(recipe, catalog, options)]
    shown = [recipe for recipe in matching if options.all or options.status or recipe.status not in HIDDEN]
    return [Chosen(recipe) for recipe in shown], len(matching) - len(shown)


def _matches(recipe: Recipe, catalog: Catalog, options: argparse.Namespace) -> bool:
    return (
        (options.gpus is None or recipe.gpus <= options.gpus)
        and (options.engine is None or recipe.engine.name == options.engine)
        and (options.model is None or catalog.checkpoint(recipe.checkpoint).model == options.model)
        and _has_status(recipe, options)
    )


def _has_status(recipe: Recipe, options: argparse.Namespace) -> bool:
    return not options.status or recipe.status in options.status


def _table(chosen: list[Chosen]) -> Table:
    table = Table("recipe", "why" if chosen[0].why else "what for", "GPUs", "tok/s", "tool calls")
    for recipe, why in chosen:
        table.add_row(
            recipe.id, why or ", ".join(recipe.workload), str(recipe.gpus), _tokens(recipe) or "-", recipe.tool_calls
        )
    return table


def _tokens(recipe: Recipe) -> str | None:
    """Return the first measured throughput in tokens per second; None if nothing was measured."""
    return f"{recipe.speeds[0].tokens:g}" if recipe.speeds else None


def _data(catalog: Catalog, recipe: Recipe, why: str | None) -> dict[str, Any]:
    checkpoint = catalog.checkpoint(recipe.checkpoint)
    merged = catalog.merged.get(recipe.id)
    return {
        "recipe": recipe.id,
        "title": recipe.title,
        "workload": list(recipe.workload),
        "gpus": recipe.gpus,
        "vram_mib": recipe.vram_mib,
        "tok_s": recipe.speeds[0].tokens if recipe.speeds else None,
        "speeds": [str(speed) for speed in recipe.speeds],
        "tool_calls": recipe.tool_calls,
        "status": recipe.status,
        "superseded_by": recipe.superseded_by,
        "engine": recipe.engine.name,
        "model": checkpoint.model,
        "checkpoint": checkpoint.key,
        "image": recipe.image.tag if recipe.image else None,
        "packages": list(recipe.venv.packages) if recipe.venv else [],
        "caveats": list(recipe.caveats),
        "findings": dict(recipe.findings),
        "sources": [
            each.model_dump(mode="json", include={"kind", "source", "who", "when", "says", "changed"})
            for each in recipe.evidence
        ],
        "file": str(merged.document.path) if merged else None,
        "why": why,
    }


def _print_details(about: dict[str, Any]) -> None:
    status = f"{about['status']} by {about['superseded_by']}" if about["superseded_by"] else about["status"]
    rows = [
        ("recipe", about["recipe"]),
        ("title", about["title"]),
        ("what for", ", ".join(about["workload"])),
        ("GPUs", f"{about['gpus']} with {about['vram_mib']} MiB"),
        ("tok/s", "; ".join(about["speeds"]) or "not measured"),
        ("tool calls", about["tool_calls"]),
        ("status", status),
        ("engine", " ".join([about["engine"], about["image"] or ", ".join(about["packages"])]).strip()),
        ("model", about["model"]),
        ("checkpoint", about["checkpoint"]),
        *(("caveat", caveat) for caveat in about["caveats"]),
        *(("known mistake", f"{why} [{id}]") for id, why in about["findings"].items()),
        *(("source", f"{each['source']}: {each['says']}") for each in about["sources"]),
        ("file", about["file"] or ""),
    ]
    show(Table("about", "", rows=rows, has_header=False))
    print(f"\n`rigup show {about['recipe']}` prints its command.")
