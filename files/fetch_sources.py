"""Where the files of a checkpoint come from: hubs, through their client, and peers, through rsync.

Nobody is believed: whatever arrives is verified against the list of published files, and a source that sent something
else is not asked for that file again.
"""

from __future__ import annotations

import json
import os
import queue
import re
import subprocess
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fetch_store import File, Store, write

CLIENT = Path(__file__).with_name("fetch_hub.py")
# Host programs stand side by side; rsync would take other characters for a pattern.
PLAIN = re.compile(r"[A-Za-z0-9._/+@=,-]+")
# One that does not even refuse a connection costs that long each time; it is asked again only after a while.
PATIENCE_S, DEAF_S, REST_S = 2.0, 30.0, 5.0
RSYNC = ("rsync", "--quiet", "--contimeout=3")


class Hub:
    """One hub: a process of its client at work on some files, and how it has fared."""

    def __init__(self, url: str, store: Store, venv: Path, token: str | None, home: Path, stall: float) -> None:
        self.url = url
        self.name = urlsplit(url).netloc
        # Off for good once it has failed, stalled or brought something else.
        self.xet = True
        self.rest_until = 0.0
        self.patience_until = 0.0
        self.setbacks = 0
        self.setback = ""
        self.hopeless: str | None = None
        self.at_work: set[str] = set()
        self.in_memory = 0
        self._store = store
        self._venv = venv
        self._token = token
        self._home = home
        # A connection that stalls is dropped alone, and well before all of the client is.
        self._timeout_s = max(1, round(stall * 2 / 3))
        self._process: subprocess.Popen[str] | None = None
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        self._lost: list[dict[str, Any]] = []

    @property
    def is_ready(self) -> bool:
        return self.hopeless is None and time.monotonic() >= self.rest_until

    def order(self, file: File) -> None:
        """Have one more file transferred."""
        if self._process is not None and (status := self._process.poll()) is not None:
            # Its own word of that would come too late, for the next client's ear.
            self._lost += self._end(status)
        if self._process is None:
            self._start()
        assert self._process is not None and self._process.stdin is not None
        self.at_work.add(file.path)
        order = {"path": file.path, "size": file.size, "to": str(self._store.arriving(file)), "xet": self.xet}
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            # `events` says so of every file that it was at.
            pass

    def _start(self) -> None:
        arguments = ["--endpoint", self.url, "--repo", self._store.repo, "--revision", self._store.revision]
        process = subprocess.Popen(
            [str(self._venv / "bin" / "python"), str(CLIENT), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self._environment(),
            text=True,
            start_new_session=True,
        )
        self._process = process
        threading.Thread(target=self._listen, args=(process,), daemon=True).start()

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            # A client that is killed may not come to the end of its last line.
            with suppress(ValueError):
                self._events.put({**json.loads(line), "from": process.pid})
        self._events.put({"ended": process.wait(), "from": process.pid})

    def _environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if key not in ("HF_TOKEN", "HF_TOKEN_PATH")}
        ours = {
            "HF_HOME": str(self._home),
            "HF_ENDPOINT": self.url,
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": str(self._timeout_s),
            "HF_XET_CLIENT_READ_TIMEOUT": f"{self._timeout_s}s",
            "HF_HUB_ETAG_TIMEOUT": "60",
        }
        return {**kept, **ours, **({"HF_TOKEN": self._token} if self._token else {})}

    def events(self) -> list[dict[str, Any]]:
        """What the client has said since, `failed` for each file that it was at when it ended."""
        told, self._lost = self._lost, []
        while not self._events.empty():
            event = self._events.get()
            if self._process is None or event["from"] != self._process.pid:
                continue
            if "in_memory" in event:
                self.in_memory = event["in_memory"]
                continue
            if "ended" in event:
                told += self._end(event["ended"])
                continue
            self.at_work -= {event.get("done"), event.get("failed")}
            told.append(event)
        return told

    def _end(self, status: int) -> list[dict[str, Any]]:
        """What there is to say of a client that has ended by itself."""
        # Memory that xet has used up is a way to such an end.
        failed = {"why": f"the hub's client ended with {status}", "hopeless": False, "wait": None, "xet": True}
        told = [{"failed": path, **failed} for path in self.at_work]
        self.at_work, self.in_memory, self._process = set(), 0, None
        return told

    def stop(self) -> set[str]:
        """End the client; returns the files that it was at."""
        left, self.at_work, self.in_memory = self.at_work, set(), 0
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()
            self._process = None
        return left


