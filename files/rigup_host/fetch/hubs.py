"""Hubs, from which a checkpoint's files are downloaded by the hub's own client, in a process of its own.

Whatever arrives is verified elsewhere, against the published checksums.
"""

from __future__ import annotations

import json
import queue
import subprocess
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from types import UnionType
from typing import Any
from urllib.parse import urlsplit

from rigup_host import environment, files
from rigup_host.fetch.report import say
from rigup_host.fetch.store import File, Hopeless, Setback, Store

# This package's own launcher, of the same version, run by the Python that has the hub's client.
LAUNCHER = Path(__file__).parents[2] / "rigup-host"
# The longest pause between two tries, in multiples of the first one: 300 s by default.
LONGEST_PAUSE = 60
# The events of the client, with the types of their values; `hub_worker` says what they mean.
EVENTS: tuple[dict[str, type | UnionType], ...] = (
    {"done": str},
    {"waiting": int | float},
    {"in_memory": int},
    {"failed": str, "why": str, "hopeless": bool, "wait": int | float | None, "xet": bool},
)


def read_event(line: str) -> dict[str, Any]:
    """Parse an event of the client, one of EVENTS. Raise ValueError for anything else."""
    found = files.from_json(line)
    form = next((form for form in EVENTS if isinstance(found, dict) and found.keys() == form.keys()), None)
    if form and all(isinstance(found[key], kind) and _is_usual(found[key]) for key, kind in form.items()):
        return dict(found)
    raise ValueError(f"not an event: {line[:80]!r}")


def _is_usual(value: object) -> bool:
    # No float is infinite or NaN, and no integer too large for one.
    return not isinstance(value, int | float) or 0 <= value < 1 << 53


