"""`rigup check`: check recipes for mistakes."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from rigup.catalog.engine_options import releases_of
from rigup.catalog.lint import Hardware, check_catalog, known_of
from rigup.catalog.loader import Catalog, default_catalog
from rigup.catalog.memory import fit
from rigup.catalog.recipe import Recipe
from rigup.cli._catalog import add_recipe, show_problems
from rigup.cli._output import print_json
from rigup.cli._parser import Commands, add_json
from rigup.errors import InputError
from rigup.fit.memory import Fit

JSON = {
    "recipes": "a list of the named recipes (empty if none is named): recipe, status, releases, findings "
    "(by id: those that the recipe declares), memory",
    "findings": "a list of mistakes: where, line, key, message, remedy, id, advice",
}


def register(commands: Commands) -> None:
    """Add `rigup check`."""
    parser = commands.add_parser(
        "check",
        help="check recipes for mistakes",
        description="Checks the schema, references, contradictions, the arithmetic of parallelism and batches, the "
        "parsers and drafters of the model, the fit in GPU memory, and the arguments against the options of released "
        "engines. A deploy refuses a recipe with a mistake, unless it is marked as advice.",
        epilog="Exit codes: 0 no mistakes, 1 mistakes found.",
    )
    add_json(parser, JSON)
    add_recipe(parser, "*", help="the recipes to check (default: all)")
    parser.add_argument("--gpus", type=int, metavar="N", help="also check that they run on N GPUs")
    parser.add_argument("--vram", type=int, metavar="MIB", help="also check that they fit GPUs with this much memory")
    parser.add_argument("--driver", type=int, metavar="BRANCH", help="also check that this driver branch is new enough")
    parser.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    """Run `rigup check`. Raises InputError with all mistakes."""
    catalog = default_catalog()
    names = options.names or list(catalog.recipes)
    findings = check_catalog(catalog, names, Hardware(options.gpus, options.vram, options.driver))
    if options.names:
        show_problems(catalog)
    else:
        findings += catalog.problems()
    if options.json:
        recipes = [_data(catalog, catalog.recipe(name), options.vram) for name in options.names]
        print_json({"recipes": recipes, "findings": [asdict(finding) for finding in findings]})
        return 1 if findings else 0
    if findings:
        raise InputError(findings)
    for name in options.names:
        recipe = catalog.recipe(name)
        if recipe.status == "broken":
            print(f"{name} is broken: {recipe.caveats[0]}")
            continue
        releases = ", ".join(release.name for release in releases_of(recipe))
        print(f"{name}: arguments accepted by {releases}")
        for id, why in recipe.findings.items():
            print(f"{name}: has a known mistake, for which a deploy refuses it: {why} [{id}]")
        estimate = _memory(catalog, recipe, options.vram)
        print(f"{name}: {estimate or 'memory use unknown: the size of the checkpoint is not recorded'}")
    other = "other " if any(catalog.recipe(name).findings for name in options.names) else ""
    print(f"{len(names)} recipe{'s' if len(names) != 1 else ''}: no {other}mistakes found")
    return 0


def _memory(catalog: Catalog, recipe: Recipe, vram: int | None) -> Fit | None:
    known, *drafters = known_of(catalog, recipe)
    return fit(recipe, *known[:2], vram, drafter=drafters[0] if drafters else None)


def _data(catalog: Catalog, recipe: Recipe, vram: int | None) -> dict[str, Any]:
    estimate = _memory(catalog, recipe, vram)
    return {
        "recipe": recipe.id,
        "status": recipe.status,
        "releases": [release.name for release in releases_of(recipe)],
        "findings": dict(recipe.findings),
        "memory": str(estimate) if estimate else None,
    }
