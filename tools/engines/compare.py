"""What a release changed against the one before it, and which recipes it refuses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from rigup.catalog.engine_options import check_options, on_file, ordered, release_in
from rigup.catalog.loader import default_catalog
from rigup.resources import RECIPES

DIRECTORY = RECIPES / "engines"


def before(engine: str, version: str) -> Path | None:
    """Return the file of the newest release that is older than this one; None if there is none."""
    older = [(ordered(each), path) for name, each, path in on_file() if name == engine]
    return max(((each, path) for each, path in older if each < ordered(version)), default=(None, None))[1]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Yield the differences between the data of two releases as lines of text."""
    options = old["options"], new["options"]
    yield from _names("options", *map(set, options))
    for name in sorted(set(options[0]) & set(options[1])):
        was, now = options[0][name], options[1][name]
        if isinstance(was, list) and isinstance(now, list):
            yield from _names(f"values of {name}", set(was), set(now))
        elif was != now:
            yield f"{name}: {_kind(was)} -> {_kind(now)}"
    for what in ("architectures", "environment", "quantization"):
        yield from _names(what, set(old[what]), set(new[what]))
    for name in sorted(set(old["quantization"]) & set(new["quantization"])):
        least = old["quantization"][name], new["quantization"][name]
        if least[0] != least[1]:
            yield f"quantization {name} needs capability {least[1]} instead of {least[0]}"
    yield from _names("attention backends that run on 12.0", _runs(old), _runs(new))


def _names(what: str, old: set[str], new: set[str]) -> Iterator[str]:
    for verb, names in (("added", new - old), ("removed", old - new)):
        if names:
            yield f"{what} {verb} ({len(names)}): {', '.join(sorted(names))}"


def _kind(kind: Any) -> str:
    return " ".join(kind) if isinstance(kind, list) else str(kind)


def _runs(data: Mapping[str, Any]) -> set[str]:
    return {name for name, capabilities in data["attention"].items() if "12.0" in capabilities}


def refusals(engine: str, path: Path) -> Iterator[str]:
    """Yield what the release in this file refuses in the catalog's recipes for it, whether they claim it or not."""
    release, catalog = release_in(path), default_catalog()
    for recipe in catalog.recipes.values():
        if recipe.engine.name != engine or recipe.engine.fork or recipe.status == "broken":
            continue
        model = catalog.models.get(catalog.checkpoints[recipe.checkpoint].model)
        high, low = recipe.engine.max, recipe.engine.min
        claims = (low is None or ordered(low) <= ordered(release.version)) and (
            high is None or ordered(release.version) <= ordered(high)
        )
        for complaint in check_options(recipe, release, model.architecture if model else None):
            if not complaint.advice:
                yield f"{'claims it' if claims else 'not claimed'}: {recipe.id}: {complaint.message}"


def read(path: Path) -> dict[str, Any]:
    """Return the data of a release."""
    data: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return data
