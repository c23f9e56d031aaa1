"""Spares a run what pyinfra and Python do again and again, or for nothing."""

from __future__ import annotations

import atexit
import functools
import gc
import inspect

from pyinfra.api import arguments, util

__all__ = ["at_once"]

BETWEEN_COLLECTIONS = 50_000
"""New objects between two searches for garbage: with Python's 700 there are many while modules are read."""


def at_once() -> None:
    """Begin to spare, in this process, where pyinfra runs. Nothing but time changes."""
    gc.set_threshold(BETWEEN_COLLECTIONS)
    # As it ends, the interpreter looks for garbage among all that is left: 0.1 s.
    atexit.register(gc.freeze)
    # pyinfra 3.10 asks for the call stack twice at each operation, and wants its files and lines, not their text.
    util.stack = functools.partial(inspect.stack, 0)  # type: ignore[attr-defined]
    util.getframeinfo = functools.partial(inspect.getframeinfo, context=0)  # type: ignore[attr-defined]
    # At each operation and each fact it works out the same types from the same words.
    arguments.all_global_arguments = functools.cache(arguments.all_global_arguments)
