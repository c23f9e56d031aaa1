"""Read the catalog: recipes, checkpoints and models as validated data.

A recipe says how a model is served. It is in `recipes/ID.yaml`, or in `recipes/archive/ID.yaml` once another recipe has
superseded it. Checkpoints are in `recipes/checkpoints/ID.yaml`, models in `recipes/models/ID.yaml`. The file's name is
the id.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ValidationError

from rigup.catalog.checkpoint import Checkpoint
from rigup.catalog.complaint import Complaint
from rigup.catalog.extends import Merged, merge
from rigup.catalog.model import Model
from rigup.catalog.recipe import Recipe
from rigup.config.mistakes import findings_of, mistakes
from rigup.config.yaml_file import Document, Loc, dotted, read_document
from rigup.errors import Finding, InputError, RigupError, near
from rigup.resources import RECIPES

SEE_RECIPES = "`rigup recipes --all` lists them"
SEE_CHECKPOINTS = "they are in recipes/checkpoints/"

SCHEMA = "recipe-schema"
"""The id of findings of this module: a file that is not a recipe, checkpoint or model at all."""

Kind = Literal["recipe", "checkpoint", "model"]
PLACES: Mapping[Kind, tuple[str, ...]] = {
    "checkpoint": ("checkpoints/*.yaml",),
    "model": ("models/*.yaml",),
    "recipe": ("*.yaml", "archive/*.yaml"),
}


@dataclass(frozen=True)
class Catalog:
    """All recipes, checkpoints and models by id, and for each recipe where its values are written (`merged`).

    `broken` has the findings about the user's files that cannot be used, by kind and id. The others can.
    """

    recipes: Mapping[str, Recipe]
    checkpoints: Mapping[str, Checkpoint]
    merged: Mapping[str, Merged] = field(default_factory=dict)
    models: Mapping[str, Model] = field(default_factory=dict)
    broken: Mapping[tuple[Kind, str], tuple[Finding, ...]] = field(default_factory=dict)

    def recipe(self, name: str) -> Recipe:
        """Return a recipe.

        Raises RigupError with similar names if it does not exist, and InputError with what is wrong in its file.
        """
        if found := self.broken.get(("recipe", name)):
            raise InputError(found)
        return _lookup(name, self.recipes, "recipe", SEE_RECIPES)

    def checkpoint(self, name: str) -> Checkpoint:
        """Return a checkpoint. Raises RigupError with similar names if it does not exist."""
        return _lookup(name, self.checkpoints, "checkpoint", SEE_CHECKPOINTS)

    def checkpoints_of(self, recipe: Recipe) -> list[Checkpoint]:
        """Return the checkpoint that a recipe serves, and then that of its drafter, if it has one of its own."""
        return [self.checkpoint(name) for name in recipe.checkpoints]

    def model_of(self, recipe: Recipe) -> Model | None:
        """Return what is known about the model that a recipe serves; None for an unknown one."""
        return self.models.get(self.checkpoint(recipe.checkpoint).model)

    def problems(self) -> list[Finding]:
        """Return what is wrong with the user's files."""
        return list(dict.fromkeys(finding for found in self.broken.values() for finding in found))

    def notice(self) -> str:
        """Return what to tell about the user's files that are left out; "" if there are none."""
        found = [f"  {problem}" for problem in self.problems()]
        return "\n".join(["These recipes of yours have mistakes and are left out:", *found]) if found else ""

    def finding(self, name: str, complaint: Complaint) -> Finding:
        """Return a finding about a recipe, with the file and line of the key if the recipe was read from a file."""
        id, loc, message, remedy, advice = complaint
        if merged := self.merged.get(name):
            return replace(merged.finding(loc, message, remedy), id=id, advice=advice)
        return Finding("", None, dotted(loc), message, remedy, id, advice)


Entry = TypeVar("Entry", Recipe, Checkpoint)
Plain = TypeVar("Plain", Checkpoint, Model)


def _lookup(name: str, known: Mapping[str, Entry], kind: str, where: str) -> Entry:
    if name in known:
        return known[name]
    raise RigupError(f"there is no {kind} {name!r}", _remedy(name, known, where))


def _remedy(name: str, known: Mapping[str, object], where: str) -> str:
    meant = near(name, known)
    return f"did you mean {' or '.join(meant)}?" if meant else where


def default_catalog() -> Catalog:
    """Return the project's catalog with the user's recipes.

    The user's recipes are in `inventory/recipes/` below the working directory, and in `recipes/` next to the inventory
    that RIGUP_INVENTORY names.
    """
    directories = [RECIPES, Path.cwd() / "inventory" / "recipes"]
    if named := os.environ.get("RIGUP_INVENTORY"):
        directories.append(Path(named).expanduser().resolve().parent / "recipes")
    return load_catalog(directories[0], *(each for each in dict.fromkeys(directories[1:]) if each.is_dir()))


def load_catalog(own: Path, *users: Path) -> Catalog:
    """Read every recipe, checkpoint and model in the directories; a recipe may extend one of another directory.

    Raises InputError with all findings about the first directory. A file of another one that is wrong is left out, and
    so is a recipe that depends on it; what is wrong is in the catalog's `broken`.
    """
    loading = _Loading()
    for directory in (own, *users):
        if not directory.is_dir():
            loading.findings.append(Finding(str(directory), None, "", "is not a directory"))
        for kind, patterns in PLACES.items():
            for pattern in patterns:
                for path in sorted(directory.glob(pattern)):
                    if directory is not own:
                        loading.users.add(path)
                    loading.read(path, kind)
    return loading.catalog()


