"""Merge a recipe with the one that it extends, and remember file and line of every value.

Mappings are merged key by key, and `null` removes a key. Lists and all other values replace the inherited one. `argv`
is either a list, which replaces the inherited one, or `{remove: [--option, ...], add: [--option=value, ...]}`: the
options under `remove` must exist and are removed first; those under `add` must not exist and are appended. The keys in
OWN, which say how far to trust a recipe, are never inherited: nobody tried the variant.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rigup.catalog.recipe import option_name
from rigup.config.yaml_file import Document, Loc, dotted
from rigup.errors import Finding, near

OWN = ("id", "title", "extends", "status", "superseded_by", "tool_calls", "evidence", "caveats", "findings")
SECTIONS = ("add", "remove")


class Place(NamedTuple):
    """The place where a value is written."""

    document: Document
    loc: Loc

    def __str__(self) -> str:
        return f"{self.document.path.name}:{self.document.line(self.loc)}"


@dataclass
class Merged:
    """The data of a recipe, merged with all that it extends, and the place of each value."""

    document: Document
    data: Any
    places: dict[Loc, Place] = field(default_factory=dict)

    def place(self, loc: Loc) -> Place:
        """Return where `loc`, or its nearest parent, is written."""
        for length in range(len(loc), 0, -1):
            if found := self.places.get(loc[:length]):
                return found
        return Place(self.document, loc)

    def written(self, loc: Loc) -> str | None:
        """Return how a value other than text is written, None if that is not known."""
        place = self.places.get(loc)
        return place.document.texts.get(place.loc) if place else None

    def finding(self, loc: Loc, message: str, remedy: str = "") -> Finding:
        """Return a finding about `loc`, with the file and line where it is written."""
        place = self.place(loc)
        line = place.document.line(place.loc)
        return Finding(str(place.document.path), line, dotted(loc), message, remedy)


def merge(document: Document, base: Merged | None, findings: list[Finding]) -> Merged:
    """Return a document merged with what it extends; what cannot be merged is added to `findings`."""
    result = Merged(document, {})
    if not isinstance(document.data, dict):
        result.data = document.data
        return result
    if base is not None and isinstance(base.data, dict):
        result.data = {key: copy.deepcopy(value) for key, value in base.data.items() if key not in OWN}
        result.places = {loc: place for loc, place in base.places.items() if loc[0] not in OWN}
    changes = dict(document.data)
    if base is not None and isinstance(changes.get("argv"), Mapping):
        _argv(result, changes.pop("argv"), findings)
    _merge(result, result.data, changes, ())
    return result


def _merge(result: Merged, into: dict[str, Any], changes: Mapping[Any, Any], at: Loc) -> None:
    for key, value in changes.items():
        loc = (*at, str(key))
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(result, into[key], value, loc)
            continue
        for old in [place for place in result.places if place[: len(loc)] == loc]:
            del result.places[old]
        if value is None and key in into:
            del into[key]
            continue
        into[key] = copy.deepcopy(value)
        for each in result.document.lines:
            if each[: len(loc)] == loc:
                result.places[each] = Place(result.document, each)


def _argv(result: Merged, changes: Mapping[Any, Any], findings: list[Finding]) -> None:
    document = result.document

    def wrong(loc: Loc, message: str, remedy: str = "") -> None:
        findings.append(document.finding(("argv", *loc), message, remedy))

    lists: dict[str, list[str]] = {section: [] for section in SECTIONS}
    for key, value in changes.items():
        if key not in SECTIONS:
            wrong((str(key),), "unknown key", f"known keys: {', '.join(SECTIONS)}")
        elif not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            wrong((key,), "must be a list of strings")
        else:
            lists[key] = value
    old = result.data.get("argv")
    old = old if isinstance(old, list) else []
    kept = [(item, result.place(("argv", index))) for index, item in enumerate(old)]
    for index, name in enumerate(lists["remove"]):
        names = [option_name(str(item)) for item, _ in kept]
        if option_name(name) not in names:
            meant = near(name, names)
            there = f"the recipe has {', '.join(names) or 'no options'}"
            remedy = f"did you mean {' or '.join(meant)}?" if meant else there
            wrong(("remove", index), f"{name} is not an option of the extended recipe", remedy)
        kept = [(item, place) for item, place in kept if option_name(str(item)) != option_name(name)]
    for index, item in enumerate(lists["add"]):
        if option_name(item) in [option_name(str(other)) for other, _ in kept]:
            wrong(("add", index), f"{option_name(item)} already exists", "list it under argv.remove too")
        kept.append((item, Place(document, ("argv", "add", index))))
    for loc in [loc for loc in result.places if loc[0] == "argv"]:
        del result.places[loc]
    result.data["argv"] = [item for item, _ in kept]
    result.places |= {("argv", index): place for index, (_, place) in enumerate(kept)}
