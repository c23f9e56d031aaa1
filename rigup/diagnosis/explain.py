"""Recognize known failures in a log by their fingerprints, and explain what they mean and what to do. Pure.

The fingerprints are in `fingerprints.yaml` next to this file. A cause needs evidence of its own; errors to which many
causes lead are symptoms.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from rigup.config.yaml_file import read_document
from rigup.diagnosis.log import INFORMS, Start, last_start, raised_in

SHOWN = 2
"""The number of causes to report for one log: the first is the most probable, the second often its consequence."""

LINE_WIDTH = 300

Confidence = Literal["certain", "likely"]
WHY: dict[Confidence, str] = {
    "certain": "certain: the line says so itself",
    "likely": "likely: inferred from the lines around it, from the code that raised it, or from where the log ends",
}


def _expression(value: str) -> str:
    # It must also work as a part of another one.
    re.compile(f"(?:{value})")
    return value


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _signs(value: Any) -> Any:
    return [{"line": each} if isinstance(each, str) else each for each in _listed(value)]


Expression = Annotated[str, AfterValidator(_expression)]


class Sign(BaseModel):
    """What to look for in a log: a line and, if that alone says too little, what else the same start must say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    line: Expression
    raised: Expression | None = None
    beside: Annotated[tuple[Expression, ...], BeforeValidator(_listed)] = ()
    ends: bool = False
    general: bool = False

    @property
    def last(self) -> bool:
        """Whether it says only what kind of failure this is, so that all others have precedence."""
        return self.general or self.raised is not None

    @property
    def confidence(self) -> Confidence:
        """How sure it is that a log with this sign has that cause."""
        return "likely" if self.beside or self.ends or self.last else "certain"

    def matches(self, start: Start, at: int) -> bool:
        """Return whether a line of a start matches this sign, without looking at the lines beside it."""
        return bool(re.search(self.line, start.lines[at])) and (
            self.raised is None or bool(re.search(self.raised, raised_in(start.lines, at)))
        )

    def find(self, start: Start, taken: set[int]) -> int | None:
        """Return the number of the line that has this sign and is not yet taken, or None."""
        if self.ends:
            found = start.end_at if re.search(self.line, start.end) else None
        else:
            found = next((at for at in start.evidence if at not in taken and self.matches(start, at)), None)
        if found is None or not all(any(re.search(each, line) for line in start.lines) for each in self.beside):
            return None
        return found


class Fingerprint(BaseModel):
    """A failure that can be recognized by lines in a log; `fingerprints.yaml` explains the fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    log: Annotated[tuple[Sign, ...], BeforeValidator(_signs)]
    meaning: str
    remedy: str | dict[Literal["vllm", "sglang"], str]
    source: str
    fatal: bool = False
    root: bool = False
    symptom: bool = False

    def remedy_for(self, engine: str | None) -> str:
        """Return what to do, in the words of the engine; of all engines if it is unknown."""
        if isinstance(self.remedy, str):
            return self.remedy
        names = {"vllm": "vLLM", "sglang": "SGLang"}
        of_engine = {name: text for name, text in self.remedy.items() if name == engine}
        return of_engine.popitem()[1] if of_engine else " ".join(f"{names[k]}: {v}" for k, v in self.remedy.items())


@dataclass(frozen=True)
class Cause:
    """A fingerprint that was found, the line that has it, and how sure this is."""

    fingerprint: Fingerprint
    line: str
    confidence: Confidence
    remedy: str


@dataclass(frozen=True)
class Diagnosis:
    """What a log says about a failure: causes, the root first, and symptoms, in their order."""

    causes: list[Cause]
    symptoms: list[Cause]

    def lines(self) -> list[str]:
        """Return it as lines of text: the first causes, or the first symptom if there is no cause."""
        told = []
        for at, cause in enumerate(self.causes[:SHOWN]):
            told += _told("Known cause" if at == 0 else "Also seen", cause)
        for symptom in self.symptoms[:1]:
            told += _told("It led to" if self.causes else "Symptom, not a cause", symptom)
        return told


def _told(title: str, cause: Cause) -> list[str]:
    known = cause.fingerprint
    lines = [f"{title}: {known.meaning} ({known.id})", f"    log line   {cause.line[:LINE_WIDTH]}"]
    if not known.symptom:
        lines += [f"    this is    {WHY[cause.confidence]}"]
    if title != "It led to":
        lines += [f"    try this   {cause.remedy}", f"    source     {known.source}"]
    return lines


@cache
def fingerprints() -> tuple[Fingerprint, ...]:
    """Return all known fingerprints, in the order in which to look for them."""
    entries = read_document(Path(__file__).with_name("fingerprints.yaml")).data
    return tuple(Fingerprint.model_validate(entry) for entry in entries)


def diagnose(log: Iterable[str], also: Iterable[str] = ()) -> Diagnosis:
    """Say why the last start in a log failed, given what others, such as its host, say about it.

    A line is evidence for one fingerprint, the first that matches it.
    """
    start = last_start(log, also)
    found: dict[str, tuple[int, int, Cause]] = {}
    taken: set[int] = set()
    for last in (False, True):
        if last and start.ready and not any(cause.fingerprint.symptom for _, _, cause in found.values()):
            break  # An error that ends nothing is a client's mistake.
        for place, known in enumerate(fingerprints()):
            signs = [sign for sign in known.log if sign.last == last and known.id not in found]
            at, sign = next(((at, sign) for sign in signs if (at := sign.find(start, taken)) is not None), (None, None))
            if at is None or sign is None:
                continue
            line = start.end if sign.ends else start.lines[at]
            cause = Cause(known, line, sign.confidence, known.remedy_for(start.engine))
            rank = 0 if known.root else 2 if last else 1
            found[known.id] = (rank, place if known.root else at, cause)
            taken |= {at for at in start.evidence if any(each.matches(start, at) for each in signs)}
    # The earliest is the root cause of the others; lines of the kernel may come after those of the engine, and tell
    # of one fault several times. What names only the kind of failure yields to what names the failure.
    ordered = [cause for _, _, cause in sorted(found.values(), key=lambda each: each[:2])]
    return Diagnosis(
        [cause for cause in ordered if not cause.fingerprint.symptom],
        [cause for cause in ordered if cause.fingerprint.symptom],
    )


def explain(log: Iterable[str], also: Iterable[str] = ()) -> list[str]:
    """Return why the last start in a log failed as lines of text; none if nothing is known."""
    return diagnose(log, also).lines()


def fatal_text() -> str:
    """Return as JSON the lines after which no start becomes ready, for the readiness check on a host."""
    fatal = []
    for each in fingerprints():
        # A line that needs another beside it, or an end, says too little while the log grows.
        alone = [sign.line for sign in each.log if sign.confidence == "certain"]
        if each.fatal and alone:
            expression = "|".join(f"(?:{line})" for line in alone)
            fatal.append(
                {"id": each.id, "log": f"^(?!.{{0,160}}?(?:{INFORMS})).*?(?:{expression})", "meaning": each.meaning}
            )
    return json.dumps(fatal, indent=2) + "\n"
