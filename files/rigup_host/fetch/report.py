"""What a download reports while it runs: lines for the journal, and a progress file."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from rigup_host import files

WRITE_EVERY_S = 1.0
RATE_OVER_S = 30.0


def say(message: str) -> None:
    """Print one line at once."""
    print(message, flush=True)


class Progress:
    """A small JSON file that shows how far the download is."""

    def __init__(self, path: Path | None, total: int) -> None:
        self.path = path
        self.total = total
        self.began_at = files.now()
        self._step = ""
        self._written_at = 0.0
        self._seen: deque[tuple[float, int]] = deque()

    def tell(self, step: str, done: int, doing: str = "") -> None:
        """Write the file, at most once a second unless the step is a new one.

        `done` is in bytes; the rate is in bytes per second over the last RATE_OVER_S.
        """
        moment = time.monotonic()
        if step != self._step:
            self._seen.clear()
        elif moment - self._written_at < WRITE_EVERY_S:
            return
        self._step, self._written_at = step, moment
        self._seen.append((moment, done))
        while moment - self._seen[0][0] > RATE_OVER_S:
            self._seen.popleft()
        since, before = self._seen[0]
        rate = (done - before) / (moment - since) if moment > since else 0.0
        report = {"step": step, "doing": doing, "bytes_done": done, "bytes_total": self.total, "rate": round(rate)}
        if self.path is not None:
            files.write(self.path, json.dumps({**report, "began_at": self.began_at, "at": files.now()}) + "\n")


class Counted:
    """Adds up the bytes that several threads have verified, and passes on the sum."""

    def __init__(self, on_read: Callable[[int], None]) -> None:
        self._on_read = on_read
        self._lock = threading.Lock()
        self._count = 0

    def __call__(self, count: int) -> None:
        with self._lock:
            self._count += count
            self._on_read(self._count)
