"""The lab's hub, used by the real `hf` command over loopback."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.checkpoint import REPOSITORY, write_checkpoint
from lab.hub.protocol import Hub
from lab.hub.repository import Repository
from lab.hub.server import HubServer
from lab.hub.throttle import Throttle
from rigup.lock.http import Web
from rigup.lock.hub import checkpoint_lock
from tests.unit.waiting import HANG_S

HF = Path(sys.executable).with_name("hf")


class Clock:
    """Stands still but for those that sleep by it."""

    def __init__(self) -> None:
        self.now = 0.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        until = self.now + seconds
        with self._lock:
            self.now = max(self.now, until)


@dataclass
class Running:
    url: str
    folder: Path
    commit: str
    requests: list[str]
    clock: Clock


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    folder = tmp_path_factory.mktemp("published")
    write_checkpoint(folder)
    return Repository(REPOSITORY, folder)


@pytest.fixture
def rates() -> list[int]:
    """The limits in bytes per second that hold for the next pieces that the hub sends, one after the other."""
    return []


@pytest.fixture
def hub(tmp_path: Path, published: Repository, rates: list[int]) -> Iterator[Running]:
    gated = tmp_path / "gated"
    gated.mkdir()
    (gated / "config.json").write_text("{}")
    requests: list[str] = []
    clock = Clock()

    class Recording(Hub):
        def answer(self, url, host, token, wanted):  # type: ignore[no-untyped-def]
            requests.append(url)
            return super().answer(url, host, token, wanted)

    repositories = [published, Repository("lab/gated", gated, token="hf_right")]
    throttle = Throttle(lambda: rates.pop() if rates else 0, clock, clock.sleep)
    server = HubServer(("127.0.0.1", 0), Recording(repositories), throttle)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        yield Running(url, published.folder, published.commit, requests, clock)
    finally:
        server.shutdown()
        server.server_close()


def hf(hub: Running, home: Path, *arguments: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    if token:
        env["HF_TOKEN"] = token
    return subprocess.run([HF, *arguments], env=env, capture_output=True, text=True, timeout=HANG_S, check=False)


def download(hub: Running, tmp_path: Path, *more: str) -> tuple[Path, subprocess.CompletedProcess[str]]:
    target = tmp_path / "store"
    return target, hf(hub, tmp_path / "home", "download", REPOSITORY, "--local-dir", str(target), *more)


def published_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def head(url: str) -> tuple[int, dict[str, str]]:
    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: object) -> None:
            return None

    request = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.build_opener(Stay).open(request, timeout=HANG_S) as answer:
            return answer.status, {name.lower(): value for name, value in answer.headers.items()}
    except urllib.error.HTTPError as error:
        return error.code, {name.lower(): value for name, value in error.headers.items()}


def test_hf_download_of_a_branch_brings_every_file_as_published(hub: Running, tmp_path: Path) -> None:
    target, result = download(hub, tmp_path, "--revision", "main")
    assert result.returncode == 0, result.stderr
    assert published_files(target) == published_files(hub.folder)


def test_hf_cache_verify_passes_on_a_pristine_copy_and_names_a_file_with_a_flipped_byte(
    hub: Running, tmp_path: Path
) -> None:
    target, result = download(hub, tmp_path, "--revision", hub.commit)
    assert result.returncode == 0, result.stderr
    verify = ("cache", "verify", REPOSITORY, "--revision", hub.commit, "--local-dir", str(target))
    assert hf(hub, tmp_path / "home", *verify, "--fail-on-missing-files").returncode == 0
    shard = target / "model-00003-of-00005.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    bad = hf(hub, tmp_path / "home", *verify)
    assert bad.returncode == 1
    assert shard.name in bad.stdout + bad.stderr


def test_the_commit_is_40_hex_digits_of_the_content(hub: Running, tmp_path: Path) -> None:
    assert re.fullmatch("[0-9a-f]{40}", hub.commit)
    assert Repository(REPOSITORY, hub.folder).commit == hub.commit
    changed = tmp_path / "changed"
    shutil.copytree(hub.folder, changed)
    (changed / "README.md").write_text("other")
    assert Repository(REPOSITORY, changed).commit != hub.commit


def test_the_lock_records_that_the_miniatures_weights_are_random(hub: Running) -> None:
    with Web() as web:
        assert checkpoint_lock(web, hub.url, REPOSITORY, "main").random_weights


def test_large_files_redirect_to_their_content_and_say_what_they_are(hub: Running) -> None:
    name = "model-00001-of-00005.safetensors"
    status, headers = head(f"{hub.url}/{REPOSITORY}/resolve/main/{name}")
    assert status == 302
    assert headers["x-repo-commit"] == hub.commit
    assert headers["x-linked-size"] == str((hub.folder / name).stat().st_size)
    digest = headers["x-linked-etag"].strip('"')
    assert headers["location"].startswith(f"{hub.url}/cdn/{REPOSITORY}/{hub.commit}/{digest}?")
    status, headers = head(headers["location"])
    assert (status, headers["etag"].strip('"'), headers["accept-ranges"]) == (200, digest, "bytes")


def test_small_files_redirect_on_the_same_host_and_carry_their_git_id(hub: Running) -> None:
    status, headers = head(f"{hub.url}/{REPOSITORY}/resolve/main/config.json")
    assert status == 307
    status, headers = head(hub.url + headers["location"])
    blob = subprocess.run(
        ["git", "hash-object", str(hub.folder / "config.json")], capture_output=True, text=True, check=True
    )
    assert (status, headers["etag"].strip('"'), headers["x-repo-commit"]) == (200, blob.stdout.strip(), hub.commit)


@pytest.mark.parametrize(
    ("wanted", "status", "slice_"),
    [
        ("bytes=100-199", 206, slice(100, 200)),
        ("bytes=3000000-", 206, slice(3000000, None)),
        ("bytes=-10", 206, slice(-10, None)),
        (None, 200, slice(None)),
    ],
)
def test_ranges_bring_exactly_the_bytes_asked_for(hub: Running, wanted: str | None, status: int, slice_: slice) -> None:
    name = "model-00005-of-00005.safetensors"
    request = urllib.request.Request(f"{hub.url}/{REPOSITORY}/resolve/main/{name}")
    if wanted:
        request.add_header("Range", wanted)
    with urllib.request.urlopen(request, timeout=HANG_S) as answer:
        assert answer.status == status
        assert answer.read() == (hub.folder / name).read_bytes()[slice_]


def test_a_range_beyond_the_end_is_refused_with_the_size(hub: Running) -> None:
    request = urllib.request.Request(
        f"{hub.url}/{REPOSITORY}/resolve/main/README.md", headers={"Range": "bytes=99999-"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=HANG_S)
    assert refused.value.code == 416
    assert refused.value.headers["Content-Range"] == f"bytes */{(hub.folder / 'README.md').stat().st_size}"


@pytest.mark.parametrize(
    ("arguments", "token", "said"),
    [
        ((REPOSITORY, "--revision", "v9"), None, "Revision not found"),
        ((REPOSITORY, "no-such-file.json"), None, "Entry Not Found|no-such-file.json"),
        (("nvidia/Absent",), None, "Repository Not Found|not found"),
        (("nvidia/Absent",), "hf_any", "Repository Not Found|not found"),
        (("lab/gated", "config.json"), None, "gated|restricted"),
        (("lab/gated", "config.json"), "hf_wrong", "gated|restricted"),
    ],
)
def test_what_is_not_there_or_not_allowed_is_an_error_the_client_names(
    hub: Running, tmp_path: Path, arguments: tuple[str, ...], token: str | None, said: str
) -> None:
    result = hf(hub, tmp_path / "home", "download", *arguments, "--local-dir", str(tmp_path / "d"), token=token)
    assert result.returncode != 0
    assert re.search(said, result.stdout + result.stderr, re.IGNORECASE), result.stderr


def test_a_gated_repository_opens_to_its_token(hub: Running, tmp_path: Path) -> None:
    result = hf(hub, tmp_path / "home", "download", "lab/gated", "--local-dir", str(tmp_path / "d"), token="hf_right")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "d" / "config.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        (f"/api/models/{REPOSITORY}/revision/nope", 404, "RevisionNotFound"),
        (f"/{REPOSITORY}/resolve/main/nope", 404, "EntryNotFound"),
        ("/api/models/a/b", 401, "RepoNotFound"),
        ("/lab/gated/resolve/main/config.json", 401, "GatedRepo"),
        ("/api/agent-harnesses", 404, None),
    ],
)
def test_errors_carry_the_hubs_codes_and_json(hub: Running, path: str, status: int, code: str | None) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(hub.url + path, timeout=HANG_S)
    assert refused.value.code == status
    assert refused.value.headers["X-Error-Code"] == code
    assert json.load(refused.value)["error"] == refused.value.headers["X-Error-Message"]


def test_the_rate_limit_holds_over_all_connections_and_can_be_lifted_while_it_sends(
    hub: Running, rates: list[int], tmp_path: Path
) -> None:
    # All but some small ones of these pieces are of 50 kB; 18 MB are sent.
    rates[:] = [1_000_000] * 100
    _, result = download(hub, tmp_path)
    assert result.returncode == 0, result.stderr
    assert rates == []
    assert 3 < hub.clock() < 5.1


def test_a_known_commit_that_is_complete_on_disk_needs_no_file_again(hub: Running, tmp_path: Path) -> None:
    download(hub, tmp_path, "--revision", hub.commit)
    hub.requests.clear()
    _, result = download(hub, tmp_path, "--revision", hub.commit)
    assert result.returncode == 0
    assert not [url for url in hub.requests if "/resolve/" in url]
