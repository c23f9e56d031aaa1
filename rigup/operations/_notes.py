"""What an operation has found out on a host that the run's report shall tell beside its result."""

from __future__ import annotations

from typing import Any

__all__ = ["note", "taken"]

# A host does one operation at a time.
_notes: dict[str, dict[str, Any]] = {}


def note(host: str, **details: Any) -> None:
    """Have these fields stand in the report, with the operation that `host` is in."""
    _notes.setdefault(host, {}).update(details)


def taken(host: str) -> dict[str, Any]:
    """What was noted since the last call."""
    return _notes.pop(host, {})
