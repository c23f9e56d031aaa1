"""No word of pydantic reaches a person: every kind of error that the schemas can have is said in plain words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from rigup.catalog.checkpoint import Checkpoint
from rigup.catalog.model import Model
from rigup.catalog.recipe import Recipe
from rigup.config.findings import AUDIT_CHECKS, RECIPE_FINDINGS
from rigup.config.inventory import load_inventory
from rigup.config.mistakes import HANDLED, mistakes
from rigup.config.settings import AllKeys
from rigup.errors import InputError
from rigup.lock.lockfile import Lock
from tests.unit.sample import CATALOGUE
from tests.unit.test_hostile_values import CONNECTION, SETTINGS

ROOT = Path(__file__).resolve().parents[2]

# pydantic's kinds of errors, by the kind of schema that has them.
KINDS = {
    "any": set(),
    "bool": {"bool_type", "bool_parsing"},
    "date": {"date_type", "date_parsing", "date_from_datetime_parsing", "date_from_datetime_inexact"},
    "datetime": {"datetime_type", "datetime_parsing", "datetime_from_date_parsing"},
    "dict": {"dict_type"},
    "float": {"float_type", "float_parsing"},
    "int": {"int_type", "int_parsing", "int_parsing_size", "int_from_float"},
    "literal": {"literal_error"},
    "model": {"model_type"},
    "model-fields": {"missing", "extra_forbidden", "invalid_key", "model_attributes_type"},
    "str": {"string_type", "string_unicode"},
    "tagged-union": {"union_tag_not_found", "union_tag_invalid"},
    "tuple": {"tuple_type", "missing"},
    "function-after": {"rigup"},
    "function-before": {"rigup"},
    # These pass on the errors of what they contain.
    **{
        key: set()
        for key in ("default", "definitions", "definition-ref", "model-field", "no-info", "nullable", "union")
    },
}
LIMITS = {
    ("str", "min_length"): "string_too_short",
    ("str", "max_length"): "string_too_long",
    ("str", "pattern"): "string_pattern_mismatch",
    ("ge",): "greater_than_equal",
    ("gt",): "greater_than",
    ("le",): "less_than_equal",
    ("lt",): "less_than",
    ("multiple_of",): "multiple_of",
    ("min_length",): "too_short",
    ("max_length",): "too_long",
}
SAID_ELSEWHERE = {"serialization", "metadata", "default", "json_schema_input_schema"}


def kinds(schema: Any) -> Iterator[str]:
    """Yield the kinds of errors that a schema of pydantic's core can have."""
    if isinstance(schema, dict):
        if isinstance(kind := schema.get("type"), str):
            yield from KINDS[kind]
            yield from (error for (*of, limit), error in LIMITS.items() if limit in schema and of in ([], [kind]))
        for key, inner in schema.items():
            if key not in SAID_ELSEWHERE:
                yield from kinds(inner)
    elif isinstance(schema, list | tuple):
        for inner in schema:
            yield from kinds(inner)


@pytest.mark.parametrize("model", [AllKeys, Recipe, Checkpoint, Model, Lock])
def test_every_kind_of_error_has_words(model: type[BaseModel]) -> None:
    found = set(kinds(model.__pydantic_core_schema__))
    assert {"string_type", "extra_forbidden"} <= found
    # A minimum of one character is said of text, one entry of lists.
    assert found <= HANDLED, found - HANDLED


# What pydantic says, of any kind: its own words for types, and its names for them.
LEAKS = re.compile(
    r"[Ii]nput should|should (be|have|match)|valid (tuple|string|dict|integer|boolean|number|date|list)|unable to|"
    r"instance of|[Ff]ield required|not permitted|constrained|after validation|Value error|Keys should|zero time|"
    r"\\[key\\]|datetime\\.|another value|None"
)
WRONG: tuple[Any, ...] = (
    None, True, 5, -5, 1.5, 10**30, float("inf"), "", "x y", "\u201cx\u201d", [], ["x"], [[1]], [None], {}, {"x": 1},
    {"x": {"x": {}}}, date(2027, 1, 31), datetime(2027, 1, 31, 10), "5", "on", "10.0.0.0/24",
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value inside a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield (*path, key)
        yield from places(each, (*path, key))


def with_value(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a copy of a document with another value at a path."""
    if not path:
        return value
    copied = dict(document) if isinstance(document, dict) else list(document)
    copied[path[0]] = with_value(copied[path[0]], path[1:], value)
    return copied


HOST = {**CONNECTION, **SETTINGS}
NEED = {"address": "a", "recipe": {"for": "agents", "gpus": 4, "engine": "vllm", "model": "x"}}


@pytest.mark.parametrize("path", [*places(HOST), *places(NEED)], ids=lambda path: ".".join(map(str, path)))
def test_no_wrong_value_of_a_setting_is_told_in_words_of_pydantic(tmp_path: Path, path: tuple[Any, ...]) -> None:
    lab, host = tmp_path / "lab.yaml", NEED if path in set(places(NEED)) - {("address",), ("recipe",)} else HOST
    told = 0
    for value in WRONG:
        lab.write_text(yaml.safe_dump({"hosts": {"rig1": with_value(host, path, value)}}))
        try:
            load_inventory(lab)
        except InputError as error:
            told += 1
            for finding in error.findings:
                assert finding.line and finding.key.startswith("hosts.rig1"), finding
                assert not LEAKS.search(f"{finding.key}: {finding.message}: {finding.remedy}"), finding
    assert told


RECIPE = CATALOGUE.recipe("vllm-nvfp4-cu130").model_dump(mode="json", by_alias=True)


@pytest.mark.parametrize("path", [*places(RECIPE)], ids=lambda path: ".".join(map(str, path)))
def test_no_wrong_value_of_a_recipe_is_told_in_words_of_pydantic(tmp_path: Path, path: tuple[Any, ...]) -> None:
    for value in WRONG:
        data = with_value(RECIPE, path, value)
        try:
            Recipe.model_validate(data)
        except ValidationError as error:
            for mistake in mistakes(error, Recipe, data):
                assert not LEAKS.search(f"{mistake.message}: {mistake.remedy}"), mistake


def test_ids_of_findings_are_those_of_the_checks() -> None:
    """A waiver may name them, and no other."""
    checks = "".join(path.read_text() for path in (ROOT / "tests/audit").glob("test_*.py"))
    assert sorted(AUDIT_CHECKS) == sorted(
        name.replace("_", "-") for name in re.findall(r"^def test_(\w+)", checks, re.MULTILINE)
    )
    rules = "".join(path.read_text() for path in (ROOT / "rigup/catalog").glob("*.py"))
    assert sorted(RECIPE_FINDINGS) == sorted(set(re.findall(r'"(recipe-[a-z0-9-]+)"', rules)))
