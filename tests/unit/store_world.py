"""A checkpoint in miniature on the lab's hub, which fails on purpose, and `rigup-host fetch` run against it."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.hub import faults
from lab.hub.protocol import Hub
from lab.hub.repository import Repository
from lab.hub.server import HubServer
from tests.unit.host_world import FILES
from tests.unit.waiting import HANG_S, until

REPO = "org/model"
VENV = Path(sys.executable).parents[1]
SHARDS = ("model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors")
SHARD_BYTES = 3_000_000
PIECE = 1 << 16
STEERED = Path(__file__).with_name("steered_time")
# What only a clock ends, no test waits for: it is put forward, or what is tested has options of its own.
NEVER, NEVER_S = ("patience", "stall", "silence", "answer"), 1_000_000
# Only `Rig.later` lets so much time pass: the naps of a run that takes as long as a hang come to less.
STALL_S = 90_000
TOKEN = "hf_sesame"


def publish(folder: Path) -> Repository:
    """Write a repository with three shards and some small files."""
    (folder / "sub").mkdir(parents=True)
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
    (folder / "config.json").write_text('{"architectures": ["Tiny"]}\n')
    (folder / "empty.txt").write_text("")
    (folder / "sub" / "tokenizer.json").write_text("{}\n")
    for number, name in enumerate(SHARDS):
        (folder / name).write_bytes(random.Random(number).randbytes(SHARD_BYTES))
    return Repository(REPO, folder)


def listing(repository: Repository) -> dict[str, str]:
    """Return the files as in a request."""
    entries = repository.entries.values()
    return {e.path: f"{e.size} {f'sha256:{e.sha256}' if e.sha256 else f'git:{e.oid}'}" for e in entries}


class Tap:
    """What the hub's content comes through: it can be closed after so many bytes, of each answer."""

    def __init__(self) -> None:
        self.waiting = 0
        self._limit: float = math.inf
        self._changed = threading.Condition()

    def close_after(self, count: float) -> None:
        with self._changed:
            self._limit = count
            self._changed.notify_all()

    def open(self) -> None:
        self.close_after(math.inf)

    def pieces(self, total: int) -> Iterator[int]:
        sent = 0
        while sent < total:
            with self._changed:
                self.waiting += 1
                self._changed.wait_for(lambda: self._limit > sent)  # noqa: B023
                self.waiting -= 1
                size = int(min(total - sent, PIECE, self._limit - sent))
            yield size
            sent += size


class Server(HubServer):
    """Knows how many connections it has."""

    connections = 0

    def process_request_thread(self, *request: Any) -> None:
        with self._lock:
            self.connections += 1
        try:
            super().process_request_thread(*request)
        finally:
            with self._lock:
                self.connections -= 1


@dataclass
class RunningHub:
    """A hub that serves one repository, through a tap, with faults."""

    url: str
    repository: Repository
    directory: Path
    tap: Tap
    server: Server

    def err(self, *rules: str) -> None:
        faults.write(self.directory / "faults.json", [faults.parse(rule) for rule in rules])

    @property
    def journal_so_far(self) -> list[dict[str, Any]]:
        """A line for each answer; one that is being written is not there yet."""
        path = self.directory / "journal.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def journal(self) -> list[dict[str, Any]]:
        """The same, of clients that have all gone."""
        until(lambda: not self.server.connections)
        return self.journal_so_far

    def forget(self) -> None:
        """Once all clients have gone, of whom there is something in the journal yet."""
        until(lambda: not self.server.connections)
        (self.directory / "journal.jsonl").unlink(missing_ok=True)

    def sent(self, path: str | None = None) -> int:
        """Return the bytes of content sent, of one file or of all."""
        return sum(
            line["sent"] for line in self.journal if line["about"] not in ("", "/api") and path in (None, line["about"])
        )


@contextmanager
def hub_of(repository: Repository, directory: Path, gated: bool = False, xet: bool = False) -> Iterator[RunningHub]:
    """Run a hub on loopback while the context lasts."""
    directory.mkdir(parents=True, exist_ok=True)
    served = Repository(REPO, repository.folder, TOKEN if gated else None)
    rules = faults.Faults(directory / "faults.json")
    tap = Tap()
    server = Server(("127.0.0.1", 0), Hub([served], xet), tap, "", rules, directory / "journal.jsonl")
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield RunningHub(f"http://127.0.0.1:{server.server_port}", served, directory, tap, server)
    finally:
        tap.open()
        server.shutdown()
        server.server_close()


