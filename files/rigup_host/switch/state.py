"""The state of endpoints on the disk: their generations, and the results of earlier switches.

Every write is on the disk before the next step, since a power cut may follow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rigup_host import files, paths

# What `Generation.read` raises if files are missing or damaged.
INCOMPLETE = (OSError, ValueError, KeyError, TypeError)


@dataclass(frozen=True)
class Generation:
    """One generation of an endpoint: its start may take `start_seconds`, and the command `verify` verifies it."""

    name: str
    id: str
    recipe: str
    start_seconds: int
    verify: list[str]

    @classmethod
    def read(cls, name: str, id: str) -> Generation:
        """Read a generation from its directory. Raise one of INCOMPLETE."""
        record = files.from_json((paths.ENDPOINTS / name / id / "endpoint.json").read_text())
        (paths.ENDPOINTS / name / id / "llm.service").read_text()
        return cls(name, id, str(record["recipe"]), int(record["start_seconds"]), list(record["verify"]))

    @property
    def unit_text(self) -> str:
        """The text of its unit."""
        return (paths.ENDPOINTS / self.name / self.id / "llm.service").read_text()


def unit_of(name: str) -> str:
    """Return the name of an endpoint's unit."""
    return f"llm@{name}.service"


def generation_of(unit_text: str, name: str) -> Generation | None:
    """Return the generation that a unit belongs to; None if its files are gone."""
    found = re.search(r"^Generation=(\w+)$", unit_text, re.MULTILINE)
    try:
        return Generation.read(name, found[1]) if found else None
    except INCOMPLETE:
        return None


def load(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one if the file is missing or damaged."""
    try:
        found = files.from_json(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def drop_last() -> None:
    """Drop the result of the last switch, so that no reader takes it for the result of this one."""
    _write({"failed": load(paths.SWITCHES).get("failed", {})})


def keep_last(last: Mapping[str, Any]) -> None:
    """Write the result of this switch."""
    _write({**load(paths.SWITCHES), "last": last})


def remember(target: Generation, why: str) -> None:
    """Remember that this generation failed here, so that no deploy tries it again unasked."""
    record = load(paths.SWITCHES)
    entry = {"recipe": target.recipe, "at": files.now(), "why": why}
    record.setdefault("failed", {}).setdefault(target.name, {})[target.id] = entry
    _write(record)


def forget(served: Iterable[Generation]) -> None:
    """Forget earlier failures of generations that serve now."""
    record = load(paths.SWITCHES)
    for target in served:
        record.get("failed", {}).get(target.name, {}).pop(target.id, None)
    _write(record)


def _write(record: Mapping[str, Any]) -> None:
    files.write(paths.SWITCHES, json.dumps(record, indent=2) + "\n", durable=True)


def read(path: Path) -> str | None:
    """Return the text of a file; None if it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return None
