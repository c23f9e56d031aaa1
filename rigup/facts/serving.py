"""What serving rests on: a verified checkpoint, and the proofs of what was tried on this host."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.facts import FactBase

from rigup.facts._reading import Value, reading

__all__ = ["ModelStamp", "ModelStampValue", "Proof", "ProofValue", "parse_model_stamp", "parse_proof"]

SIZES = "--- sizes"
STATE = "--- state"


@dataclass(frozen=True)
class ModelStampValue(Value):
    """What the stamp beside a checkpoint promises (`repo`, `revision`, `files`, `bytes`) and what is there now.

    `revision` is empty where there is no stamp.
    """

    repo: str = ""
    revision: str = ""
    files: int = 0
    bytes: int = 0
    verified_at: str = ""
    present_files: int = 0
    present_bytes: int = 0

    @property
    def complete(self) -> bool:
        """Verified once, and still as many files and bytes as then."""
        return bool(self.revision) and (self.files, self.bytes) == (self.present_files, self.present_bytes)


@dataclass(frozen=True)
class ProofValue(Value):
    """`record` is what `prove.py` wrote last (empty: nothing), `invocation` the unit's present invocation."""

    record: Mapping[str, Any] = field(default_factory=dict)
    invocation: str = ""

    @property
    def passed_since_start(self) -> bool:
        """Whether all checks passed for the unit as it runs now."""
        made_for = self.record.get("invocation")
        return bool(self.record.get("passed") and self.invocation and made_for == self.invocation)

    def holds(self, digest: str) -> bool:
        """The same, and for this very `digest`."""
        return self.passed_since_start and self.record.get("digest") == digest


def parse_model_stamp(lines: list[str]) -> ModelStampValue:
    """From the stamp's JSON, a separator, and the size of each file."""
    split = lines.index(SIZES)
    text, sizes = "\n".join(lines[:split]), [int(size) for size in lines[split + 1 :]]
    stamp = _object(text)
    return ModelStampValue(
        repo=str(stamp.get("repo", "")),
        revision=str(stamp.get("revision", "")),
        files=int(stamp.get("files", 0)),
        bytes=int(stamp.get("bytes", 0)),
        verified_at=str(stamp.get("verified_at", "")),
        present_files=len(sizes),
        present_bytes=sum(sizes),
    )


def parse_proof(lines: list[str]) -> ProofValue:
    """From the proof's JSON, a separator, and the invocation id."""
    split = lines.index(STATE)
    text = "\n".join(lines[:split])
    return ProofValue(_object(text), "".join(lines[split + 1 :]).strip())


def _object(text: str) -> dict[str, Any]:
    """A JSON object; an empty one where the file is missing or damaged: it says nothing, and is made again."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


class ModelStamp(FactBase[ModelStampValue]):
    """The stamp of the checkpoint in the directory `path` (it stands beside it), and the files that are there."""

    @staticmethod
    def default() -> ModelStampValue:
        return ModelStampValue()

    def command(self, path: str) -> StringCommand:
        return StringCommand(
            "cat --",
            QuoteString(stamp_path(path)),
            f"2>/dev/null; echo; echo '{SIZES}'; find",
            QuoteString(path),
            "-type f -printf '%s\\n' 2>/dev/null || true",
        )

    @reading
    def process(self, output: list[str]) -> ModelStampValue:
        return parse_model_stamp(output)


def stamp_path(path: str) -> str:
    """Where the stamp of the checkpoint directory `path` stands: outside, for the directory is exactly as published."""
    return f"{path.rstrip('/')}.verified.json"


class Proof(FactBase[ProofValue]):
    """The proof in the file `path`, and the present invocation of `unit`, for which it must have been made."""

    @staticmethod
    def default() -> ProofValue:
        return ProofValue()

    def command(self, path: str, unit: str) -> StringCommand:
        return StringCommand(
            "cat --",
            QuoteString(path),
            f"2>/dev/null; echo; echo '{STATE}'; systemctl show --value --property=InvocationID --",
            QuoteString(unit),
            "2>/dev/null || true",
        )

    @reading
    def process(self, output: list[str]) -> ProofValue:
        return parse_proof(output)
