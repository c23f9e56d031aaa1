"""A rate limit for all of the hub's connections together, which can change during a transfer."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

CHUNK = 256 * 1024
"""Bytes sent at once without a limit."""

TICK = 0.05
"""Seconds per chunk with a limit, so that a changed limit takes effect soon."""


def read_rate(path: Path) -> int:
    """Return the bytes per second in the file; 0, no limit, if it is missing or holds no number."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return max(0, int(path.read_text().strip()))
    return 0


class Throttle:
    """Releases pieces of transfers at no more than `rate()` bytes per second in total."""

    def __init__(
        self,
        rate: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._free_at = 0.0

    def pieces(self, total: int) -> Iterator[int]:
        """Yield sizes that add up to `total`, each when it may be sent."""
        left = total
        while left > 0:
            rate = self._rate()
            size = min(left, CHUNK if rate == 0 else max(1, int(rate * TICK)))
            if rate:
                with self._lock:
                    start = max(self._clock(), self._free_at)
                    self._free_at = start + size / rate
                self._sleep(max(0.0, start - self._clock()))
            yield size
            left -= size
