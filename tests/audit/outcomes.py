"""What came of the checks: one record each, for the lines on the screen, the JSON file and the exit code."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

CLEAN, BLIND, FINDINGS = 0, 1, 2
"""Exit codes: all is as planned; something could not be looked at; something is not as planned."""


@dataclass(frozen=True)
class Outcome:
    """One check on one host. `result` is ok, finding, waived, or unseen (it could not be looked at)."""

    host: str
    check: str
    step: str
    title: str
    severity: str
    settings: tuple[str, ...]
    repair: str
    result: str
    expected: str = ""
    found: str = ""
    note: str = ""

    @property
    def lines(self) -> list[str]:
        """What a person reads below the check's own line."""
        said = [f"expected: {self.expected}", f"found:    {self.found}"] if self.expected else []
        said += [self.note] if self.note else []
        if self.result == "finding":
            source = f"; it comes from {', '.join(self.settings)}" if self.settings else ""
            said += [f"why: {self.title} ({self.severity}{source})", self.repair]
        return said


def exit_code(outcomes: Iterable[Outcome]) -> int:
    results = {outcome.result for outcome in outcomes}
    return FINDINGS if "finding" in results else BLIND if "unseen" in results else CLEAN


def write(path: Path, outcomes: list[Outcome]) -> None:
    """The outcomes as JSON: `result` (clean, findings, blind), counts, and one object for each check."""
    counts = {name: sum(o.result == name for o in outcomes) for name in ("ok", "finding", "waived", "unseen")}
    words = {CLEAN: "clean", BLIND: "blind", FINDINGS: "findings"}
    data = {"result": words[exit_code(outcomes)], "counts": counts, "checks": [asdict(o) for o in outcomes]}
    path.write_text(json.dumps(data, indent=2) + "\n")
