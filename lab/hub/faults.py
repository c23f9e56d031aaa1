"""What the hub does wrong on purpose: rules in a JSON file that is read again for every request.

A rule has `fault`, one of FAULTS, and perhaps: `path`, a pattern of the files it holds for (`*`), `times`, how many
answers with content it spoils (no limit), `seconds`, how long it holds after it was first met (no limit), `value`.
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
    "cut": "hang up after every tenth of a file",
    "truncate": "send half of what is left, and call it all",
    "flip": "change one byte in the middle",
    "stall": "stop sending in the middle, and keep the connection",
    "etag": "announce another checksum than the file's",
    "403": "refuse",
    "429": "too many requests; `value`: Retry-After, in seconds or as a date (1)",
    "503": "unavailable",
    "redirect": "send files from another address; `value`: its URL",
    "moved": "the branch names another commit; `value`: 40 hex digits",
}
KEYS = ("fault", "path", "times", "seconds", "value")


@dataclass(frozen=True)
class Rule:
    """One line of misbehaviour."""

    fault: str
    path: str = "*"
    times: int | None = None
    seconds: float | None = None
    value: str | None = None


def parse(text: str) -> Rule:
    """From `FAULT[,KEY=VALUE...]`, as on the command line. Raises ValueError."""
    fault, *options = text.split(",")
    if fault not in FAULTS:
        raise ValueError(f"{fault!r} is no fault: there are {', '.join(FAULTS)}")
    found: dict[str, Any] = {"fault": fault}
    for option in options:
        key, separator, value = option.partition("=")
        if not separator or key not in KEYS[1:]:
            raise ValueError(f"{option!r} is none of {', '.join(f'{key}=' for key in KEYS[1:])}")
        found[key] = int(value) if key == "times" else float(value) if key == "seconds" else value
    return Rule(**found)


def write(path: Path, rules: list[Rule]) -> None:
    """Have the hub that reads `path` follow these rules from now on; none: behave."""
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps([vars(rule) for rule in rules]))
    beside.replace(path)


class Faults:
    """The rules that hold now, and how often each was followed."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._text = ""
        self._rules: list[Rule] = []
        self._followed: list[int] = []
        self._since: list[float | None] = []

    def take(self, kinds: tuple[str, ...], path: str, *, count: bool) -> Rule | None:
        """The first rule of these kinds for a file, counted as followed once more if `count`."""
        with self._lock:
            self._read()
            for number, rule in enumerate(self._rules):
                if rule.fault not in kinds or not fnmatch(path, rule.path):
                    continue
                since = self._since[number] = self._since[number] or time.monotonic()
                if rule.times is not None and self._followed[number] >= rule.times:
                    continue
                if rule.seconds is not None and time.monotonic() - since > rule.seconds:
                    continue
                self._followed[number] += count
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
            self._followed = [0] * len(self._rules)
            self._since = [None] * len(self._rules)
