"""The result of a measurement as evidence: what was measured, on what, and how, in one file that says it all."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from rigup import atomic
from rigup.errors import RigupError
from rigup.measure.figures import LevelFigures, Targets, ToolCalls
from rigup.measure.records import Loop, Repeat, Request, Sample


class Card(BaseModel):
    """A card that the endpoint uses; `power_limit` in watts, None if it has none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: int
    name: str
    uuid: str
    power_limit: float | None


class Evidence(BaseModel):
    """A result. `complete` is False if the measurement was interrupted; `records` are what the figures come from.

    `at` is when it began (ISO 8601, UTC), `lock` the sha256 of the lock file, `generation` the digest of the endpoint.
    `drafter` is its checkpoint as REPO@COMMIT, if it has one of its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: int
    rigup: str
    at: str
    command: str
    complete: bool
    host: str
    endpoint: str
    engine: str
    recipe: str
    generation: str
    image: str | None
    image_tag: str | None
    packages: list[str]
    repo: str
    revision: str
    drafter: str | None = None
    driver: str | None
    cards: list[Card]
    lock: str | None
    targets: Targets
    levels: list[LevelFigures]
    tool_calls: list[ToolCalls]
    records: list[Request | Repeat | Sample | Loop]


def path_of(evidence: Evidence, inventory: Path) -> Path:
    """Return the file of a result: in `evidence/` next to the inventory."""
    at = re.sub(r"[^0-9T-]", "-", evidence.at.removesuffix("+00:00"))
    return inventory.parent / "evidence" / f"{evidence.host}-{evidence.endpoint}-{at}.json"


def write(evidence: Evidence, path: Path) -> None:
    """Write a result, completely or not at all. Raises RigupError."""
    try:
        path.parent.mkdir(exist_ok=True)
        atomic.write(path, evidence.model_dump_json(indent=1) + "\n", 0o644)
    except OSError as error:
        raise RigupError(f"{path} cannot be written: {error.strerror}", "check its directory") from error


def read(path: Path) -> Evidence:
    """Read a result. Raises RigupError if it cannot be read or is not one."""
    try:
        return Evidence.model_validate_json(path.read_bytes())
    except OSError as error:
        raise RigupError(f"{path} cannot be read: {error.strerror}", "name a file that `rigup bench` wrote") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RigupError(
            f"{path} is not a result of this rigup: {where}: {first['msg']}", "name a file that `rigup bench` wrote"
        ) from error