@dataclass
class Rig:
    """A host's part of the store, on this machine."""

    directory: Path
    hub: RunningHub
    name: str = "rig1"
    changes: dict[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()

    @property
    def store(self) -> Path:
        return self.directory / "store"

    @property
    def dest(self) -> Path:
        return self.store / REPO / self.hub.repository.commit

    @property
    def staging(self) -> Path:
        return self.dest.parent / f".{self.dest.name}.incoming"

    @property
    def stamp(self) -> Path:
        return self.dest.parent / f"{self.dest.name}.verified.json"

    @property
    def progress(self) -> Path:
        return self.directory / "progress.json"

    @property
    def shared(self) -> Path:
        return self.dest.parent / f"{self.dest.name}.shared.json"

    def arguments(self, **changes: Any) -> list[str]:
        request = {
            "hubs": [self.hub.url],
            "repo": REPO,
            "revision": self.hub.repository.commit,
            "dest": str(self.dest),
            "files": listing(self.hub.repository),
            "venv": str(VENV),
            "name": self.name,
            **self.changes,
            **changes,
        }
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / "request.json"
        path.write_text(json.dumps(request))
        # Without -I, which would ignore the PYTHONPATH of the steered time.
        argv = [sys.executable, "-B", str(FILES / "rigup-host"), "fetch", str(path), "--progress", str(self.progress)]
        argv += ["--home", str(self.directory / "home")]
        return [*argv, "--pause", "0.02", *(f"--{name}={NEVER_S}" for name in NEVER), *self.options]

    def environment(self, token_for: str | None) -> dict[str, str]:
        environment = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
        environment |= {"PYTHONPATH": str(STEERED), "STEERED_TIME": str(self.directory / "ahead")}
        # Not with this machine's /etc/environment.
        environment["RIGUP_ROOT"] = str(self.directory / "root")
        if token_for:
            credentials = self.directory / "credentials"
            credentials.mkdir(parents=True, exist_ok=True)
            (credentials / "hub-token").write_text(json.dumps({"host": token_for, "token": TOKEN}))
            environment["CREDENTIALS_DIRECTORY"] = str(credentials)
        return environment

    def fetch(self, token_for: str | None = None, **changes: Any) -> subprocess.CompletedProcess[str]:
        """Run it to its end; `token_for` names the host that its credential is for."""
        argv, environment = self.arguments(**changes), self.environment(token_for)
        return subprocess.run(argv, capture_output=True, text=True, timeout=HANG_S, env=environment)

    @contextmanager
    def fetching(self, token_for: str | None = None, **changes: Any) -> Iterator[subprocess.Popen[str]]:
        """Start it; kill it and its children at the end, as systemd does."""
        process = subprocess.Popen(
            self.arguments(**changes),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment(token_for),
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()

    def kill_client(self, process: subprocess.Popen[str]) -> None:
        """Kill the hub's client that a run has started."""
        argv = ["pgrep", "-P", str(process.pid), "-f", "hub-worker"]
        client = subprocess.run(argv, capture_output=True, text=True, check=True)
        os.kill(int(client.stdout.split()[0]), signal.SIGKILL)

    def later(self, seconds: float) -> None:
        """Put the time forward in which its runs live."""
        path = self.directory / "ahead"
        ahead = float(path.read_text()) if path.exists() else 0.0
        path.with_suffix(".new").write_text(str(ahead + seconds))
        path.with_suffix(".new").replace(path)

    def told(self) -> dict[str, Any]:
        """The progress that a run has told of last; empty before it has."""
        return dict(json.loads(self.progress.read_text())) if self.progress.exists() else {}

    def arrived(self) -> int:
        """Return the bytes on the disk, in any file."""
        return sum(path.stat().st_size for path in self.store.rglob("*") if path.is_file())

    def is_as_published(self) -> bool:
        there = {str(path.relative_to(self.dest)): path for path in self.dest.rglob("*") if not path.is_dir()}
        published = self.hub.repository.entries
        return set(there) == set(published) and all(
            path.read_bytes() == published[name].source.read_bytes() for name, path in there.items()
        )

    def is_clean(self) -> bool:
        """Whether only the checkpoint, its stamp and the peers' listing exist."""
        names = {self.dest.name, self.stamp.name, self.shared.name}
        return {path.name for path in self.dest.parent.iterdir()} == names

    def holds_nothing_false(self) -> bool:
        """Whether every file under its final name has its content, and every stamp is true."""
        published = self.hub.repository.entries
        named = [
            (name, root / name) for root in (self.dest, self.staging) for name in published if (root / name).exists()
        ]
        whole = all(path.read_bytes() == published[name].source.read_bytes() for name, path in named)
        return whole and (self.is_as_published() or not self.stamp.exists())


def ended(process: subprocess.Popen[str]) -> bool:
    return process.poll() is not None


def killed_at_random(rig: Rig, times: int) -> None:
    """Kill this many runs at random moments, check what they leave, and let one run to its end.

    A moment is measured by how much of a file the hub has sent; a run that needs no more of any ends.
    """
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    # Also over xet, where the hub's journal names the same files xet:PATH.
    rig.hub.err(f"flip,path=*{SHARDS[0]},times=1", f"cut,path=*{SHARDS[1]},times=3")
    for _ in range(times):
        rig.hub.tap.close_after(moments.randrange(SHARD_BYTES))
        with rig.fetching() as process:
            until(lambda process=process: rig.hub.tap.waiting or ended(process))
            assert process.poll() in (None, 0)
        rig.hub.tap.open()
        assert rig.holds_nothing_false()
    rig.hub.err()
    result = rig.fetch()
    assert result.returncode == 0, result.stdout + result.stderr
    assert rig.is_as_published() and rig.is_clean()
