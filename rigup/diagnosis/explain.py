"""Recognize known failures in a log by their fingerprints, and explain what they mean and what to do. Pure.

The fingerprints are in `fingerprints.yaml` next to this file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from rigup.config.yaml_file import read_document

SHOWN = 2
"""The number of causes to report for one log: the first is the most probable, the second often its consequence."""

LINE_WIDTH = 300
# What `wait-ready` on the host reports about a start that has stalled.
STALLED = re.compile(r"the start has stalled: .*; last log line: (.*)")
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def _expression(value: str) -> str:
    re.compile(value)
    return value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Fingerprint(BaseModel):
    """A failure that can be recognized by lines in a log; `fingerprints.yaml` explains the fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    log: Annotated[tuple[Annotated[str, AfterValidator(_expression)], ...], BeforeValidator(_listed)]
    meaning: str
    remedy: str
    source: str
    fatal: bool = False
    stalled: bool = False

    @property
    def expression(self) -> str:
        """The regular expression for a line of the log."""
        return "|".join(f"(?:{each})" for each in self.log)


@dataclass(frozen=True)
class Cause:
    """A fingerprint that was found, and the line that matches it."""

    fingerprint: Fingerprint
    line: str


@cache
def fingerprints() -> tuple[Fingerprint, ...]:
    """Return all known fingerprints, in the order in which to look for them."""
    entries = read_document(Path(__file__).with_name("fingerprints.yaml")).data
    return tuple(Fingerprint.model_validate(entry) for entry in entries)


def causes(lines: Iterable[str]) -> list[Cause]:
    """Return the known causes in a log, the most probable first, each with the first line that matches it."""
    log = [line for line in (ANSI.sub("", line).strip() for line in lines) if line]
    last_lines = [match[1] for line in log if (match := STALLED.search(line))]
    found = []
    for fingerprint in fingerprints():
        expression = re.compile(fingerprint.expression)
        looked_at = last_lines if fingerprint.stalled else log
        if line := next((line for line in looked_at if expression.search(line)), None):
            found.append(Cause(fingerprint, line))
    return found


def explain(lines: Iterable[str]) -> list[str]:
    """Return the known causes in a log as lines of text; none if nothing is known."""
    explained = []
    for at, cause in enumerate(causes(lines)[:SHOWN]):
        known = cause.fingerprint
        explained += [
            f"{'Known cause' if at == 0 else 'Also seen'}: {known.meaning} ({known.id})",
            f"    log line   {cause.line[:LINE_WIDTH]}",
            f"    try this   {known.remedy}",
            f"    source     {known.source}",
        ]
    return explained


def fatal_text() -> str:
    """Return as JSON the lines after which no start becomes ready, for the readiness check on a host."""
    fatal = [{"id": each.id, "log": each.expression, "meaning": each.meaning} for each in fingerprints() if each.fatal]
    return json.dumps(fatal, indent=2) + "\n"
