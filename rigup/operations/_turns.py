"""A fleet changes host by host: what interrupts serving waits for its turn, and stops where a turn before it failed.

pyinfra runs one operation on all hosts side by side. An operation that is about to stop what serves takes a turn for as
long as it needs to have it serve again, and proven; hosts where nothing serves yet do not wait for anybody.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gevent.lock import BoundedSemaphore
from pyinfra.api.exceptions import OperationError
from pyinfra.api.host import Host

from rigup.operations._host import say

__all__ = ["TURNS", "Turns"]


class Turns:
    """The turns of one run. `failed` is the host whose turn did not end well: no other begins after it."""

    def __init__(self) -> None:
        self.failed: str | None = None
        self._slots: BoundedSemaphore | None = None
        self._busy: list[str] = []

    @contextmanager
    def take(self, host: Host, max_unavailable: int) -> Iterator[None]:
        """Hold one of `max_unavailable` turns. Raises OperationError where another host's failed."""
        if self._slots is None:
            self._slots = BoundedSemaphore(max_unavailable)
        if self._slots.locked():
            say(host, f"serves on until it is its turn, after {', '.join(self._busy)}")
        with self._slots:
            if self.failed not in (None, host.name):
                raise OperationError(
                    f"{host.name} serves on as before: {self.failed} did not come through its turn. Put that right "
                    f"and run again, or go on without it: `--exclude {self.failed}`."
                )
            self._busy.append(host.name)
            try:
                yield
            except BaseException:
                self.failed = self.failed or host.name
                raise
            finally:
                self._busy.remove(host.name)


TURNS = Turns()
"""Those of this run."""
