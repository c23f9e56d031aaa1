"""Ask the user to confirm."""

from __future__ import annotations


def agreed(question: str) -> bool:
    """Return whether the answer is yes. Without a terminal it is no."""
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        print()
        return False
