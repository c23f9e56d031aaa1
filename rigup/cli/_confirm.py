"""A question to the person at the keyboard."""

from __future__ import annotations

__all__ = ["agreed"]


def agreed(question: str) -> bool:
    """Whether the answer is yes; where nobody is there to answer, it is no."""
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        print()
        return False
