"""The model store of a host: what lies in it, who uses it, and how far downloads are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.facts import FactBase

from rigup.facts._reading import Value, reading
from rigup.facts.serving import read_object

__all__ = ["FetchProgress", "Stored", "StoredModels", "parse_stored_models"]

STAMP, PLAN = "--- stamp ", "--- plan"
FILE = re.compile(r"(\d+) ([^/]+/[^/]+)/(\.?)([0-9a-f]{40})(\.incoming)?/.+")


@dataclass(frozen=True)
class Stored(Value):
    """A checkpoint in the store: `state` is verified, unverified or arriving; `used_by` names endpoints."""

    repo: str
    revision: str
    bytes: int
    state: str
    verified_at: str = ""
    used_by: tuple[str, ...] = ()


def parse_stored_models(lines: list[str]) -> list[Stored]:
    """From size and path of every file, each stamp, and the plan that the host keeps; by repository and commit."""
    start = next((at for at, line in enumerate(lines) if line.startswith(STAMP) or line == PLAN), len(lines))
    sizes: dict[tuple[str, str, bool], int] = {}
    for line in lines[:start]:
        if match := FILE.fullmatch(line):
            key = (match[2], match[4], bool(match[3] and match[5]))
            sizes[key] = sizes.get(key, 0) + int(match[1])
    sections: dict[str, list[str]] = {}
    for line in lines[start:]:
        if line.startswith(STAMP) or line == PLAN:
            section = sections.setdefault(line, [])
        else:
            section.append(line)
    told = {name: read_object("\n".join(text)) for name, text in sections.items()}
    stamps = {(stamp.get("repo"), stamp.get("revision")): stamp for name, stamp in told.items() if name != PLAN}
    used: dict[tuple[str, str], list[str]] = {}
    for endpoint in told.get(PLAN, {}).get("endpoints", []):
        checkpoint = endpoint["checkpoint"]
        used.setdefault((checkpoint["repo"], checkpoint["revision"]), []).append(endpoint["name"])
    found = []
    for (repo, revision, arriving), size in sorted(sizes.items()):
        stamp = stamps.get((repo, revision), {})
        whole = bool(stamp) and stamp.get("bytes") == size
        state = "arriving" if arriving else "verified" if whole else "unverified"
        verified_at = str(stamp["verified_at"]) if state == "verified" else ""
        found.append(Stored(repo, revision, size, state, verified_at, tuple(used.get((repo, revision), ()))))
    return found


class FetchProgress(FactBase[Mapping[str, Any]]):
    """What the download of `instance` (`CheckpointPlan.instance`) last said of itself; empty before its first word.

    `rigup.progress.progress_line` makes a line of it.
    """

    @staticmethod
    def default() -> Mapping[str, Any]:
        return {}

    def command(self, instance: str) -> StringCommand:
        return StringCommand("cat --", QuoteString(f"/run/rigup-fetch/{instance}/progress.json"), "2>/dev/null || true")

    @reading
    def process(self, output: list[str]) -> Mapping[str, Any]:
        return read_object("\n".join(output))


class StoredModels(FactBase[list[Stored]]):
    """Every checkpoint in the directory `store`: its size, whether it was verified, and the endpoints that use it."""

    @staticmethod
    def default() -> list[Stored]:
        return []

    def command(self, store: str) -> StringCommand:
        place = QuoteString(store)
        return StringCommand(
            "find", place, "-mindepth 4 -type f -printf '%s %P\\n' 2>/dev/null;",
            "find", place, "-mindepth 3 -maxdepth 3 -name '*.verified.json'",
            f"-printf '{STAMP}%P\\n' -exec cat -- {{}} ';' 2>/dev/null;",
            f"echo; echo '{PLAN}'; cat /etc/rigup/plan.json 2>/dev/null || true",
        )  # fmt: skip

    @reading
    def process(self, output: list[str]) -> list[Stored]:
        return parse_stored_models(output)
