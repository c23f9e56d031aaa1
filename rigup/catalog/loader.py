"""Read the catalog: recipes and checkpoints as validated data.

A recipe says how a model is served. It is in `recipes/ID.yaml`, or in `recipes/archive/ID.yaml` once another recipe has
superseded it. Checkpoints are in `recipes/checkpoints/ID.yaml`. The file's name is the id.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from rigup.catalog.checkpoint import Checkpoint
from rigup.catalog.extends import Merged, merge
from rigup.catalog.recipe import Recipe
from rigup.config.yaml_file import Document, describe_error, findings_of, read_document
from rigup.errors import Finding, InputError, RigupError, near
from rigup.resources import RECIPES

SEE_RECIPES = "`rigup recipes --all` lists them"


@dataclass(frozen=True)
class Catalog:
    """All recipes and checkpoints by id, and for each recipe where its values are written (`merged`)."""

    recipes: Mapping[str, Recipe]
    checkpoints: Mapping[str, Checkpoint]
    merged: Mapping[str, Merged] = field(default_factory=dict)

    def recipe(self, name: str) -> Recipe:
        """Return a recipe. Raises RigupError with similar names if it does not exist."""
        return _lookup(name, self.recipes, "recipe", SEE_RECIPES)

    def checkpoint(self, name: str) -> Checkpoint:
        """Return a checkpoint. Raises RigupError with similar names if it does not exist."""
        return _lookup(name, self.checkpoints, "checkpoint", "they are in recipes/checkpoints/")


Entry = TypeVar("Entry", Recipe, Checkpoint)


def _lookup(name: str, known: Mapping[str, Entry], kind: str, where: str) -> Entry:
    if name in known:
        return known[name]
    raise RigupError(f"there is no {kind} {name!r}", _remedy(name, known, where))


def _remedy(name: str, known: Mapping[str, object], where: str) -> str:
    meant = near(name, known)
    return f"did you mean {' or '.join(meant)}?" if meant else where


def default_catalog() -> Catalog:
    """Return the project's catalog with the user's recipes.

    The user's recipes are in `inventory/recipes/`, and in `recipes/` next to the inventory that RIGUP_INVENTORY names.
    """
    directories = [RECIPES, RECIPES.parent / "inventory" / "recipes"]
    if named := os.environ.get("RIGUP_INVENTORY"):
        directories.append(Path(named).expanduser().resolve().parent / "recipes")
    return load_catalog(directories[0], *(each for each in dict.fromkeys(directories[1:]) if each.is_dir()))


def load_catalog(*directories: Path) -> Catalog:
    """Read every recipe and checkpoint in the directories; a recipe may extend one of another directory.

    Raises InputError with all findings of all files.
    """
    loading = _Loading()
    for directory in directories:
        if not directory.is_dir():
            loading.findings.append(Finding(str(directory), None, "", "is not a directory"))
        for path in sorted(directory.glob("checkpoints/*.yaml")):
            loading.read(path, loading.checkpoint_files)
        for path in (*sorted(directory.glob("*.yaml")), *sorted(directory.glob("archive/*.yaml"))):
            loading.read(path, loading.recipe_files)
    return loading.catalog()


class _Loading:
    """One reading of all directories, and all findings of it."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.recipe_files: dict[str, Document] = {}
        self.checkpoint_files: dict[str, Document] = {}
        self.merged: dict[str, Merged] = {}

    def read(self, path: Path, known: dict[str, Document]) -> None:
        try:
            document = read_document(path)
        except InputError as error:
            self.findings.extend(error.findings)
            return
        name = document.data.get("id", path.stem) if isinstance(document.data, dict) else path.stem
        if name != path.stem:
            found = f"is {name!r} in a file named {path.name}"
            self.findings.append(document.finding(("id",), found, "give both the same name"))
        elif name in known:
            found = f"{name!r} already exists in {known[name].path}"
            self.findings.append(document.finding(("id",), found, "choose another name"))
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
            merged = self.merge(name, ())
            try:
                recipes[name] = Recipe.model_validate(merged.data)
            except ValidationError as error:
                for details in error.errors():
                    # pydantic inserts the kind of a patch, which the file has under `target`.
                    loc = details["loc"]
                    loc = loc[:2] + loc[3:] if loc[:1] == ("patches",) else loc
                    self.findings.append(merged.finding(loc, *describe_error(details, Recipe)))
        if not self.findings:
            for name, recipe in recipes.items():
                self._reference(name, "checkpoint", recipe.checkpoint, checkpoints, "they are in checkpoints/")
                if recipe.superseded_by:
                    self._reference(name, "superseded_by", recipe.superseded_by, recipes, SEE_RECIPES)
        if self.findings:
            raise InputError(self.findings)
        return Catalog(recipes, checkpoints, self.merged)

    def merge(self, name: str, variants: tuple[str, ...]) -> Merged:
        """Return a recipe merged with all that it extends. `variants` are the recipes between it and the first one."""
        if name in self.merged:
            return self.merged[name]
        document = self.recipe_files[name]
        data = document.data if isinstance(document.data, dict) else {}
        base = data.get("extends")
        below: Merged | None = None
        if isinstance(base, str):
            if base in (*variants, name):
                chain = " -> ".join((*variants, name, base))
                self.findings.append(document.finding(("extends",), f"extends itself: {chain}", "break the chain"))
            elif base not in self.recipe_files:
                remedy = _remedy(base, self.recipe_files, SEE_RECIPES)
                self.findings.append(document.finding(("extends",), f"there is no recipe {base!r}", remedy))
            else:
                below = self.merge(base, (*variants, name))
        self.merged[name] = merge(document, below, self.findings)
        return self.merged[name]

    def _reference(self, name: str, key: str, value: str, known: Mapping[str, BaseModel], where: str) -> None:
        if value not in known:
            kind = "checkpoint" if key == "checkpoint" else "recipe"
            finding = self.merged[name].finding((key,), f"there is no {kind} {value!r}", _remedy(value, known, where))
            self.findings.append(finding)
