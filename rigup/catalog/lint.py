"""Find what is wrong with a recipe although its schema is satisfied: contradictions, misfits, refused arguments.

Every rule looks at one recipe and yields complaints. A finding names the file and line where the value is written,
also if a variant inherits it, and has an id to accept it by.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from rigup.catalog import rules, rules_model, rules_sizes
from rigup.catalog.checkpoint import Files
from rigup.catalog.complaint import Case, Complaint
from rigup.catalog.engine_options import check_options, releases_of
from rigup.catalog.loader import Catalog
from rigup.catalog.memory import Known
from rigup.catalog.recipe import Recipe
from rigup.config.yaml_file import Loc
from rigup.distros.table import short_of_cuda
from rigup.errors import Finding

RULES = (*rules.RULES, *rules_sizes.RULES, *rules_model.RULES)


@dataclass(frozen=True)
class Hardware:
    """The hardware to run on, as far as it is given: GPUs, the memory of each in MiB, the driver branch."""

    gpus: int | None = None
    vram_mib: int | None = None
    driver_branch: int | None = None


def check_catalog(
    catalog: Catalog, names: Iterable[str] | None = None, hardware: Hardware = Hardware()
) -> list[Finding]:
    """Return the findings about the named recipes, by default all, except those that the recipes declare themselves.

    Recipes marked broken are not checked. Raises RigupError for a name that does not exist.
    """
    recipes = [catalog.recipe(name) for name in (catalog.recipes if names is None else names)]
    return [
        finding
        for recipe in recipes
        if recipe.status != "broken"
        for finding in _undeclared(catalog, recipe, check_recipe(catalog, recipe, hardware))
    ]


def _undeclared(catalog: Catalog, recipe: Recipe, findings: list[Finding]) -> Iterator[Finding]:
    """Yield the findings that the recipe does not declare, and what it declares although it is not found."""
    found = {finding.id for finding in findings}
    yield from (finding for finding in findings if finding.id not in recipe.findings)
    for id in recipe.findings:
        if id not in found:
            message, remedy = "is declared, but it is not found", "remove it"
            yield catalog.finding(recipe.id, Complaint("recipe-declared", ("findings", id), message, remedy))


def check_recipe(
    catalog: Catalog,
    recipe: Recipe,
    hardware: Hardware = Hardware(),
    files: Mapping[str, Files] = MappingProxyType({}),
) -> list[Finding]:
    """Return what is wrong with a recipe, and with running it on that hardware.

    `files` is what the lock knows of the checkpoints' files, by their keys in it; without it, what the catalog says of
    the model counts.
    """
    known, *drafters = known_of(catalog, recipe, files)
    case = Case(recipe, *known[:2], hardware.vram_mib, known.files, drafters[0] if drafters else None)
    complaints = [complaint for rule in RULES for complaint in rule(case)]
    complaints += _options(recipe, case.model.architecture if case.model else None)
    complaints += _misfits(recipe, hardware)
    return [catalog.finding(recipe.id, complaint) for complaint in dict.fromkeys(complaints)]


def known_of(catalog: Catalog, recipe: Recipe, files: Mapping[str, Files] = MappingProxyType({})) -> list[Known]:
    """Return what is known of a recipe's checkpoint, and then of its drafter's, if it has one of its own."""
    return [Known(each, catalog.models.get(each.model), files.get(each.key)) for each in catalog.checkpoints_of(recipe)]


def _options(recipe: Recipe, architecture: str | None) -> list[Complaint]:
    """Return what the releases in the recipe's range refuse; as advice if one of them accepts it."""
    by_release = [list(check_options(recipe, release, architecture)) for release in releases_of(recipe)]
    refused = [{(each.id, each.loc) for each in complaints} for complaints in by_release]
    certain = set.intersection(*refused) if refused else set()
    return [
        each._replace(advice=each.advice or (each.id, each.loc) not in certain)
        for complaints in by_release
        for each in complaints
    ]


def _misfits(recipe: Recipe, hardware: Hardware) -> Iterator[Complaint]:
    gpus, branch = hardware.gpus, hardware.driver_branch
    if gpus is not None and recipe.gpus > gpus:
        message, remedy = f"needs {recipe.gpus} GPUs, but there are {gpus}", "choose a recipe for fewer GPUs"
        yield Complaint("recipe-hardware-gpus", ("gpus",), message, remedy)
    floor = _cuda_floor(recipe)
    if branch and floor and (short := short_of_cuda(branch, floor[1])):
        brings, able = short
        remedy = f"use driver branch {' or '.join(map(str, able))}" if able else "choose an older image"
        message = f"needs CUDA {floor[1]}, but driver branch {branch} has CUDA {brings}"
        yield Complaint("recipe-hardware-driver", floor[0], message, remedy)


def _cuda_floor(recipe: Recipe) -> tuple[Loc, str] | None:
    """Return the CUDA version that the driver must have, and where the recipe says so: a key, or `cu130` in a tag."""
    if recipe.min_driver_cuda:
        return ("min_driver_cuda",), recipe.min_driver_cuda
    named = re.search(r"(?<![a-z0-9])cu(\d\d)(\d)?(?!\d)", recipe.image.tag) if recipe.image else None
    return (("image", "tag"), f"{named[1]}.{named[2] or 0}") if named else None
