"""Files that programs write, completely or not at all, and JSON that they read."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def write(path: Path, text: str, *, mode: int = 0o644, durable: bool = False) -> None:
    """Replace `path` in one step, so that no reader sees half of it; make its directory if needed.

    With `durable`, file and name are on the disk when this returns and survive a power cut.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    # Always the same name: what a killed process leaves is replaced by the next one. A link that somebody else has put
    # there is not followed.
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        # The umask may have removed bits.
        os.fchmod(file.fileno(), mode)
        file.write(text)
        file.flush()
        if durable:
            os.fsync(file.fileno())
    os.replace(temporary, path)
    if durable:
        sync_directory(path.parent)


def from_json(text: str | bytes) -> Any:
    """Parse JSON. Raise ValueError, whatever is wrong with it: nesting that is too deep, too."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def sync_directory(directory: Path) -> None:
    """Write the names in a directory to the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def now() -> str:
    """Return the time in UTC, as ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
