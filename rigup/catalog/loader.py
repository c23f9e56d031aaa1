"""The catalog: recipes and checkpoints as checked data.

A recipe says how a model is served. It lies in `recipes/ID.yaml`; the checkpoints it names lie in
`recipes/checkpoints/ID.yaml`. The file's name is the id. `rigup.catalog.recipe` says what stands in them,
`rigup.catalog.extends` how
one recipe extends another.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from rigup.catalog.extends import Layered, layered
from rigup.catalog.patch import IgnorePatch, Patch, When
from rigup.catalog.recipe import Checkpoint, Evidence, Recipe
from rigup.config.yaml_file import Document, describe_error, findings_of, read_document
from rigup.errors import Finding, InputError, RigupError, near
from rigup.resources import RECIPES

__all__ = [
    "Catalog",
    "Checkpoint",
    "Evidence",
    "IgnorePatch",
    "Patch",
    "Recipe",
    "When",
    "default_catalog",
    "load_catalog",
]


@dataclass(frozen=True)
class Catalog:
    """All recipes and checkpoints, by id; `layers` knows where each value of a recipe was written."""

    recipes: Mapping[str, Recipe]
    checkpoints: Mapping[str, Checkpoint]
    layers: Mapping[str, Layered] = field(default_factory=dict)

    def recipe(self, name: str) -> Recipe:
        """Raises RigupError, naming the near ones, where there is no such recipe."""
        return _lookup(name, self.recipes, "recipe", "`rigup recipes` lists them")

    def checkpoint(self, name: str) -> Checkpoint:
        """Raises RigupError, naming the near ones, where there is no such checkpoint."""
        return _lookup(name, self.checkpoints, "checkpoint", "they lie in recipes/checkpoints/")


Entry = TypeVar("Entry", Recipe, Checkpoint)


def _lookup(name: str, known: Mapping[str, Entry], kind: str, where: str) -> Entry:
    if name in known:
        return known[name]
    meant = near(name, known)
    raise RigupError(f"no {kind} is named {name!r}", f"did you mean {' or '.join(meant)}?" if meant else where)


def default_catalog() -> Catalog:
    """The project's own catalog, and the user's recipes.

    Those lie in `inventory/recipes/`, and in `recipes/` beside an inventory that RIGUP_INVENTORY names.
    """
    directories = [RECIPES, RECIPES.parent / "inventory" / "recipes"]
    if named := os.environ.get("RIGUP_INVENTORY"):
        directories.append(Path(named).expanduser().resolve().parent / "recipes")
    return load_catalog(directories[0], *(each for each in dict.fromkeys(directories[1:]) if each.is_dir()))


def load_catalog(*directories: Path) -> Catalog:
    """Read every `*.yaml` in the directories and in their `checkpoints/`; recipes of one may extend another's.

    Raises InputError with every finding of every file at once.
    """
    loading = _Loading()
    for directory in directories:
        if not directory.is_dir():
            loading.findings.append(Finding(str(directory), None, "", "is no directory of recipes"))
        for path in sorted(directory.glob("checkpoints/*.yaml")):
            loading.read(path, loading.checkpoint_files)
        for path in sorted(directory.glob("*.yaml")):
            loading.read(path, loading.recipe_files)
    return loading.catalog()


class _Loading:
    """One reading of all directories, gathering what is wrong."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.recipe_files: dict[str, Document] = {}
        self.checkpoint_files: dict[str, Document] = {}
        self.layers: dict[str, Layered] = {}

    def read(self, path: Path, known: dict[str, Document]) -> None:
        try:
            document = read_document(path)
        except InputError as error:
            self.findings.extend(error.findings)
            return
        name = document.data.get("id", path.stem) if isinstance(document.data, dict) else path.stem
        if name != path.stem:
            found = f"is {name!r} in a file named {path.name}"
            self.findings.append(document.finding(("id",), found, "make them equal"))
        elif name in known:
            self.findings.append(document.finding(("id",), f"{name!r} is there already", "choose another name"))
        else:
            known[name] = document

    def catalog(self) -> Catalog:
        checkpoints: dict[str, Checkpoint] = {}
        recipes: dict[str, Recipe] = {}
        for name, document in self.checkpoint_files.items():
            try:
                checkpoints[name] = Checkpoint.model_validate(document.data)
            except ValidationError as error:
                self.findings.extend(findings_of(error, Checkpoint, document))
        for name in self.recipe_files:
            layer = self.layer(name, ())
            try:
                recipes[name] = Recipe.model_validate(layer.data)
            except ValidationError as error:
                for details in error.errors():
                    # pydantic names the kind of a patch in between; the file has it under `target`.
                    loc = details["loc"]
                    loc = loc[:2] + loc[3:] if loc[:1] == ("patches",) else loc
                    self.findings.append(layer.finding(loc, *describe_error(details, Recipe)))
        if not self.findings:
            for name, recipe in recipes.items():
                self._reference(name, "checkpoint", recipe.checkpoint, checkpoints, "they lie in checkpoints/")
                if recipe.superseded_by:
                    self._reference(name, "superseded_by", recipe.superseded_by, recipes, "`rigup recipes` lists them")
        if self.findings:
            raise InputError(self.findings)
        return Catalog(recipes, checkpoints, self.layers)

    def layer(self, name: str, variants: tuple[str, ...]) -> Layered:
        """A recipe over all that it extends. `variants` are those that extend it and are being read."""
        if name in self.layers:
            return self.layers[name]
        document = self.recipe_files[name]
        data = document.data if isinstance(document.data, dict) else {}
        base = data.get("extends")
        below: Layered | None = None
        if isinstance(base, str):
            if base in (*variants, name):
                chain = " -> ".join((*variants, name, base))
                self.findings.append(document.finding(("extends",), f"leads back to itself: {chain}", "cut it"))
            elif base not in self.recipe_files:
                meant = near(base, self.recipe_files)
                remedy = f"did you mean {' or '.join(meant)}?" if meant else "`rigup recipes` lists them"
                self.findings.append(document.finding(("extends",), f"there is no recipe {base!r}", remedy))
            else:
                below = self.layer(base, (*variants, name))
        self.layers[name] = layered(document, below, self.findings)
        return self.layers[name]

    def _reference(self, name: str, key: str, value: str, known: Mapping[str, BaseModel], where: str) -> None:
        if value in known:
            return
        kind = "checkpoint" if key == "checkpoint" else "recipe"
        meant = near(value, known)
        remedy = f"did you mean {' or '.join(meant)}?" if meant else where
        self.findings.append(self.layers[name].finding((key,), f"there is no {kind} {value!r}", remedy))