class Hub:
    """One hub, its client process, and its failures so far."""

    def __init__(self, url: str, store: Store, venv: Path, token: str | None, home: Path, timeout: int) -> None:
        self.url = url
        self.name = urlsplit(url).netloc
        # Switched off for good once it has failed, stalled or delivered a wrong file.
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
        # The client drops a stalled connection long before the whole client counts as stalled.
        self._timeout_s = timeout
        self._process: subprocess.Popen[str] | None = None
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        self._lost: list[dict[str, Any]] = []

    @property
    def is_ready(self) -> bool:
        """Whether it may be asked for files now."""
        return self.hopeless is None and time.monotonic() >= self.rest_until

    def order(self, file: File) -> None:
        """Start the transfer of one more file."""
        if self._process is not None and (status := self._process.poll()) is not None:
            # The listening thread would report this only after the next client has started.
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
            # The client has ended; `events` reports that for all its files.
            pass

    def _start(self) -> None:
        arguments = ["--endpoint", self.url, "--repo", self._store.repo, "--revision", self._store.revision]
        # A hub or mirror that does not end a file must not fill the disk.
        arguments += ["--largest", str(max(file.size for file in self._store.files.values()))]
        process = subprocess.Popen(
            [str(self._venv / "bin" / "python"), "-IB", str(LAUNCHER), "hub-worker", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self._environment(),
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._process = process
        threading.Thread(target=self._listen, args=(process,), daemon=True).start()

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            # The last line of a killed client may be incomplete, and its libraries may print lines of their own.
            with suppress(ValueError):
                self._events.put({**read_event(line), "from": process.pid})
        self._events.put({"ended": process.wait(), "from": process.pid})

    def _environment(self) -> dict[str, str]:
        ours = {
            "HOME": str(self._home),
            "HF_HOME": str(self._home),
            "HF_ENDPOINT": self.url,
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": str(self._timeout_s),
            "HF_XET_CLIENT_READ_TIMEOUT": f"{self._timeout_s}s",
            "HF_HUB_ETAG_TIMEOUT": "60",
        }
        secret = {"HF_TOKEN": self._token} if self._token else {}
        return {**environment.FIXED, **environment.of_host(), **ours, **secret}

    def events(self) -> list[dict[str, Any]]:
        """Return what the client has reported since the last call; if it has ended, `failed` for each of its files."""
        events, self._lost = self._lost, []
        while not self._events.empty():
            event = self._events.get()
            if self._process is None or event["from"] != self._process.pid:
                continue
            if "in_memory" in event:
                self.in_memory = event["in_memory"]
                continue
            if "ended" in event:
                events += self._end(event["ended"])
                continue
            self.at_work -= {event.get("done"), event.get("failed")}
            events.append(event)
        return events

    def _end(self, status: int) -> list[dict[str, Any]]:
        """Return the events for a client that has ended on its own."""
        # xet may have used up the memory: the next client does without it.
        failed = {"why": f"the hub's client exited with {status}", "hopeless": False, "wait": None, "xet": True}
        events = [{"failed": path, **failed} for path in self.at_work]
        self.at_work, self.in_memory, self._process = set(), 0, None
        return events

    def stop(self) -> set[str]:
        """Kill the client; return the files that it was transferring."""
        left, self.at_work, self.in_memory = self.at_work, set(), 0
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()
            self._process = None
        return left


class Hubs:
    """All hubs of a download in the order in which they are asked: mirrors first, the hub itself last."""

    def __init__(self, hubs: Sequence[Hub], store: Store, pause: float, patience: float, stall: float) -> None:
        """`pause` seconds before the second try, doubled for each further one; `patience` without progress at all."""
        self.all = hubs
        self._store = store
        self._pause, self._patience, self._stall = pause, patience, stall
        self._furthest = 0
        self._progressed_at = time.monotonic()
        self._seen_bytes = 0
        self._grew_at = time.monotonic()

    @property
    def at_work(self) -> set[str]:
        """The files that are being transferred."""
        return {path for hub in self.all for path in hub.at_work}

    @property
    def is_ready(self) -> bool:
        """Whether any hub may be asked for files now."""
        return any(hub.is_ready for hub in self.all)

    @property
    def arrived_bytes(self) -> int:
        """Bytes that have arrived, on the disk or not yet."""
        return min(self._store.bytes, self._store.arrived_bytes() + sum(hub.in_memory for hub in self.all))

    @property
    def hopeless(self) -> str | None:
        """Why no hub can help; None if one may."""
        reasons = [hub.hopeless for hub in self.all if hub.hopeless]
        return reasons[-1] if len(reasons) == len(self.all) else None

    def order(self, file: File, distrusted: Collection[str]) -> Hub:
        """Start a transfer from the first hub that is ready, if possible one that is not among `distrusted`."""
        ready = [hub for hub in self.all if hub.is_ready]
        hub = next((hub for hub in ready if hub.name not in distrusted), ready[0])
        hub.order(file)
        self._grew_at = time.monotonic()
        return hub

    def arrivals(self) -> list[str]:
        """Return the files whose transfer has ended well since the last call. Raise Hopeless or Setback."""
        done = []
        for hub in self.all:
            for event in hub.events():
                if "done" in event:
                    done.append(str(event["done"]))
                elif "failed" in event:
                    hub.xet &= not event["xet"]
                    self._had_setback(hub, event["failed"], event["why"], event["hopeless"], event["wait"])
                elif "waiting" in event:
                    hub.patience_until = time.monotonic() + event["waiting"] + self._stall
                    say(f"{hub.name} asks to wait {event['waiting']:.0f} s")
        return done

    def _had_setback(self, hub: Hub, path: str, why: str, hopeless: bool, wait: float | None) -> None:
        if hopeless and why.startswith("the disk"):
            raise Hopeless(why)
        if hopeless:
            hub.hopeless = why
            say(f"{path} from {hub.name}: {why}")
            return
        moment = time.monotonic()
        if moment < hub.rest_until:
            return  # one of several files with the same failure
        done = self._store.arrived_bytes()
        if done > self._furthest:
            self._furthest, self._progressed_at, hub.setbacks = done, moment, 0
        idle_s = moment - self._progressed_at
        if idle_s > self._patience:
            lasted = f"{idle_s / 3600:.1f} h" if idle_s >= 3600 else f"{idle_s:.0f} s"
            raise Setback(f"given up after {lasted} without progress; the last failure: {path} from {hub.name}: {why}")
        rest = wait if wait is not None else self._pause * min(LONGEST_PAUSE, 2**hub.setbacks)
        hub.setbacks += 1
        hub.setback = f"{path}: {why}"
        hub.rest_until = moment + rest
        say(f"{path} from {hub.name}: {why}; next try in {rest:.0f} s")

    def discarded(self) -> None:
        """Take note that a file was wrong and is removed: what arrives in its place is progress."""
        self._furthest = min(self._furthest, self._store.arrived_bytes())

    def watch(self, done: int) -> None:
        """Kill the client of a hub that has transferred nothing for too long; `done` are the bytes so far."""
        moment = time.monotonic()
        if done != self._seen_bytes:
            self._seen_bytes, self._grew_at = done, moment
        for hub in self.all:
            if hub.at_work and moment - self._grew_at > self._stall and moment > hub.patience_until:
                hub.xet = False
                stalled = sorted(hub.stop())
                self._had_setback(hub, stalled[0], f"no byte for {self._stall:.0f} s", False, None)
                self._grew_at = moment

    def waiting(self) -> str:
        """Return for how long the first resting hub rests, and why; empty if none rests."""
        resting = [hub for hub in self.all if not hub.is_ready and not hub.hopeless]
        if not resting:
            return ""
        wait = max(0.0, resting[0].rest_until - time.monotonic())
        return f"{wait:.0f} s, {resting[0].name} failed: {resting[0].setback}"

    def stop(self) -> None:
        """Kill all clients."""
        for hub in self.all:
            hub.stop()
