"""Compare our download with `hf download` and parallel `curl`, and a fleet with peers with one without.

Everything runs over loopback, against the lab's hub in its own process, with files of random bytes: this measures the
cost of the programs, not a network. A download counts only if every byte is as published.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.timing import ROOT, BenchError
from lab.hub.repository import Repository
from rigup.plan.peers import Peer
from rigup.render.peers import daemon_config
from rigup.resources import FILES

REPO = "bench/model"
VENV = Path(sys.executable).parents[1]
PIECE = 1 << 24


def publish(folder: Path, shards: int, shard_bytes: int) -> Repository:
    """Write a checkpoint of random bytes."""
    folder.mkdir(parents=True)
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
    (folder / "config.json").write_text("{}\n")
    for number in range(shards):
        source = random.Random(number)
        with (folder / f"model-{number + 1:05}-of-{shards:05}.safetensors").open("wb") as file:
            for _ in range(shard_bytes // PIECE):
                file.write(source.randbytes(PIECE))
    return Repository(REPO, folder)


def size_of(repository: Repository) -> int:
    return sum(entry.size for entry in repository.entries.values())


@dataclass
class RunningHub:
    """The lab's hub in its own process."""

    url: str
    journal: Path

    @property
    def sent(self) -> int:
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        answers = [json.loads(line) for line in lines]
        return sum(line["sent"] for line in answers if line["about"] not in ("", "/api"))


@contextmanager
def hub(repository: Repository, directory: Path, rate: int) -> Iterator[RunningHub]:
    """Run a hub that sends at most `rate` bytes per second in total; 0: no limit."""
    port, journal = free_port(), directory / f"journal-{time.monotonic_ns()}.jsonl"
    argv = [sys.executable, "-m", "lab.hub", "--port", str(port), "--rate", str(rate), "--journal", str(journal)]
    argv += ["--repository", f"{REPO}={repository.folder}"]
    process = subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_for(port)
        # It reads and hashes its files at the first request.
        subprocess.run(["curl", "-s", f"http://127.0.0.1:{port}/api/models/{REPO}"], stdout=subprocess.DEVNULL)
        yield RunningHub(f"http://127.0.0.1:{port}", journal)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def wait_for(port: int) -> None:
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise BenchError(f"nothing listens on port {port}")


def request(repository: Repository, url: str, store: Path, name: str, peers: Sequence[Peer]) -> Path:
    """Write the request for `fetch.py`; return its path."""
    entries = repository.entries.values()
    told = {
        "repo": REPO,
        "revision": repository.commit,
        "dest": str(store / "models" / REPO / repository.commit),
        "hubs": [url],
        "venv": str(VENV),
        "name": name,
        "peers": [asdict(each) for each in peers],
        "files": {e.path: f"{e.size} {f'sha256:{e.sha256}' if e.sha256 else f'git:{e.oid}'}" for e in entries},
    }
    store.mkdir(parents=True, exist_ok=True)
    path = store / "request.json"
    path.write_text(json.dumps(told))
    return path


def our_argv(asked: Path) -> list[str]:
    launch = [sys.executable, "-IB", str(ROOT / "files/rigup-host"), "fetch"]
    return [*launch, str(asked), "--home", str(asked.parent / "home")]


def commands(repository: Repository, url: str, target: Path) -> dict[str, list[list[str]]]:
    """Return the commands by which each tool downloads the checkpoint into `target`."""
    hf = [str(VENV / "bin" / "hf")]
    at = ["--revision", repository.commit, "--local-dir", str(target / "hf")]
    curl = ["curl", "--silent", "--fail", "--location", "--parallel", "--parallel-max", "8", "--create-dirs"]
    for path in repository.entries:
        curl += ["--output", str(target / "curl" / path), f"{url}/{REPO}/resolve/{repository.commit}/{path}"]
    download = [*hf, "download", REPO, *at]
    verify = [*hf, "cache", "verify", REPO, *at, "--fail-on-missing-files"]
    return {
        "rigup (verified)": [our_argv(request(repository, url, target, "rig1", ()))],
        "hf download": [download],
        "hf download, hf cache verify": [download, verify],
        "curl, 8 in parallel": [curl],
    }


