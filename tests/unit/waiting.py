"""Waiting for what will happen: for as long as it takes, short of a hang."""

from __future__ import annotations

import time
from collections.abc import Callable

HANG_S = 300
"""Seconds after which what was waited for counts as hung, on any machine."""


def until(happened: Callable[[], object], goes_on: Callable[[], object] = lambda: True) -> None:
    """Return once `happened` is true. Fails where it is not and `goes_on` no longer is, or where it hangs."""
    deadline = time.monotonic() + HANG_S
    while not happened():
        # What ends may have done it last.
        assert goes_on() or happened(), "it ended before it happened"
        assert time.monotonic() < deadline, f"it did not happen within {HANG_S} s"
        time.sleep(0.02)
