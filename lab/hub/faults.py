"""Faults that the hub simulates: rules in a JSON file that is read at every request.

A rule has `fault`, one of FAULTS, and optionally `path`, a pattern of the files it applies to (`*`), `times`, how many
answers it affects (no limit), `seconds`, how long it lasts after its first match (no limit), and `value`.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

FAULTS = {
    "cut": "disconnect after every tenth of a file",
    "truncate": "send half of the rest as if it were all of it",
    "flip": "change one byte in the middle",
    "stall": "stop sending in the middle and keep the connection open",
    "etag": "announce a wrong checksum",
    "403": "refuse",
    "429": "too many requests; `value`: Retry-After, in seconds or as a date (1)",
    "503": "unavailable",
    "redirect": "redirect files to another address; `value`: its URL",
    "moved": "resolve the branch to another commit; `value`: 40 hex digits",
}
KEYS = ("fault", "path", "times", "seconds", "value")


@dataclass(frozen=True)
class Rule:
    """One fault and when it applies."""

    fault: str
    path: str = "*"
    times: int | None = None
    seconds: float | None = None
    value: str | None = None


def parse(text: str) -> Rule:
    """Parse `FAULT[,KEY=VALUE...]`, as on the command line. Raises ValueError."""
    fault, *options = text.split(",")
    if fault not in FAULTS:
        raise ValueError(f"{fault!r} is not a fault; faults are {', '.join(FAULTS)}")
    found: dict[str, Any] = {"fault": fault}
    for option in options:
        key, separator, value = option.partition("=")
        if not separator or key not in KEYS[1:]:
            raise ValueError(f"{option!r} must be one of {', '.join(f'{key}=' for key in KEYS[1:])}")
        found[key] = int(value) if key == "times" else float(value) if key == "seconds" else value
    return Rule(**found)


def write(path: Path, rules: list[Rule]) -> None:
    """Make the hub that reads `path` follow these rules from now on."""
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps([vars(rule) for rule in rules]))
    beside.replace(path)


class Faults:
    """The current rules, and how often each was applied."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._text = ""
        self._rules: list[Rule] = []
        self._applied: list[int] = []
        self._since: list[float | None] = []

    def take(self, kinds: tuple[str, ...], path: str) -> Rule | None:
        """Return the first rule of these kinds for a file, and count it as applied."""
        with self._lock:
            self._read()
            for number, rule in enumerate(self._rules):
                if rule.fault not in kinds or not fnmatch(path, rule.path):
                    continue
                since = self._since[number] = self._since[number] or time.monotonic()
                if rule.times is not None and self._applied[number] >= rule.times:
                    continue
                if rule.seconds is not None and time.monotonic() - since > rule.seconds:
                    continue
                self._applied[number] += 1
                return rule
        return None

    def _read(self) -> None:
        try:
            text = self._path.read_text() if self._path else ""
        except FileNotFoundError:
            text = ""
        if text != self._text:
            self._text = text
            self._rules = [Rule(**each) for each in json.loads(text or "[]")]
            self._applied = [0] * len(self._rules)
            self._since = [None] * len(self._rules)
