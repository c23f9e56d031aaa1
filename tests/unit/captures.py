"""Real output of real machines, kept outside the project; tests that read it skip where it is not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

__all__ = ["capture", "section"]

PLACE = Path(__file__).resolve().parents[3] / "shared" / "captures"


def capture(name: str) -> list[str]:
    """The lines of one capture, from the directory in RIGUP_CAPTURES or the one beside the checkout."""
    path = Path(os.environ.get("RIGUP_CAPTURES") or PLACE) / name
    if not path.is_file():
        pytest.skip(f"no captures here: {path} (set RIGUP_CAPTURES to their directory)")
    return path.read_text(errors="replace").splitlines()


def section(name: str, title: str) -> list[str]:
    """What stands under the line `##### TITLE` of a capture, up to the next such line."""
    lines = capture(name)
    start = lines.index(f"##### {title}") + 1
    end = next((at for at, line in enumerate(lines[start:], start) if line.startswith("##### ")), len(lines))
    return lines[start:end]
