"""The events of one run: in memory, and in a directory of the run once something happens. Secrets are masked."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rigup import atomic


class EventLog:
    """A list of events that is written to a new directory below `runs`, on request."""

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        self._secrets: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.folder: Path | None = None

    def hide(self, secrets: Iterable[str]) -> None:
        """Mask these strings in all later events."""
        self._secrets = sorted(set(secrets), key=len, reverse=True)

    def add(self, event: str, **details: Any) -> None:
        """Add an event of now."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        self.events.append({"at": at, "event": event, **self._masked(details)})
        if self.folder is not None:
            self._append(self.events[-1:])

    def write(self) -> None:
        """Create the run's directory with all events so far. From then on, events are written as they are added."""
        if self.folder is not None:
            return
        name = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S")
        for suffix in ("", *(f"-{number}" for number in range(2, 100))):
            folder = self._runs / f"{name}{suffix}"
            try:
                folder.mkdir(parents=True, mode=0o700)
            except FileExistsError:
                continue
            self.folder = folder
            self._append(self.events)
            return

    def write_report(self, report: Any) -> Path | None:
        """Write ``report.json`` into the run's directory. Returns its path, or None if there is no directory."""
        if self.folder is None:
            return None
        path = self.folder / "report.json"
        atomic.write(path, json.dumps(report, indent=2) + "\n", 0o644)
        return path

    def _masked(self, value: Any) -> Any:
        """Return the value without secrets, before it becomes JSON, which escapes quotes and umlauts in them."""
        if isinstance(value, str):
            for secret in self._secrets:
                value = value.replace(secret, "***")
            return value
        if isinstance(value, dict):
            return {key: self._masked(inner) for key, inner in value.items()}
        return [self._masked(inner) for inner in value] if isinstance(value, list) else value

    def _append(self, events: Iterable[dict[str, Any]]) -> None:
        assert self.folder is not None
        with (self.folder / "events.jsonl").open("a") as file:
            file.writelines(json.dumps(event) + "\n" for event in events)
