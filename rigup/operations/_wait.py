"""Wait for something on a host, with a line of progress now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from pyinfra.api.host import Host

from rigup.text import duration

REPORT_EVERY_S = 10.0

T = TypeVar("T")


def say(host: Host, message: str) -> None:
    """Log one line of progress."""
    host.log(f"    {message}")


def pause(seconds: float) -> None:
    """Sleep. pyinfra's command line patches `sleep` so that the work on other hosts continues."""
    time.sleep(seconds)


class Clock:
    """The time of one wait: its limit, and when the next line of progress is due."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.started = time.monotonic()
        self._reported = self.started
        self._pause = 0.2

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started

    @property
    def is_up(self) -> bool:
        return self.elapsed_s >= self.limit_s

    def is_due(self) -> bool:
        """Return whether a line of progress is due; if so, the next one is due REPORT_EVERY_S from now."""
        now = time.monotonic()
        if now - self._reported < REPORT_EVERY_S:
            return False
        self._reported = now
        return True

    def pause(self) -> None:
        """Sleep for a moment that grows from 0.2 to 2 seconds, so that short waits end at once."""
        pause(self._pause)
        self._pause = min(2.0, self._pause * 1.6)

    def __str__(self) -> str:
        return f"{duration(self.elapsed_s)} of at most {duration(self.limit_s)}"


def wait_until(host: Host, clock: Clock, poll: Callable[[], T | None], progress: Callable[[], str]) -> T | None:
    """Call `poll` until it returns a value, and return that; None once the time is up.

    `progress` is called whenever a line is due; an empty one is not logged.
    """
    while (found := poll()) is None:
        if clock.is_up:
            return None
        if clock.is_due() and (line := progress()):
            say(host, line)
        clock.pause()
    return found
