"""What an operation has found out on a host, for the run's report."""

from __future__ import annotations

from typing import Any

# A host runs one operation at a time.
_notes: dict[str, dict[str, Any]] = {}


def note(host: str, **details: Any) -> None:
    """Add these fields to the report of the operation that `host` is running."""
    _notes.setdefault(host, {}).update(details)


def taken(host: str) -> dict[str, Any]:
    """Return what was noted since the last call."""
    return _notes.pop(host, {})