def environment(url: str, home: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    ours = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return {**kept, **ours, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}


def timed(argvs: Sequence[Sequence[str]], env: dict[str, str]) -> dict[str, float]:
    """Return seconds from start to end, and processor seconds of all processes. Raises BenchError."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    for argv in argvs:
        done = subprocess.run(list(argv), env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise BenchError(f"`{argv[0]} ...` exited with {done.returncode}:\n{done.stdout[-3000:]}")
    seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu_seconds": processor}


def single(repository: Repository, directory: Path, rate: int, rounds: int) -> list[dict[str, Any]]:
    """Measure one host, each tool in turn, so that other load on the machine affects all of them."""
    total = size_of(repository)
    found: dict[str, list[dict[str, float]]] = {}
    with hub(repository, directory, rate) as served:
        for _ in range(rounds):
            target = directory / "target"
            for tool in commands(repository, served.url, target):
                shutil.rmtree(target, ignore_errors=True)
                argvs = commands(repository, served.url, target)[tool]
                found.setdefault(tool, []).append(timed(argvs, environment(served.url, target / "home")))
                verify(repository, target)
    shutil.rmtree(directory / "target", ignore_errors=True)
    rows = []
    for tool, runs in found.items():
        best = min(runs, key=lambda run: run["seconds"])
        rows.append(
            {
                "tool": tool,
                "limit_bytes_per_s": rate,
                "seconds": [round(run["seconds"], 2) for run in runs],
                "gb_per_s": round(total / best["seconds"] / 1e9, 3),
                "cpu_seconds": round(best["cpu_seconds"], 2),
            }
        )
    return rows


def verify(repository: Repository, target: Path) -> None:
    """Raise BenchError if a shard under `target` is not as published."""
    for entry in repository.entries.values():
        copies = [path for path in target.rglob(Path(entry.path).name) if "home" not in path.parts]
        if entry.sha256 and not copies:
            raise BenchError(f"{entry.path} did not arrive")
        for copy in copies if entry.sha256 else ():
            with copy.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                    raise BenchError(f"{copy} is not as published")


def fleet(repository: Repository, directory: Path, count: int, rate: int, share: bool) -> dict[str, Any]:
    """Measure `count` hosts at once, with or without peers: bytes from the hub, and seconds to the last host."""
    everybody = [Peer(f"rig{number}", "127.0.0.1", free_port()) for number in range(1, count + 1)]
    with hub(repository, directory, rate) as served, ExitStack() as stack:
        argvs = []
        for own in everybody:
            store = directory / own.name
            others = [each for each in everybody if each is not own] if share else []
            asked = request(repository, served.url, store, own.name, others)
            argvs.append(our_argv(asked))
            if share:
                stack.enter_context(daemon(store, own.port, repository.commit))
        env = environment(served.url, directory / "home")
        began = time.monotonic()
        running = [subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL) for argv in argvs]
        codes = [process.wait() for process in running]
        seconds = time.monotonic() - began
        if any(codes):
            raise BenchError(f"the hosts exited with {codes}")
        sent = served.sent
    for own in everybody:
        verify(repository, directory / own.name)
        shutil.rmtree(directory / own.name)
    total = size_of(repository)
    return {
        "hosts": count,
        "peers": share,
        "limit_bytes_per_s": rate,
        "seconds": round(seconds, 1),
        "checkpoints_from_hub": round(sent / total, 3),
    }


@contextmanager
def daemon(store: Path, port: int, revision: str) -> Iterator[None]:
    """Run the daemon that serves one host's files to the others."""
    models = store / "models"
    models.mkdir(parents=True, exist_ok=True)
    config = store / "rsyncd.conf"
    # As on a host with as many peers as this address stands for.
    allowed = ["127.0.0.1"] * 8
    config.write_text(
        daemon_config(
            str(models),
            port,
            allowed,
            [f"{models}/{REPO}/{revision}"],
            str(store),
            shlex.join((sys.executable, "-IB", str(FILES / "rigup-host"))),
        )
    )
    argv = ["rsync", "--daemon", "--no-detach", f"--config={config}", "--address=127.0.0.1"]
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    try:
        wait_for(port)
        yield
    finally:
        process.kill()
        process.wait()
