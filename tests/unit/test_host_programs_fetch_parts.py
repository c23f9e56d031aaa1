"""The parts of a download, each on its own: the store, the sums of its progress, peers, hubs and their client."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import time
from argparse import Namespace
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from rigup_host.fetch import hub_worker, hubs, may_serve, peers, report, run, store
from rigup_host.fetch.hubs import Hub, Hubs, read_event
from rigup_host.fetch.peers import Peer, Peers, Report
from rigup_host.fetch.report import Counted, Progress
from rigup_host.fetch.request import Request
from rigup_host.fetch.store import ARRIVING, File, Hopeless, Setback, Store
from tests.unit.waiting import HANG_S, until

COMMIT = "0" * 40
CONTENT = {"config.json": b"{}", "sub/weights.bin": bytes(10_000)}


class Clock:
    """Time that passes where a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *modules: object) -> None:
        self.now = 1_000.0
        for module in modules:
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now, time_ns=lambda: 0))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that names this installation."""
    path = tmp_path / "machine-id"
    path.write_text("this\n")
    monkeypatch.setattr(store, "MACHINE_ID", path)
    return path


@pytest.fixture
def checkpoint(tmp_path: Path, machine: Path) -> Store:
    """A checkpoint of which nothing has arrived, with an empty staging directory."""
    found = of(tmp_path / "models/org/name")
    found.prepare()
    return found


def of(directory: Path) -> Store:
    files = {path: File(path, len(data), hashlib.sha256(data).hexdigest(), None) for path, data in CONTENT.items()}
    return Store("org/name", COMMIT, directory / COMMIT, files)


def arrive(checkpoint: Store, *paths: str) -> None:
    for path in paths or CONTENT:
        checkpoint.arriving(checkpoint.files[path]).write_bytes(CONTENT[path])
        assert checkpoint.accept(checkpoint.files[path])


# The store


def test_a_file_has_its_own_name_once_it_is_verified_and_a_wrong_one_is_removed(checkpoint: Store) -> None:
    file = checkpoint.files["sub/weights.bin"]
    read: list[int] = []
    for wrong in (b"x", bytes(9_999) + b"x"):
        checkpoint.arriving(file).write_bytes(wrong)
        assert checkpoint.has_arrived(file) is (len(wrong) == file.size)
        assert not checkpoint.accept(file)
        assert not checkpoint.arriving(file).exists() and checkpoint.held() == set()
    assert not checkpoint.accept(file)
    checkpoint.arriving(file).write_bytes(CONTENT[file.path])
    checkpoint.arriving(file).chmod(0o600)
    assert checkpoint.accept(file, read.append)
    assert checkpoint.held() == {file.path} and sum(read) == file.size
    assert (checkpoint.staging / file.path).stat().st_mode & 0o777 == 0o644


def test_a_git_blob_is_known_by_its_id() -> None:
    # As `git hash-object` says of this file.
    file = File.read("f", "6 git:ce013625030ba8dba906f756967f9e9ca394464a")
    assert (file.size, file.sha256, file.git) == (6, None, "ce013625030ba8dba906f756967f9e9ca394464a")


def test_what_has_arrived_is_counted_without_holes(checkpoint: Store) -> None:
    assert (checkpoint.bytes, checkpoint.arrived_bytes()) == (10_002, 0)
    arrive(checkpoint, "config.json")
    assert checkpoint.arrived_bytes() == 2
    file = checkpoint.files["sub/weights.bin"]
    with checkpoint.arriving(file).open("wb") as arriving:
        arriving.truncate(10_000)
    assert checkpoint.has_arrived(file) and checkpoint.arrived_bytes() == 2
    checkpoint.arriving(file).write_bytes(bytes(5_000))
    assert checkpoint.arrived_bytes() == 5_002
    # More than was published is not more.
    checkpoint.arriving(file).write_bytes(bytes(20_000))
    assert checkpoint.arrived_bytes() == 10_002


def test_a_restart_keeps_what_was_published_alone(checkpoint: Store, machine: Path) -> None:
    arrive(checkpoint, "config.json")
    weights = checkpoint.arriving(checkpoint.files["sub/weights.bin"])
    weights.write_bytes(bytes(100))
    for foreign in ("foreign", "sub/foreign", f"{ARRIVING}/foreign"):
        (checkpoint.staging / foreign).parent.mkdir(exist_ok=True)
        (checkpoint.staging / foreign).write_text("x")
    checkpoint.prepare()
    assert checkpoint.held() == {"config.json"} and checkpoint.is_verified(checkpoint.staging)
    assert weights.read_bytes() == bytes(100)
    assert not [path for path in checkpoint.staging.rglob("foreign")]
    # On another machine nothing is verified until it has been verified there.
    machine.write_text("another\n")
    assert not checkpoint.is_verified(checkpoint.staging)
    checkpoint.prepare()
    assert checkpoint.held() == set() and checkpoint.has_arrived(checkpoint.files["config.json"])
    assert checkpoint.is_verified(checkpoint.staging)


def test_a_published_directory_holds_the_published_files_and_its_stamp_ends_with_any_change(
    checkpoint: Store, machine: Path
) -> None:
    arrive(checkpoint)
    checkpoint.arriving(checkpoint.files["config.json"]).write_text("of an earlier try")
    checkpoint.publish()
    there = {str(path.relative_to(checkpoint.dest)) for path in checkpoint.dest.rglob("*") if path.is_file()}
    assert there == set(CONTENT) and not checkpoint.staging.exists()
    assert checkpoint.is_stamped(checkpoint.dest) and checkpoint.is_verified(checkpoint.dest)
    assert not checkpoint.is_stamped(checkpoint.staging)
    assert not replace(checkpoint, revision="1" * 40).is_stamped(checkpoint.dest)
    assert not replace(checkpoint, repo="org/other").is_stamped(checkpoint.dest)
    record = checkpoint.stamp_path.read_text()
    stamp = json.loads(record)
    assert (stamp["files"], stamp["bytes"], stamp["machine"]) == (2, 10_002, "this")
    for bad in ("[]", "{", record.replace('"this"', '"another"'), record.replace("10002", "10003")):
        checkpoint.stamp_path.write_text(bad)
        assert not checkpoint.is_stamped(checkpoint.dest), bad
    checkpoint.stamp_path.write_text(record)
    (checkpoint.dest / "empty").touch()
    assert not checkpoint.is_stamped(checkpoint.dest)
    (checkpoint.dest / "empty").unlink()
    assert checkpoint.is_stamped(checkpoint.dest)
    config = checkpoint.dest / "config.json"
    os.utime(config, ns=(0, stamp["newest"] + 1))
    assert not checkpoint.is_stamped(checkpoint.dest)


def test_what_is_wrong_in_a_directory_is_named_and_goes_when_it_is_taken_back(checkpoint: Store) -> None:
    arrive(checkpoint)
    checkpoint.publish()
    read: list[int] = []
    assert checkpoint.wrong(checkpoint.dest, read.append) == [] and sum(read) == checkpoint.bytes
    (checkpoint.dest / "sub/weights.bin").write_bytes(bytes(9_999) + b"x")
    (checkpoint.dest / "foreign").touch()
    wrong = checkpoint.wrong(checkpoint.dest, lambda _: None)
    assert wrong == ["foreign", "sub/weights.bin"]
    checkpoint.take_back(wrong)
    assert checkpoint.held() == {"config.json"} and not checkpoint.dest.exists()
    assert checkpoint.is_verified(checkpoint.staging)
    # A directory without anything leaves what has arrived in its place.
    checkpoint.dest.mkdir()
    checkpoint.take_back(["config.json", "sub/weights.bin"])
    assert checkpoint.held() == {"config.json"} and not checkpoint.dest.exists()


def test_room_is_kept_for_the_system_on_its_own_file_system(checkpoint: Store, tmp_path: Path) -> None:
    assert checkpoint.reserve_bytes([tmp_path / "none", tmp_path]) == store.RESERVE_BYTES
    assert checkpoint.reserve_bytes([tmp_path / "none", Path("/proc")]) == 0
    assert 0 < checkpoint.free_bytes() <= os.statvfs(tmp_path).f_bfree * os.statvfs(tmp_path).f_frsize


# The progress


def test_bytes_of_several_threads_are_added_up() -> None:
    sums: list[int] = []
    counted = Counted(sums.append)
    for count in (3, 4, 5):
        counted(count)
    assert sums == [3, 7, 12]


def test_a_progress_is_written_once_a_second_and_for_each_new_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, path = Clock(monkeypatch, report), tmp_path / "progress.json"
    # Shortly after a boot.
    clock.now = 1.0
    progress = Progress(path, 9_000)

    def told(step: str, done: int, after: float) -> tuple[object, ...]:
        clock.now += after
        progress.tell(step, done, "doing")
        found = json.loads(path.read_text())
        return found["step"], found["bytes_done"], found["rate"]

    assert told("one", 10, 0) == ("one", 10, 0)
    assert told("one", 500, 0.9) == ("one", 10, 0)
    assert told("one", 1_010, 0.1) == ("one", 1_010, 1_000)
    # A new step begins with a rate of its own.
    assert told("two", 2_000, 0.1) == ("two", 2_000, 0)
    found = json.loads(path.read_text())
    assert (found["bytes_total"], found["doing"], found["began_at"]) == (9_000, "doing", progress.began_at)
    Progress(None, 1).tell("one", 1)


# Peers


def peer(name: str, **says: Sequence[str]) -> Peer:
    found = Peer(name, "10.0.0.1", 7)
    found.hear(Report(1, True, **{kind: frozenset(paths) for kind, paths in says.items()}))
    return found


def all_of(checkpoint: Store, tmp_path: Path, *others: Peer, own: str = "rig2") -> Peers:
    return Peers(own, others, checkpoint, tmp_path / "home", stall=10)


def test_a_peer_is_asked_at_its_address_by_owner_name_and_commit(checkpoint: Store) -> None:
    place = f"org/name/{COMMIT}"
    assert Peer("a", "10.0.0.1", 873).url("models", checkpoint.dest) == f"rsync://10.0.0.1:873/models/{place}"
    assert Peer("a", "fd00::1", 8).url("reports", checkpoint.dest) == f"rsync://[fd00::1]:8/reports/{place}"


def test_a_claim_counts_until_its_time_is_up_and_while_the_peer_shows_life(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, peers)
    one = peer("one", fetching=["a"], wants=["b"], held=["c"])
    assert one.holds("c") and not one.holds("a")
    assert one.is_fetching and not one.fetches("a") and not one.wants("b")
    one.claims = {"a": clock.now + 15, "b": clock.now + 15}
    assert one.fetches("a") and one.wants("b") and not one.fetches("b") and not one.wants("a")
    clock.now += 15
    assert one.is_fetching and not one.fetches("a") and not one.wants("b")
    # The same report again is no sign of life; the next one is.
    clock.now += 4.9
    one.hear(one.report)
    assert one.is_fetching
    clock.now += 0.1
    assert not one.is_fetching
    one.hear(replace(one.report, beat=2))
    assert one.is_fetching
    one.hear(replace(one.report, beat=3, active=False))
    assert not one.is_fetching


def test_a_peer_that_rests_is_asked_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, one = Clock(monkeypatch, peers), peer("one")
    assert not one.is_resting and not one.is_doubted
    one.rest()
    clock.now += 4.9
    assert one.is_resting and one.is_doubted
    clock.now += 0.1
    assert not one.is_resting and one.is_doubted
    one.hear(one.report)
    assert not one.is_doubted


def test_of_two_hosts_that_want_a_file_the_first_by_name_fetches_it(
    checkpoint: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, peers)
    found: dict[str, tuple[bool, bool]] = {}
    for name in ("rig1", "rig2", "rig3"):
        other = peer(name, wants=["config.json"])
        other.claims["config.json"] = clock.now + 1
        both = all_of(checkpoint, tmp_path, other)
        found[name] = both.is_taken("config.json"), both.is_undecided("config.json")
        assert not both.is_taken("sub/weights.bin") and not both.is_undecided("sub/weights.bin")
    assert found == {"rig1": (True, False), "rig2": (False, False), "rig3": (False, True)}
    # Whoever fetches it already has it.
    other = peer("rig3", fetching=["config.json"])
    other.claims["config.json"] = clock.now + 1
    assert all_of(checkpoint, tmp_path, other).is_taken("config.json")


def test_a_peer_is_a_holder_of_files_with_plain_names_only(checkpoint: Store, tmp_path: Path) -> None:
    one, two = peer("one", held=["config.json", "a*"]), peer("two")
    both = all_of(checkpoint, tmp_path, one, two)
    assert both.holders("config.json") == [one]
    assert both.holders("a*") == [] and both.holders("sub/weights.bin") == []
    assert both.time_for(checkpoint.files["sub/weights.bin"]) == 10 + 10_000 / 500_000
    both.drop(one, "sends nonsense")
    assert both.all == [two]


def test_a_report_says_what_is_here_and_each_one_is_a_new_one(checkpoint: Store, tmp_path: Path) -> None:
    own = all_of(checkpoint, tmp_path)
    beats = []
    for active in (True, False):
        own.tell(["b", "a"], ["c"], ["d"], active)
        found = Report.read(checkpoint.shared_path.read_bytes())
        assert (found.active, found.held, found.wants, found.fetching) == (active, {"a", "b"}, {"c"}, {"d"})
        beats.append(found.beat)
    assert beats[1] == beats[0] + 1 > 1


@pytest.mark.parametrize("size", [0, 1, 10])
def test_a_copy_ends_at_its_published_size(tmp_path: Path, size: int) -> None:
    path = tmp_path / "copied"
    argv = [*peers._limited(size), "dd", "if=/dev/zero", f"of={path}", "bs=1", "count=10"]
    done = subprocess.run(argv, capture_output=True)
    assert path.stat().st_size == size and (done.returncode == 0) is (size == 10)


@pytest.mark.parametrize(
    ("path", "served"),
    [
        (f"org/name/{COMMIT}", True),
        (f"org/name/{COMMIT}/", True),
        (f"org/name/{COMMIT}/config.json", True),
        (f"org/name/.{COMMIT}.incoming/config.json", True),
        (f"org/other/{COMMIT}/config.json", True),  # There is none.
        ("org/name/by-hand/file", False),
        ("org/name", False),
        ("org", False),
        ("", False),
        (f"org/name/{COMMIT}/..", False),
        (f"org/../org/name/{COMMIT}", False),
        (f"./org/name/{COMMIT}", False),
        (f"org//name/{COMMIT}", False),
    ],
)
def test_what_this_machine_has_verified_is_served_by_its_path(checkpoint: Store, path: str, served: bool) -> None:
    models = checkpoint.dest.parents[2]
    (models / "org/name/by-hand").mkdir()
    arrive(checkpoint)
    checkpoint.publish()
    with nullcontext() if served else pytest.raises(may_serve.Refused):
        may_serve.check(models, path)


# Hubs. A stand-in for the client says what the test wants it to say.


def hub(checkpoint: Store, tmp_path: Path, script: str, token: str | None = None) -> Hub:
    python = tmp_path / "venv/bin/python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    return Hub("https://hub.example", checkpoint, tmp_path / "venv", token, tmp_path / "home", 60)


def after(hub: Hub, count: int) -> list[dict[str, object]]:
    """Return the next `count` events."""
    found: list[dict[str, object]] = []

    def enough() -> bool:
        found.extend(hub.events())
        return len(found) >= count

    until(enough)
    return found


def says(*events: dict[str, object]) -> str:
    return "\n".join(f"echo '{json.dumps(event)}'" for event in events)


FAILED = {"why": "no luck", "hopeless": False, "wait": None, "xet": False}


def test_a_client_gets_its_order_and_only_the_environment_that_it_needs(checkpoint: Store, tmp_path: Path) -> None:
    script = f'read line; echo "$line" > {tmp_path}/order; env > {tmp_path}/env; echo $@ > {tmp_path}/argv'
    one = hub(checkpoint, tmp_path, f'{script}; echo \'{{"done": "config.json"}}\'; exec sleep {HANG_S:.0f}', "secret")
    file = checkpoint.files["config.json"]
    try:
        one.order(file)
        assert one.at_work == {"config.json"}
        (event,) = after(one, 1)
        assert event["done"] == "config.json" and one.at_work == set()
    finally:
        one.stop()
    order = {"path": "config.json", "size": 2, "to": str(checkpoint.arriving(file)), "xet": True}
    assert json.loads((tmp_path / "order").read_text()) == order
    there = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    assert (there["HF_TOKEN"], there["HF_HUB_DOWNLOAD_TIMEOUT"]) == ("secret", "60")
    assert (there["HF_ENDPOINT"], there["HF_XET_CLIENT_READ_TIMEOUT"]) == ("https://hub.example", "60s")
    argv = (tmp_path / "argv").read_text()
    assert f"--endpoint https://hub.example --repo org/name --revision {COMMIT} --largest 10000" in argv


def test_a_client_that_ends_has_failed_with_all_its_files(checkpoint: Store, tmp_path: Path) -> None:
    one = hub(checkpoint, tmp_path, "read line; exit 7")
    one.order(checkpoint.files["config.json"])
    (event,) = after(one, 1)
    told = {"failed": "config.json", "why": "the hub's client exited with 7", "hopeless": False, "wait": None}
    assert event == {**told, "xet": True} and one.at_work == set()
    # The next order starts another one.
    one.order(checkpoint.files["config.json"])
    assert after(one, 1)[0]["failed"] == "config.json"
    assert one.stop() == set()


@pytest.mark.parametrize(
    "line", ["", "[]", "1", '{"done": 1}', '{"done": "a", "x": 1}', '{"waiting": -1}', '{"in_memory": 1e9}', "{"]
)
def test_what_is_no_event_of_a_client_is_none(line: str) -> None:
    with pytest.raises(ValueError):
        read_event(line)


def test_after_failures_the_pauses_grow_up_to_a_limit_and_patience_ends(
    checkpoint: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch, hubs)
    one = hub(checkpoint, tmp_path, "")
    both = Hubs([one], checkpoint, pause=5, patience=1_000, stall=90)

    def fails(wait: float | None = None, hopeless: bool = False, why: str = "no luck") -> None:
        both._had_setback(one, "config.json", why, hopeless, wait)

    rests = []
    for _ in range(8):
        fails()
        rests.append(one.rest_until - clock.now)
        assert not one.is_ready and not both.is_ready
        # Another file with the same failure changes nothing.
        fails(wait=1)
        assert one.rest_until - clock.now == rests[-1]
        clock.now = one.rest_until
        assert one.is_ready and both.is_ready and both.waiting() == ""
    assert rests == [5, 10, 20, 40, 80, 160, 300, 300]
    # What arrives is progress, and the pauses begin anew.
    arrive(checkpoint, "config.json")
    fails()
    assert one.rest_until - clock.now == 5
    assert both.waiting() == "5 s, hub.example failed: config.json: no luck"
    clock.now = one.rest_until
    fails(wait=7)
    assert one.rest_until - clock.now == 7
    clock.now += 1_000
    with pytest.raises(Setback, match=r"given up after 1005 s without progress; .* from hub.example: no luck"):
        fails()
    assert both.hopeless is None
    fails(hopeless=True, why="no such repository")
    assert both.hopeless == "no such repository" and not both.is_ready and both.waiting() == ""
    with pytest.raises(Hopeless):
        fails(hopeless=True, why="the disk is full")
    assert "config.json from hub.example: no luck; next try in 5 s" in capsys.readouterr().out


def test_a_client_that_brings_nothing_for_too_long_is_ended_unless_the_hub_asked_to_wait(
    checkpoint: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, hubs)
    one = hub(checkpoint, tmp_path, f"{says({'waiting': 30}, {'in_memory': 50})}\nexec sleep {HANG_S:.0f}")
    both = Hubs([one], checkpoint, pause=5, patience=1_000, stall=90)
    try:
        both.order(checkpoint.files["sub/weights.bin"], ())

        def heard() -> bool:
            both.arrivals()
            return one.in_memory == 50

        until(heard)
        assert both.at_work == {"sub/weights.bin"} and both.arrived_bytes == 50
        assert one.patience_until == clock.now + 120
        for after_s, works in ((90, True), (30, True), (0.5, False)):
            clock.now += after_s
            both.watch(0)
            assert bool(one.at_work) is works
    finally:
        both.stop()
    assert one.in_memory == both.arrived_bytes == 0
    assert not one.xet and one.setback == "sub/weights.bin: no byte for 90 s"


def test_what_an_ended_client_has_said_does_not_count_for_the_next_one(checkpoint: Store, tmp_path: Path) -> None:
    first = f'[ -e {tmp_path}/first ] || {{ touch {tmp_path}/first; echo \'{{"done": "config.json"}}\'; }}'
    one = hub(checkpoint, tmp_path, f"{first}\nexec sleep {HANG_S:.0f}")
    try:
        one.order(checkpoint.files["config.json"])
        until(lambda: not one._events.empty())
        assert one.stop() == {"config.json"}
        one.order(checkpoint.files["config.json"])
        assert one.events() == [] and one.at_work == {"config.json"}
    finally:
        one.stop()


# The whole


def request_of(checkpoint: Store, tmp_path: Path, **more: object) -> Path:
    files = {path: f"{file.size} sha256:{file.sha256}" for path, file in checkpoint.files.items()}
    about = {"repo": checkpoint.repo, "revision": checkpoint.revision, "dest": str(checkpoint.dest), "files": files}
    path = tmp_path / "request.json"
    path.write_text(json.dumps({**about, "hubs": ["https://hub.example"], "venv": str(tmp_path / "venv"), **more}))
    return path


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a disk needs root")
@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("nr_inodes=2", "failed: the disk is full: free some space or choose another model_store\n"),
        ("ro", "failed: [Errno 30] Read-only file system: "),
    ],
)
def test_a_disk_that_takes_nothing_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, said: str
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    request = request_of(of(disk / "org/name"), tmp_path)
    subprocess.run(["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(disk)], check=True)
    mask = os.umask(0)
    try:
        assert run.main([str(request), f"--home={tmp_path}/home"]) == 2
    finally:
        os.umask(mask)
        subprocess.run(["umount", str(disk)], check=True)
    assert capsys.readouterr().err.startswith(said)


def whole(checkpoint: Store, tmp_path: Path, **more: object) -> run.Fetch:
    """A download of which nothing has begun."""
    options = {"progress": None, "home": tmp_path / "home", "timeout": 60, "stall": 90.0, "silence": 20.0}
    request = Request.read(request_of(checkpoint, tmp_path, **more))
    fetch = run.Fetch(request, Namespace(pause=5.0, answer=5, patience=60.0, system=[], **options))
    fetch.missing = dict(checkpoint.files)
    return fetch


def test_a_file_that_hubs_send_wrong_three_times_is_given_up(checkpoint: Store, tmp_path: Path) -> None:
    fetch = whole(checkpoint, tmp_path)
    (hub,) = fetch.hubs.all
    for count in (1, 2, 3):
        hub.xet = True
        fetch.checks["config.json"] = Future()
        fetch.checks["config.json"].set_result(False)
        fetch.touched["config.json"] = {hub.name}
        with nullcontext() if count < 3 else pytest.raises(Hopeless, match="still not as published after 3 downloads"):
            fetch.end_checks()
        assert not hub.xet and fetch.checks == {} and fetch.distrusted == {"config.json": {hub.name}}


def test_a_copy_that_has_ended_does_not_wait_for_the_others(checkpoint: Store, tmp_path: Path) -> None:
    fetch = whole(checkpoint, tmp_path, peers=[{"name": "rig2", "address": "127.0.0.1", "port": 1}])
    (other,) = fetch.peers.all
    started = [subprocess.Popen(argv, start_new_session=True) for argv in (["sleep", str(HANG_S)], ["false"])]
    started[1].wait()
    later = time.monotonic() + HANG_S
    try:
        fetch.copies = {path: (other, each, later) for path, each in zip(checkpoint.files, started, strict=True)}
        fetch.end_copies()
        assert fetch.copies.keys() == {"config.json"} and other.is_resting
    finally:
        fetch.stop()
        started[0].wait()


def test_a_peer_that_rests_or_was_not_heard_since_is_not_copied_from(
    checkpoint: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, peers, run)
    fetch = whole(checkpoint, tmp_path, name="rig1", peers=[{"name": "rig2", "address": "127.0.0.1", "port": 1}])
    del fetch.missing["sub/weights.bin"]
    (other,) = fetch.peers.all
    other.hear(Report(1, True, held=frozenset(fetch.missing)))
    try:
        other.rest()
        fetch.assign()
        assert fetch.copies == {}
        # The pause is over, and nobody knows yet whether it lives.
        clock.now += peers.REST_S
        fetch.assign()
        assert fetch.copies == {}
        # As after a report that took long.
        other.hear(replace(other.report, beat=2))
        other.deaf_until = clock.now + 1
        fetch.assign()
        assert fetch.copies == {}
        clock.now += 1
        fetch.assign()
        assert fetch.copies.keys() == {"config.json"}
    finally:
        fetch.stop()
    assert fetch.hubs.at_work == set()


# The client


def test_what_is_received_and_not_yet_written_is_in_memory(capsys: pytest.CaptureFixture[str]) -> None:
    one, two = hub_worker.Meter(total=5), hub_worker.Meter()
    one.update_transfer(10)
    two.update_transfer(3)
    one.update(4)
    # Bytes that came compressed are more when they are written.
    two.update(5)
    one.close()
    two.close()
    said = [json.loads(line)["in_memory"] for line in capsys.readouterr().out.splitlines()]
    assert said == [10, 13, 9, 6]


def failed(status: int, **headers: str) -> Exception:
    error = OSError("the first line\nthe second line")
    error.response = httpx.Response(status, headers=headers)  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "7200"}, 3600),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-7"}, None),
        ({"Retry-After": "Tue, 01 Dec 2026 12:00:09 GMT", "Date": "Tue, 01 Dec 2026 12:00:00 GMT"}, 9),
        ({"Retry-After": "Tue, 01 Dec 2026 11:00:00 GMT", "Date": "Tue, 01 Dec 2026 12:00:00 GMT"}, 0),
        ({"Retry-After": "Wed, 02 Dec 2026 12:00:00 GMT", "Date": "Tue, 01 Dec 2026 12:00:00 GMT"}, 3600),
        ({"Retry-After": "Tue, 01 Dec 2026 12:00:09 GMT"}, None),
    ],
)
def test_the_hub_says_when_it_wants_to_be_asked_again(headers: dict[str, str], seconds: float | None) -> None:
    assert hub_worker.asked_to_wait(failed(429, **headers)) == seconds
    assert hub_worker.asked_to_wait(OSError("no answer")) is None


@pytest.mark.parametrize(
    ("error", "hopeless", "why"),
    [
        (failed(401), True, "the hub refuses the token: check HF_TOKEN. The hub's client reports: the first line"),
        (failed(403), True, "the hub refuses the token: check HF_TOKEN. The hub's client reports: the first line"),
        (failed(503), False, "the hub answered 503"),
        (OSError(errno.ENOSPC, "x"), True, "the disk is full: free some space or choose another model_store"),
        (OSError(errno.ECONNRESET, "reset"), False, "[Errno 104] reset"),
        (hub_worker.XetFailed("xet: x"), False, "xet: x"),
        (hub_worker.StorageFailed(failed(403)), False, "the hub's storage answered 403"),
        (ValueError(), False, "ValueError"),
    ],
)
def test_a_failure_is_told_with_whether_another_try_can_help(error: Exception, hopeless: bool, why: str) -> None:
    assert hub_worker.explain(error) == (hopeless, why)


def test_a_client_has_these_limits() -> None:
    assert (hub_worker.PIECE, hub_worker.RECORDS, hub_worker.LONGEST_WAIT_S) == (65_536, 67_108_864, 3600)


# The request


def test_a_request_is_read_with_all_that_it_names(tmp_path: Path) -> None:
    asked = {
        "repo": "org/name",
        "revision": COMMIT,
        "dest": "/srv/models/org",
        "files": {"a": f"1 git:{COMMIT}"},
        "hubs": ["https://hub.example"],
        "venv": "/venv",
    }
    path = tmp_path / "request.json"
    path.write_text(json.dumps(asked))
    found = Request.read(path)
    assert (found.sources, found.name, found.peers, found.venv) == ((), "", (), Path("/venv"))
    assert found.store.files == {"a": File("a", 1, None, COMMIT)}
    more = {"sources": ["/mnt"], "name": "rig1", "peers": [{"name": "rig2", "address": "10.0.0.2", "port": "873"}]}
    path.write_text(json.dumps({**asked, **more}))
    found = Request.read(path)
    assert (found.sources, found.name, found.peers) == ((Path("/mnt"),), "rig1", (Peer("rig2", "10.0.0.2", 873),))
    for wrong in ({"dest": "/srv/models"}, {"hubs": []}, {"files": {}}, {"revision": COMMIT[1:]}):
        path.write_text(json.dumps({**asked, **wrong}))
        with pytest.raises(Hopeless):
            Request.read(path)
