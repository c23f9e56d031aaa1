"""What a switch knows from the disk: the generations, whose files are theirs alone, and what came of earlier switches.

Every write is on the disk before it counts, for a power cut may follow it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(os.environ.get("RIGUP_ROOT", "/"))
ENDPOINTS = ROOT / "etc/rigup/endpoints"
RECORD = ROOT / "var/lib/rigup/switch.json"
# What `Generation.read` raises for one whose files are not.
NOT_WHOLE = (OSError, ValueError, KeyError, TypeError)


@dataclass(frozen=True)
class Generation:
    """What one endpoint is made of."""

    name: str
    id: str
    recipe: str
    start_seconds: int
    prove: list[str]

    @classmethod
    def read(cls, name: str, id: str) -> Generation:
        """Raises NOT_WHOLE."""
        record = json.loads((ENDPOINTS / name / id / "endpoint.json").read_text())
        (ENDPOINTS / name / id / "llm.service").read_text()
        return cls(name, id, str(record["recipe"]), int(record["start_seconds"]), list(record["prove"]))

    @property
    def unit_text(self) -> str:
        return (ENDPOINTS / self.name / self.id / "llm.service").read_text()


def unit_of(name: str) -> str:
    return f"llm@{name}.service"


def generation_of(unit_text: str, name: str) -> Generation | None:
    """The generation that a unit belongs to; None where its files are gone."""
    found = re.search(r"^Generation=(\w+)$", unit_text, re.MULTILINE)
    try:
        return Generation.read(name, found[1]) if found else None
    except NOT_WHOLE:
        return None


def known(path: Path) -> dict[str, Any]:
    """What a file of ours says; nothing where it is missing or damaged."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def drop_last() -> None:
    """Whoever reads the record must not take an earlier switch for one that was cut short."""
    _keep_record({"failed": known(RECORD).get("failed", {})})


def keep_last(last: Mapping[str, Any]) -> None:
    """Say what came of the switch that ends."""
    _keep_record({**known(RECORD), "last": last})


def remember(target: Generation, why: str) -> None:
    """Keep that this generation has failed here, so that it is not tried again unasked."""
    record = known(RECORD)
    entry = {"recipe": target.recipe, "at": now(), "why": why}
    record.setdefault("failed", {}).setdefault(target.name, {})[target.id] = entry
    _keep_record(record)


def forget(served: Iterable[Generation]) -> None:
    """Drop failures of what serves now."""
    record = known(RECORD)
    for target in served:
        record.get("failed", {}).get(target.name, {}).pop(target.id, None)
    _keep_record(record)


def _keep_record(record: Mapping[str, Any]) -> None:
    place(RECORD, json.dumps(record, indent=2) + "\n")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def place(path: Path, text: str) -> None:
    """Write beside and rename; on the disk when this returns."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    with beside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
        os.fchmod(file.fileno(), 0o644)
    os.replace(beside, path)
    keep(path.parent)


def keep(directory: Path) -> None:
    """Have the names in a directory on the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
