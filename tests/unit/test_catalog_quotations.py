"""Recipes against the commands that their sources print: whatever is not the same is told in `changed`."""

import json
import re
import shlex

import pytest

from rigup.catalog.engine_args import arguments
from rigup.catalog.loader import default_catalog
from rigup.catalog.recipe import Recipe
from tests.unit.quotations import NEAREST, QUOTED

CATALOGUE = default_catalog()
PRINTED = {**QUOTED, **NEAREST}
# Other names of the same option, as the engine's own parser has them, or the launcher of the unified image.
SAME = dict.fromkeys(("--tp", "--tp-size", "TP"), "--tensor-parallel-size")
# What the endpoint gives in place of the source's, and what no engine reads but Docker.
ENDPOINT = {"--host", "--port", "PORT", "--served-model-name"}
DOCKERS = {"--shm-size"}
NAME = re.compile(r"--[a-z][a-z0-9-]+|\b[A-Z][A-Z0-9]*_[A-Z0-9_]+\b")


def alike(value: str) -> object:
    """`0.8` is `0.80`, and JSON is what it says."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def source(name: str) -> dict[str, object]:
    """The source's options and variables by name."""
    found: dict[str, object] = {}
    words = shlex.split(PRINTED[name])
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        if word.startswith("--"):
            found[SAME.get(word, word)] = "" if following.startswith("--") else alike(following)
        elif "=" in word and not word.startswith("{"):
            variable, _, value = word.partition("=")
            found[SAME.get(variable, variable)] = alike(value) if variable in SAME else value
    return found


def here(recipe: Recipe) -> dict[str, object]:
    """The same of a recipe."""
    found: dict[str, object] = dict(recipe.env)
    for argument, _ in arguments(recipe):
        option, _, value = argument.partition("=")
        found[SAME.get(option, option)] = alike(value)
    return found


def told(recipe: Recipe) -> str:
    return "\n".join(line for evidence in recipe.evidence for line in evidence.changed)


@pytest.mark.parametrize("name", PRINTED)
def test_what_differs_from_the_source_is_told_and_nothing_else_is(name: str) -> None:
    recipe = CATALOGUE.recipe(name)
    printed, ours = source(name), here(recipe)
    differ = {key for key in {*printed, *ours} - ENDPOINT if printed.get(key) != ours.get(key)}
    assert set(NAME.findall(told(recipe))) - DOCKERS == differ


@pytest.mark.parametrize("name", PRINTED)
def test_what_is_patched_beyond_the_source_is_told(name: str) -> None:
    recipe = CATALOGUE.recipe(name)
    words = {"chat-template": "chat template", "quantization-ignore": "ignore list"}
    patched = {words[patch.target] for patch in recipe.patches if patch.target in words}
    assert {word for word in words.values() if word in told(recipe)} == patched


def test_every_recipe_that_is_marked_as_a_quotation_has_one() -> None:
    marked = {name for name, recipe in CATALOGUE.recipes.items() if recipe.quoted}
    assert marked == set(QUOTED)