class _Loading:
    """One reading of all directories, and all findings of it."""

    def __init__(self) -> None:
        self.users: set[Path] = set()
        self.findings: list[Finding] = []
        self.broken: dict[tuple[Kind, str], list[Finding]] = {}
        self.files: dict[Kind, dict[str, Document]] = {kind: {} for kind in PLACES}
        self.merged: dict[str, Merged] = {}
        # Recipes whose files are not read completely.
        self.incomplete: set[str] = set()

    def note(self, path: Path, kind: Kind, name: str, findings: Iterable[Finding]) -> None:
        """Keep what is wrong with a file: fatal for the project's own, while one of the user's is left out."""
        found = [replace(finding, id=SCHEMA) for finding in findings]
        if not found:
            return
        if path in self.users:
            self.broken.setdefault((kind, name), []).extend(found)
        else:
            self.findings.extend(found)

    def read(self, path: Path, kind: Kind) -> None:
        known = self.files[kind]
        findings = list[Finding]()
        try:
            document = read_document(path, findings)
        except InputError as error:
            self.note(path, kind, path.stem, error.findings)
            return
        if findings:
            self.note(path, kind, path.stem, findings)
            self.incomplete.add(path.stem)
        name = document.data.get("id", path.stem) if isinstance(document.data, dict) else path.stem
        if name != path.stem:
            found = f"is {name!r} in a file named {path.name}"
            self.note(path, kind, path.stem, [document.finding(("id",), found, "give both the same name")])
        elif name in known:
            found = f"{name!r} already exists in {known[name].path}"
            self.note(path, kind, name, [document.finding(("id",), found, "choose another name")])
        else:
            known[name] = document

    def catalog(self) -> Catalog:
        checkpoints = self.plain("checkpoint", Checkpoint)
        models = self.plain("model", Model)
        recipes: dict[str, Recipe] = {}
        for name, document in self.files["recipe"].items():
            merged = self.merge(name, ())
            try:
                recipes[name] = Recipe.model_validate(merged.data)
            except ValidationError as error:
                found = [merged.finding(*each) for each in mistakes(error, Recipe, merged.data, merged.written)]
                self.note(document.path, "recipe", name, found)
        if not self.findings:
            for name, recipe in recipes.items():
                self._reference(name, ("checkpoint",), recipe.checkpoint, checkpoints, SEE_CHECKPOINTS)
                for drafter in recipe.checkpoints[1:]:
                    self._reference(name, ("speculation", "model"), drafter, checkpoints, SEE_CHECKPOINTS)
                if recipe.superseded_by:
                    self._reference(name, ("superseded_by",), recipe.superseded_by, recipes, SEE_RECIPES)
        if self.findings:
            raise InputError([*self.findings, *(each for found in self.broken.values() for each in found)])
        # An id that the user's file repeats stays the project's; naming it is refused.
        usable = {name: each for name, each in recipes.items() if self._is_usable(name)}
        broken = {key: tuple(found) for key, found in self.broken.items()}
        return Catalog(usable, checkpoints, self.merged, models, broken)

    def plain(self, kind: Kind, schema: type[Plain]) -> dict[str, Plain]:
        """Return all checkpoints or models that satisfy their schema."""
        valid = {}
        for name, document in self.files[kind].items():
            try:
                valid[name] = schema.model_validate(document.data)
            except ValidationError as error:
                self.note(document.path, kind, name, findings_of(error, schema, document, document.data))
        return valid

    def merge(self, name: str, variants: tuple[str, ...]) -> Merged:
        """Return a recipe merged with all that it extends. `variants` are the recipes between it and the first one."""
        if name in self.merged:
            return self.merged[name]
        document = self.files["recipe"][name]
        data = document.data if isinstance(document.data, dict) else {}
        base = data.get("extends")
        below: Merged | None = None
        findings: list[Finding] = []
        if isinstance(base, str):
            if base in (*variants, name):
                chain = " -> ".join((*variants, name, base))
                findings.append(document.finding(("extends",), f"extends itself: {chain}", "break the chain"))
            elif base in self.files["recipe"] and base not in self.incomplete:
                below = self.merge(base, (*variants, name))
            else:
                findings.append(document.finding(("extends",), *self._absent("recipe", base, SEE_RECIPES)))
        self.merged[name] = merge(document, below, findings)
        self.note(document.path, "recipe", name, findings)
        return self.merged[name]

    def _absent(self, kind: Kind, name: str, where: str) -> tuple[str, str]:
        if found := self.broken.get((kind, name)):
            return f"the {kind} {name!r} has mistakes", f"correct {found[0].place}"
        return f"there is no {kind} {name!r}", _remedy(name, self.files[kind], where)

    def _reference(self, name: str, loc: Loc, value: str, known: Mapping[str, BaseModel], where: str) -> None:
        kind: Kind = "recipe" if loc == ("superseded_by",) else "checkpoint"
        path = self.files["recipe"][name].path
        if value not in known or (path in self.users and (kind, value) in self.broken):
            self.note(path, "recipe", name, [self.merged[name].finding(loc, *self._absent(kind, value, where))])

    def _is_usable(self, name: str) -> bool:
        return ("recipe", name) not in self.broken or self.files["recipe"][name].path not in self.users
