"""The results of the checks: one record each, for the screen, the JSON file and the exit code."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from rigup import commands

CLEAN, INCOMPLETE, FINDINGS = 0, 1, 2
"""Exit codes: everything is as planned; a check could not run; something is not as planned."""

WORDS = {"ok": "ok", "finding": "FAILED", "waived": "waived", "unchecked": "not checked"}
"""How each result of a check is shown."""


@dataclass(frozen=True)
class Outcome:
    """One check on one host. `result` is ok, finding, waived, or unchecked (the check could not run)."""

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
        """The lines shown below the check's own line."""
        lines = [f"expected: {self.expected}", f"found:    {self.found}"] if self.expected else []
        lines += [self.note] if self.note else []
        if self.result == "finding":
            plural = "s" if len(self.settings) > 1 else ""
            source = f"; setting{plural}: {', '.join(self.settings)}" if self.settings else ""
            lines += [f"why: {self.title} ({self.severity}{source})", self.repair]
        return lines


def bare(host: str) -> str:
    """Return what to say about a host on which nothing is deployed."""
    return f"{host}: nothing is deployed here. Next: `{commands.deploy([host])}`"


def exit_code(outcomes: Iterable[Outcome], bare: Collection[str] = ()) -> int:
    """Return FINDINGS if there is a finding or a bare host, else INCOMPLETE if a check could not run, else CLEAN."""
    results = {outcome.result for outcome in outcomes}
    return FINDINGS if bare or "finding" in results else INCOMPLETE if "unchecked" in results else CLEAN


def write(path: Path, outcomes: list[Outcome], bare: list[str]) -> None:
    """Write the outcomes as JSON: `result` (clean, findings, incomplete), counts, one object per check, bare hosts."""
    counts = {name: sum(outcome.result == name for outcome in outcomes) for name in WORDS}
    words = {CLEAN: "clean", INCOMPLETE: "incomplete", FINDINGS: "findings"}
    data = {
        "result": words[exit_code(outcomes, bare)],
        "counts": counts,
        "checks": [asdict(o) for o in outcomes],
        "bare": bare,
    }
    path.write_text(json.dumps(data, indent=2) + "\n")
