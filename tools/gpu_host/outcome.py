"""What came of one thing that was tried on a GPU host, and the environment that its programs get."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    """One row of the report; `ok` is None for what the host could not try."""

    name: str
    means: str
    ok: bool | None
    detail: str
    seconds: float | None = None


def elapsed(began: float) -> float:
    """Return the seconds since a moment of the monotonic clock."""
    return round(time.monotonic() - began, 1)


def environment(*packages: Path, stub: Path | None = None) -> dict[str, str]:
    """Return the environment for a program that needs the packages in these folders.

    With `stub`, a folder, it has a `systemctl` that says nothing: checks note a unit's invocation, and there is no
    systemd.
    """
    variables = {**os.environ, "PYTHONPATH": ":".join(map(str, packages))}
    if stub is not None:
        path = stub / "bin" / "systemctl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/bin/sh\nexit 0\n")
        path.chmod(0o755)
        variables["PATH"] = f"{path.parent}:{variables['PATH']}"
    return variables