@dataclass
class Peer:
    """Another host of the inventory, and what it last said of this checkpoint."""

    name: str
    address: str
    port: int
    said: dict[str, Any] = field(default_factory=dict)
    heard_at: float = 0.0
    deaf_until: float = 0.0
    silence_s: float = 20.0
    is_doubted: bool = False

    def url(self, place: Path) -> str:
        """Where it serves what stands at `place` in the store of this host: by owner, name and commit."""
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"rsync://{address}:{self.port}/models/{'/'.join(place.parts[-3:])}"

    def hear(self, said: dict[str, Any]) -> None:
        if said and said.get("beat") != self.said.get("beat"):
            self.heard_at = time.monotonic()
        self.said = said
        self.is_doubted = False

    def rest(self) -> None:
        """Leave it alone for a moment, with what it holds, and then ask it first: it may be starting again, or dead."""
        self.is_doubted = True
        self.deaf_until = time.monotonic() + REST_S

    @property
    def is_resting(self) -> bool:
        return time.monotonic() < self.deaf_until

    @property
    def is_fetching(self) -> bool:
        """Whether it is at work on this checkpoint; one that has said nothing new for long is dead."""
        return bool(self.said.get("active")) and time.monotonic() - self.heard_at < self.silence_s

    def holds(self, path: str) -> bool:
        return path in self.said.get("held", ())

    def is_at(self, path: str) -> bool:
        """Whether it is fetching that file from a hub now."""
        return self.is_fetching and path in self.said.get("fetching", ())

    def wants(self, path: str) -> bool:
        """Whether it is about to fetch that file, unless somebody else is."""
        return self.is_fetching and path in self.said.get("wants", ())


class Peerhood:
    """The peers, asked and told through files that each host serves to the others."""

    def __init__(self, own: str, peers: Iterable[Peer], store: Store, home: Path) -> None:
        self.own = own
        self.all = list(peers)
        self._store = store
        self._beat = time.time_ns()
        self._pool = ThreadPoolExecutor(max(1, len(self.all)))
        self._heard = home / "heard"
        self._heard.mkdir(parents=True, exist_ok=True)

    def tell(self, held: Iterable[str], wants: Iterable[str], fetching: Iterable[str], active: bool) -> None:
        """Let the peers know what is here, and what is being fetched from a hub."""
        self._beat += 1
        said = {
            "beat": self._beat,
            "active": active,
            "held": sorted(held),
            "wants": sorted(wants),
            "fetching": sorted(fetching),
        }
        write(self._store.shared_path, json.dumps(said) + "\n")

    def listen(self) -> None:
        """Ask all peers, side by side, what they hold and what they are at."""
        now = time.monotonic()
        asked = [each for each in self.all if not each.is_resting]
        for peer, said in zip(asked, self._pool.map(self._ask, asked), strict=True):
            peer.hear(said)
            if time.monotonic() - now > PATIENCE_S and not said:
                peer.deaf_until = time.monotonic() + DEAF_S

    def _ask(self, peer: Peer) -> dict[str, Any]:
        # Always the same name: where a run is killed, the next one writes over it.
        shared = self._store.shared_path
        to = self._heard / f"{peer.name}--{shared.name}"
        argv = [*RSYNC, "--timeout=5", "--inplace", peer.url(shared), str(to)]
        if subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
            return {}
        try:
            said = json.loads(to.read_text())
            to.unlink()
        except (OSError, ValueError):
            return {}
        return said if isinstance(said, dict) else {}

    def holders(self, path: str) -> list[Peer]:
        return [each for each in self.all if each.holds(path)] if PLAIN.fullmatch(path) else []

    def is_taken(self, path: str) -> bool:
        """Whether a peer has the better right to this file: it is at it, or wants it and comes first by name."""
        return any(each.is_at(path) or (each.wants(path) and each.name < self.own) for each in self.all)

    def is_undecided(self, path: str) -> bool:
        """Whether a peer that must give way may not have noticed yet."""
        return any(each.wants(path) and each.name > self.own for each in self.all)

    def transfer(self, peer: Peer, file: File, to: Path) -> subprocess.Popen[bytes]:
        """Begin to copy a file from a peer, after the bytes that are there already."""
        # It may be renaming the directory into place at this very moment: one of the two is there.
        places = [self._store.staging, self._store.dest]
        sources = [f"{peer.url(place)}/{file.path}" for place in places]
        argv = [*RSYNC, "--timeout=30", "--append", "--inplace", "--no-motd", *sources, f"{to.parent}/"]
        return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
