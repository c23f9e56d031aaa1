"""A checkpoint in miniature on the lab's hub, which fails on purpose, and `rigup-host fetch` run against it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.hub import faults
from lab.hub.protocol import Hub
from lab.hub.repository import Repository
from lab.hub.server import HubServer
from lab.hub.throttle import Throttle
from tests.unit.host_world import LAUNCH

REPO = "org/model"
VENV = Path(sys.executable).parents[1]
SHARDS = ("model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors")
SHARD_BYTES = 3_000_000
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


@dataclass
class RunningHub:
    """A hub that serves one repository, at a rate of bytes per second (0: no limit), with faults."""

    url: str
    repository: Repository
    directory: Path
    rate: list[int] = field(default_factory=lambda: [0])

    def err(self, *rules: str) -> None:
        faults.write(self.directory / "faults.json", [faults.parse(rule) for rule in rules])

    @property
    def journal(self) -> list[dict[str, Any]]:
        path = self.directory / "journal.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def forget(self) -> None:
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
    rate = [0]
    rules = faults.Faults(directory / "faults.json")
    journal = directory / "journal.jsonl"
    server = HubServer(("127.0.0.1", 0), Hub([served], xet), Throttle(lambda: rate[0]), "", rules, journal)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield RunningHub(f"http://127.0.0.1:{server.server_port}", served, directory, rate)
    finally:
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
        argv = [*LAUNCH, "fetch", str(path), "--progress", str(self.progress)]
        argv += ["--home", str(self.directory / "home")]
        return [*argv, "--pause", "0.02", "--patience", "30", "--stall", "3", "--silence", "3", *self.options]

    def environment(self, token_for: str | None) -> dict[str, str]:
        environment = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
        if token_for:
            credentials = self.directory / "credentials"
            credentials.mkdir(parents=True, exist_ok=True)
            (credentials / "hub-token").write_text(json.dumps({"host": token_for, "token": TOKEN}))
            environment["CREDENTIALS_DIRECTORY"] = str(credentials)
        return environment

    def fetch(self, token_for: str | None = None, **changes: Any) -> subprocess.CompletedProcess[str]:
        """Run it to its end; `token_for` names the host that its credential is for."""
        argv, environment = self.arguments(**changes), self.environment(token_for)
        return subprocess.run(argv, capture_output=True, text=True, timeout=100, env=environment)

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

    def until(self, what: Any, seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, "it did not happen"
            time.sleep(0.02)

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


def killed_at_random(rig: Rig, times: int) -> None:
    """Kill this many runs at random moments, check what they leave, and let one run to its end."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    rig.hub.rate[0] = 2_000_000
    # Also over xet, where the hub's journal names the same files xet:PATH.
    rig.hub.err(f"flip,path=*{SHARDS[0]},times=1", f"cut,path=*{SHARDS[1]}")
    for _ in range(times):
        with rig.fetching() as process:
            time.sleep(moments.uniform(0.1, 2.5))
            assert process.poll() in (None, 0)
        assert rig.holds_nothing_false()
    rig.hub.rate[0] = 0
    rig.hub.err()
    result = rig.fetch()
    assert result.returncode == 0, result.stdout + result.stderr
    assert rig.is_as_published() and rig.is_clean()
