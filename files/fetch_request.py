"""What a download is asked for, and what it says of itself while it runs."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fetch_sources import Peer
from fetch_store import REVISION, File, Hopeless, Store, now, write

TELL_S = 1.0
RATE_OVER_S = 30.0


@dataclass(frozen=True)
class Request:
    """What to fetch, where from, and where to."""

    store: Store
    hubs: tuple[str, ...]
    venv: Path
    sources: tuple[Path, ...]
    name: str
    peers: tuple[Peer, ...]

    @classmethod
    def read(cls, path: Path) -> Request:
        """Raises Hopeless for a request that makes no sense."""
        try:
            data = json.loads(path.read_text())
            files = {name: File.read(name, entry) for name, entry in data["files"].items()}
            store = Store(str(data["repo"]), str(data["revision"]), Path(data["dest"]), files)
            peers = [Peer(n["name"], n["address"], int(n["port"])) for n in data.get("peers", [])]
            request = cls(
                store=store,
                hubs=tuple(map(str, data["hubs"])),
                venv=Path(data["venv"]),
                sources=tuple(map(Path, data.get("sources", []))),
                name=str(data.get("name", "")),
                peers=tuple(peers),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Hopeless(f"{path} is no request: {type(error).__name__}: {error}") from error
        if not REVISION.fullmatch(store.revision):
            raise Hopeless(f"{path}: revision {store.revision!r} is no commit of 40 hex digits")
        if not store.dest.is_absolute() or len(store.dest.parts) < 4:
            raise Hopeless(f"{path}: dest {data['dest']!r} is no absolute directory of a store")
        if not files or not request.hubs:
            raise Hopeless(f"{path} names no files or no hubs")
        return request


def credential() -> tuple[str, str] | None:
    """The host that a token is for, and the token."""
    path = Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent"), "hub-token")
    try:
        told = json.loads(path.read_text())
        return str(told["host"]), str(told["token"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Progress:
    """One small JSON file that says how far it is, for whoever waits."""

    def __init__(self, path: Path | None, total: int) -> None:
        self.path = path
        self.total = total
        self.began_at = now()
        self._step = ""
        self._told_at = 0.0
        self._seen: deque[tuple[float, int]] = deque()

    def tell(self, step: str, done: int, doing: str = "") -> None:
        """At most once a second, unless the step is another one. The rate is bytes per second over the last while."""
        moment = time.monotonic()
        if step != self._step:
            self._seen.clear()
        elif moment - self._told_at < TELL_S:
            return
        self._step, self._told_at = step, moment
        self._seen.append((moment, done))
        while moment - self._seen[0][0] > RATE_OVER_S:
            self._seen.popleft()
        since, before = self._seen[0]
        rate = (done - before) / (moment - since) if moment > since else 0.0
        told = {"step": step, "doing": doing, "bytes_done": done, "bytes_total": self.total, "rate": round(rate)}
        if self.path is not None:
            write(self.path, json.dumps({**told, "began_at": self.began_at, "at": now()}) + "\n")


class Counted:
    """Bytes read while verifying, added up over threads."""

    def __init__(self, told: Callable[[int], None]) -> None:
        self._told = told
        self._lock = threading.Lock()
        self._count = 0

    def __call__(self, count: int) -> None:
        with self._lock:
            self._count += count
            self._told(self._count)
