"""fetch.py with the hub's real client, against a hub on loopback that misbehaves as hubs and networks do."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.unit.host_world import FILES, Page, run_program, site

REPO = "org/model"
REVISION = "0123456789abcdef0123456789abcdef01234567"
VENV = Path(sys.executable).parents[1]
WEIGHTS = b"".join(bytes([at % 251]) * 997 for at in range(400))
CONTENT = {
    "config.json": b'{"architectures": ["Tiny"]}\n',
    "model-00001-of-00002.safetensors": WEIGHTS,
    "model-00002-of-00002.safetensors": WEIGHTS[::-1],
    "sub/tokenizer.json": b"{}\n",
}


@dataclass
class Hub:
    """What the hub has done (`asked`), and how often each path still misbehaves: `flip` a byte, `cut` short, `down`."""

    url: str = ""
    asked: list[str] = field(default_factory=list)
    flip: dict[str, int] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    down: int = 0
    slow: float = 0.0

    def downloads(self, name: str) -> int:
        return self.asked.count(f"GET {name}")

    def answer(self, method: str, path: str, body: bytes) -> Page:
        path = path.partition("?")[0]
        if path.startswith("/api/models/"):
            return self.listing(path)
        name = path.partition(f"/resolve/{REVISION}/")[2]
        content = CONTENT.get(name)
        if content is None:
            return Page(status=404, headers={"X-Error-Code": "EntryNotFound"})
        self.asked.append(f"{method} {name}")
        if method == "GET" and self.down > 0:
            self.down -= 1
            return Page(b"try later", status=503)
        time.sleep(self.slow if method == "GET" else 0)
        sha = hashlib.sha256(content).hexdigest()
        headers = {"ETag": f'"{sha if lfs(name) else git_sha1(content)}"', "X-Repo-Commit": REVISION}
        if lfs(name):
            headers |= {"X-Linked-Etag": f'"{sha}"', "X-Linked-Size": str(len(content))}
        page = Page(content, headers=headers)
        if method == "GET" and self.take(self.flip, name):
            page.body = bytes([content[0] ^ 1]) + content[1:]
        if method == "GET" and self.take(self.cut, name):
            page.cut = len(content) // 2
        return page

    @staticmethod
    def take(faults: dict[str, int], name: str) -> bool:
        faults[name] = faults.get(name, 0) - 1
        return faults[name] >= 0

    def listing(self, path: str) -> Page:
        if not path.startswith(f"/api/models/{REPO}/"):
            return Page(b'{"error": "Repository not found"}', 404, {"X-Error-Code": "RepoNotFound"})
        if not path.endswith(f"/{REVISION}"):
            return Page(b'{"error": "Invalid rev id"}', 404, {"X-Error-Code": "RevisionNotFound"})
        if "/tree/" in path:
            return Page(json.dumps([entry(name, content) for name, content in CONTENT.items()]).encode())
        siblings = [{"rfilename": name} for name in CONTENT]
        return Page(json.dumps({"id": REPO, "sha": REVISION, "siblings": siblings}).encode())


def lfs(name: str) -> bool:
    return name.endswith(".safetensors")


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry(name: str, content: bytes) -> dict[str, object]:
    told: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": git_sha1(content)}
    if lfs(name):
        told["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 135}
    return told


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    with site(hub.answer) as url:
        hub.url = url
        yield hub


@dataclass
class Store:
    directory: Path
    hub: Hub

    @property
    def dest(self) -> Path:
        return self.directory / "store" / "org" / "model" / REVISION

    @property
    def stamp(self) -> Path:
        return self.dest.parent / f"{REVISION}.verified.json"

    @property
    def progress(self) -> Path:
        return self.directory / "progress.json"

    def request(self, **changes: object) -> Path:
        request = {
            "endpoint": self.hub.url,
            "repo": REPO,
            "revision": REVISION,
            "dest": str(self.dest),
            "bytes": sum(map(len, CONTENT.values())),
            "files": len(CONTENT),
            "venv": str(VENV),
        }
        path = self.directory / "request.json"
        path.write_text(json.dumps({**request, **changes}))
        return path

    def arguments(self, **changes: object) -> list[str]:
        return [str(self.request(**changes)), "--progress", str(self.progress), "--pause", "0.05"]

    def fetch(self, **changes: object) -> subprocess.CompletedProcess[str]:
        home = str(self.directory / "home")
        return run_program(
            "fetch.py", *self.arguments(**changes), HF_HOME=home, HF_TOKEN="hf_sesame", HF_HUB_DISABLE_XET="1"
        )

    def holds_exactly_what_was_published(self) -> bool:
        there = {str(path.relative_to(self.dest)): path for path in self.dest.rglob("*") if not path.is_dir()}
        return {name: path.read_bytes() for name, path in there.items()} == CONTENT


@pytest.fixture
def store(tmp_path: Path, hub: Hub) -> Store:
    return Store(tmp_path, hub)


def test_a_checkpoint_arrives_exactly_as_published_and_is_stamped(store: Store) -> None:
    result = store.fetch()

    assert result.returncode == 0, result.stderr
    assert store.holds_exactly_what_was_published()
    stamp = json.loads(store.stamp.read_text())
    assert (stamp["repo"], stamp["revision"], stamp["files"]) == (REPO, REVISION, 4)
    assert stamp["bytes"] == sum(map(len, CONTENT.values()))
    assert sorted(path.name for path in store.dest.parent.iterdir()) == [REVISION, f"{REVISION}.verified.json"]
    assert "hf_sesame" not in result.stdout + result.stderr


def test_a_second_run_asks_the_hub_for_nothing(store: Store) -> None:
    store.fetch()
    store.hub.asked.clear()

    assert store.fetch().returncode == 0
    assert store.hub.asked == []


def test_a_flipped_byte_is_found_and_only_that_file_is_fetched_again(store: Store) -> None:
    store.hub.flip = {"model-00001-of-00002.safetensors": 1}

    result = store.fetch()

    assert result.returncode == 0, result.stderr
    assert "wrong: model-00001-of-00002.safetensors" in result.stdout
    assert store.holds_exactly_what_was_published()
    assert store.hub.downloads("model-00001-of-00002.safetensors") == 2
    assert store.hub.downloads("model-00002-of-00002.safetensors") == 1


def test_bytes_that_stay_wrong_are_given_up_and_never_stamped(store: Store) -> None:
    store.hub.flip = {"model-00001-of-00002.safetensors": 99}

    result = store.fetch()

    assert result.returncode == 2
    assert "still not as published" in result.stderr
    assert not store.stamp.exists()
    assert not store.dest.exists()


def test_a_hub_that_is_down_for_a_while_is_asked_again(store: Store) -> None:
    # The client gives up on a broken body after tries of its own; then ours begin.
    store.hub.cut = {"model-00002-of-00002.safetensors": 7}

    result = store.fetch()

    assert result.returncode == 0, result.stderr
    assert "next try in" in result.stdout
    assert store.holds_exactly_what_was_published()


def test_a_repository_that_is_not_there_is_not_asked_for_again(store: Store) -> None:
    result = store.fetch(repo="org/other")

    assert result.returncode == 2
    assert "no such repository" in result.stderr
    assert "Model 'org/other' not found" in result.stderr
    assert "next try" not in result.stdout


def test_a_commit_that_is_not_there_is_not_asked_for_again(store: Store) -> None:
    result = store.fetch(revision="f" * 40)

    assert result.returncode == 2
    assert "no such commit" in result.stderr


def test_a_lost_file_a_changed_one_and_a_foreign_one_are_put_right(store: Store) -> None:
    store.fetch()
    (store.dest / "config.json").unlink()
    (store.dest / "model-00001-of-00002.safetensors").write_bytes(WEIGHTS[:-1])
    (store.dest / "sub" / "notes.txt").write_text("mine")
    store.hub.asked.clear()

    assert store.fetch().returncode == 0
    assert store.holds_exactly_what_was_published()
    assert store.hub.downloads("model-00002-of-00002.safetensors") == 0


def test_a_run_stopped_between_the_rename_and_the_stamp_is_finished_by_the_next(store: Store) -> None:
    store.fetch()
    store.stamp.unlink()
    store.hub.asked.clear()

    assert store.fetch().returncode == 0
    assert store.stamp.exists()
    assert store.hub.asked == []


def test_a_killed_run_leaves_nothing_in_place_and_the_next_goes_on(store: Store) -> None:
    store.hub.slow = 0.5
    command = [sys.executable, str(FILES / "fetch.py"), *store.arguments()]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 20
    while not any(call.startswith("GET") for call in store.hub.asked) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()

    assert not store.dest.exists()
    assert not store.stamp.exists()
    store.hub.slow = 0
    assert store.fetch().returncode == 0
    assert store.holds_exactly_what_was_published()


def test_progress_is_told_while_it_downloads(store: Store) -> None:
    store.hub.slow = 1.0
    told: set[str] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            if store.progress.exists():
                told.add(json.loads(store.progress.read_text())["step"])

    watcher = threading.Thread(target=watch)
    watcher.start()
    store.fetch()
    done.set()
    watcher.join()

    assert {"downloading", "verifying"} <= told
    assert json.loads(store.progress.read_text())["bytes_total"] == sum(map(len, CONTENT.values()))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"revision": "main"}, "no commit of 40 hex digits"),
        ({"dest": "relative/path"}, "no absolute directory"),
        ({"dest": "/"}, "no absolute directory"),
        ({"bytes": "many"}, "is no request"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(store: Store, changes: dict[str, object], why: str) -> None:
    result = store.fetch(**changes)

    assert result.returncode == 2
    assert why in result.stderr
