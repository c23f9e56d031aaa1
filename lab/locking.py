"""Locks between processes: several commands of a lab, and labs that share a cache, may run at once."""

import contextlib
import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path


def quietly(_line: str) -> None:
    """Discard a progress line."""


@contextlib.contextmanager
def exclusive(path: Path, say: Callable[[str], None] = quietly, waiting: str = "") -> Iterator[None]:
    """Hold the lock file `path`; `say` the text `waiting` when another process holds it.

    The lock ends with the process, however that ends. Does not nest.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(waiting)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
