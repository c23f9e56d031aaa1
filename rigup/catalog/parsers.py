"""Recognize the parsers of a model: from what the catalog knows of it, or from its architecture and chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, NamedTuple

import yaml

from rigup.catalog.draft_source import Published
from rigup.catalog.model import Model
from rigup.resources import RECIPES

FAMILIES = RECIPES / "parsers" / "families.yaml"


class Chosen(NamedTuple):
    """The parsers of tool calls and of reasoning, None if there is none, and why these."""

    tool: str | None
    reasoning: str | None
    why: str


@cache
def families() -> Sequence[Mapping[str, Any]]:
    """Return the rows of FAMILIES."""
    rows: Sequence[Mapping[str, Any]] = yaml.safe_load(FAMILIES.read_text(encoding="utf-8"))
    return rows


def parsers_of(published: Published, model: Model | None, engine: str) -> Chosen | None:
    """Return the parsers that an engine needs for a checkpoint; None if nothing is known."""
    if model and (known := model.parsers.get(engine)):  # type: ignore[call-overload]
        return Chosen(known.tool[0], known.reasoning[0], f"recipes/models/{model.id}.yaml: {model.sources['parsers']}")
    for row in families():
        if engine in row and _fits(row, published):
            found, marks = row[engine], row.get("marks")
            seen = f"the template has {' and '.join(marks)}; " if marks and published.template else ""
            why = f"{seen}{published.architecture} ({row['source']})"
            return Chosen(found.get("tool"), found.get("reasoning"), why)
    return None


def _fits(row: Mapping[str, Any], published: Published) -> bool:
    if not any(fnmatchcase(published.architecture, pattern) for pattern in row["architectures"]):
        return False
    repos = row.get("repos")
    if repos and not any(fnmatchcase(published.repo.lower(), pattern.lower()) for pattern in repos):
        return False
    return published.template is None or all(mark in published.template for mark in row.get("marks", ()))
