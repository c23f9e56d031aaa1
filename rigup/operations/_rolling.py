"""Rolling updates: at most `max_unavailable` hosts stop serving at a time, and none after one that failed.

pyinfra runs an operation on all hosts at the same time. An operation that is about to stop what serves takes a slot
until it serves again and is verified; hosts where nothing serves yet do not wait.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gevent.lock import BoundedSemaphore
from pyinfra.api.exceptions import OperationError
from pyinfra.api.host import Host

from rigup.operations._wait import say


class RollingUpdate:
    """The slots of one run. `failed` is the host that failed in its slot: no other host gets one after that."""

    def __init__(self) -> None:
        self.failed: str | None = None
        self._slots: BoundedSemaphore | None = None
        self._busy: list[str] = []

    @contextmanager
    def slot(self, host: Host, max_unavailable: int) -> Iterator[None]:
        """Hold one of `max_unavailable` slots. Raises OperationError if another host failed in its own."""
        if self._slots is None:
            self._slots = BoundedSemaphore(max_unavailable)
        if self._slots.locked():
            say(host, f"keeps serving until {', '.join(self._busy)} is done")
        with self._slots:
            if self.failed not in (None, host.name):
                raise OperationError(
                    f"rolling update stopped: {self.failed} failed. {host.name} was not changed and still serves. Fix "
                    f"{self.failed} and run again, or continue without it: `--exclude {self.failed}`."
                )
            self._busy.append(host.name)
            try:
                yield
            except BaseException:
                self.failed = self.failed or host.name
                raise
            finally:
                self._busy.remove(host.name)


ROLLING = RollingUpdate()
"""The slots of this run."""
