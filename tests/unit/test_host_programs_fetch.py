"""rigup-host fetch with the hub's real client, against the lab's hub, which misbehaves as hubs and networks do."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from lab.hub import faults
from lab.hub.repository import Repository
from rigup.render.systemd import fetch_unit_text
from rigup_host.fetch import hubs, peers, report, run, store
from rigup_host.fetch.request import token_for
from rigup_host.fetch.store import File, Store
from tests.unit.store_world import REPO, SHARD_BYTES, SHARDS, TOKEN, Rig, RunningHub, hub_of, killed_at_random
from tests.unit.waiting import HANG_S, until

pytest_plugins = ("tests.unit.store_world_plugin",)

FIRST, SECOND, THIRD = SHARDS


@pytest.fixture
def rig(hub: RunningHub, tmp_path: Path) -> Rig:
    return Rig(tmp_path / "rig1", hub)


def test_a_checkpoint_arrives_exactly_as_published_and_is_stamped(rig: Rig) -> None:
    result = rig.fetch()

    assert result.returncode == 0, result.stderr
    assert rig.is_as_published() and rig.is_clean()
    stamp = json.loads(rig.stamp.read_text())
    assert (stamp["repo"], stamp["revision"], stamp["files"]) == (REPO, rig.hub.repository.commit, 7)
    assert stamp["bytes"] == sum(entry.size for entry in rig.hub.repository.entries.values())
    assert {oct(path.stat().st_mode)[-3:] for path in rig.dest.rglob("*") if path.is_file()} == {"644"}
    assert json.loads(rig.progress.read_text())["step"] == "complete"


def test_of_the_environment_the_hubs_client_takes_the_proxies_alone(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    file = rig.directory / "root/etc/environment"
    file.parent.mkdir(parents=True)
    file.write_text('PATH="/opt/x:$PATH"\nHF_HUB_OFFLINE=1\nLD_PRELOAD=/nonexistent\nexport no_proxy=localhost\n')
    # As systemd gives it with EnvironmentFile=.
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert rig.fetch().returncode == 0
    assert rig.is_as_published()

    rig = Rig(rig.directory.with_name("rig2"), rig.hub, options=("--patience=0",))
    file = rig.directory / "root/etc/environment"
    file.parent.mkdir(parents=True)
    # Nothing listens there.
    file.write_text('HTTP_PROXY="http://127.0.0.1:1"\n')
    rig.hub.forget()
    with rig.fetching() as process:
        until(lambda: rig.later(3600) or process.poll() is not None)
        said = process.communicate(timeout=HANG_S)[0]
    assert "Connection refused" in said
    assert rig.hub.journal == []


def test_a_second_run_asks_nobody_for_anything(rig: Rig) -> None:
    rig.fetch()
    rig.hub.forget()

    assert rig.fetch().returncode == 0
    assert rig.hub.journal == []


# What goes wrong at the hub, how often it may have had to send the first shard, and what is said about it.
BAD_DAYS = {
    "cut in every tenth of a file": (["cut,path=*.safetensors"], 1.5, ""),
    "too many requests": (["429,times=6,value=1"], 1.1, "the hub answered 429; next try in 1 s"),
    "too many requests for contents": ([f"429,path={FIRST},times=2,value=1"], 1.1, ""),
    "a truncated body": ([f"truncate,path={FIRST},times=3"], 1.1, "should be of size"),
    "a flipped byte": ([f"flip,path={FIRST},times=1"], 2.1, f"{FIRST} from 127.0.0.1"),
    "a wrong etag": (["etag"], 1.1, ""),
    "a flipped byte, then cuts": ([f"flip,path={FIRST},times=1", f"cut,path={FIRST}"], 2.4, "is not as published"),
}


@pytest.mark.parametrize("name", BAD_DAYS)
def test_whatever_the_hub_does_the_published_bytes_arrive(rig: Rig, name: str) -> None:
    rules, most, said = BAD_DAYS[name]
    rig.hub.err(*rules)

    result = rig.fetch()

    assert result.returncode == 0, result.stdout + result.stderr
    assert said in result.stdout
    assert rig.is_as_published() and rig.is_clean()
    assert SHARD_BYTES <= rig.hub.sent(FIRST) <= most * SHARD_BYTES
    assert rig.hub.sent(SECOND) <= 1.5 * SHARD_BYTES


def test_a_file_that_stalls_is_asked_for_again_while_the_others_go_on(rig: Rig) -> None:
    rig.hub.err(f"stall,path={SECOND},times=1")
    rig.options = ("--timeout=1",)

    sent = 1_600_000

    def ended() -> list[str]:
        nonlocal sent
        sent += 5_000
        rig.hub.tap.close_after(sent)
        return [line["about"] for line in rig.hub.journal_so_far if line["method"] == "GET"]

    rig.hub.tap.close_after(sent)
    with rig.fetching() as process:
        # The others' bytes go on to come until this one's connection has been given up.
        until(lambda: SECOND in ended(), lambda: process.poll() is None)
        rig.hub.tap.open()
        said = process.communicate(timeout=HANG_S)[0]

    assert process.returncode == 0, said
    assert rig.is_as_published() and rig.is_clean()
    assert "no byte for" not in said


@pytest.mark.parametrize(("wait", "told"), [(3000, "next try in (2[0-9]{3}|3000) s"), (86400, "next try in 3600 s")])
def test_a_hub_may_say_as_a_date_when_it_wants_to_be_asked_again(rig: Rig, wait: int, told: str) -> None:
    then = format_datetime(datetime.now(UTC) + timedelta(seconds=wait), usegmt=True)
    faults.write(rig.hub.directory / "faults.json", [faults.Rule("429", path=FIRST, times=1, value=then)])
    with rig.fetching() as process:
        assert process.stdout is not None
        said = next(line for line in process.stdout if "answered 429" in line)

        assert re.search(told, said), said
        if wait < 3600:
            rig.later(wait)
            process.communicate(timeout=HANG_S)
            assert rig.is_as_published()


def test_files_may_come_from_another_host_which_does_not_get_the_token(rig: Rig, tmp_path: Path) -> None:
    with hub_of(rig.hub.repository, tmp_path / "gated", gated=True) as named:
        elsewhere = rig.hub.url.replace("127.0.0.1", "localhost")
        named.err(f"redirect,value={elsewhere}")
        result = rig.fetch(token_for="127.0.0.1", hubs=[named.url])

        assert result.returncode == 0, result.stdout + result.stderr
        assert rig.is_as_published()
        assert all(line["authorized"] for line in named.journal)
        assert rig.hub.sent(FIRST) == SHARD_BYTES
        assert not any(line["authorized"] for line in rig.hub.journal)
        assert TOKEN not in result.stdout + result.stderr + rig.progress.read_text()


def test_a_url_of_the_storage_that_has_run_out_is_replaced_by_a_new_one(rig: Rig, tmp_path: Path) -> None:
    with hub_of(rig.hub.repository, tmp_path / "named") as named:
        named.err(f"redirect,value={rig.hub.url.replace('127.0.0.1', 'localhost')}")
        rig.hub.err(f"403,path={FIRST},times=1")
        result = rig.fetch(hubs=[named.url])

    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{FIRST} from {urlsplit(named.url).netloc}: the hub's storage answered 403; next try" in result.stdout
    assert rig.is_as_published()


def test_a_mirror_of_another_name_never_sees_the_token(rig: Rig) -> None:
    result = rig.fetch(token_for="huggingface.co")

    assert result.returncode == 0, result.stderr
    assert rig.hub.journal
    assert not any(line["authorized"] for line in rig.hub.journal)


@pytest.mark.parametrize(
    ("host", "url", "is_sent"),
    [
        ("huggingface.co", "https://huggingface.co", True),
        ("huggingface.co", "http://huggingface.co", False),
        ("huggingface.co", "http://huggingface.co:443", False),
        ("huggingface.co", "https://huggingface.co.example", False),
        ("127.0.0.1", "http://127.0.0.1:8080", True),
        ("hub.lan", "http://hub.lan", False),
    ],
)
def test_the_token_is_sent_to_its_host_with_tls_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, url: str, is_sent: bool
) -> None:
    (tmp_path / "hub-token").write_text(json.dumps({"host": host, "token": TOKEN}))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert token_for(url) == (TOKEN if is_sent else None)


def test_a_mirror_is_asked_first_and_the_hub_for_what_the_mirror_has_wrongly(rig: Rig, tmp_path: Path) -> None:
    with hub_of(rig.hub.repository, tmp_path / "mirror") as mirror:
        mirror.err(f"flip,path={FIRST}", f"503,path={SECOND}")
        result = rig.fetch(hubs=[mirror.url, rig.hub.url])

        assert result.returncode == 0, result.stdout + result.stderr
        assert rig.is_as_published()
        assert mirror.sent(FIRST) == SHARD_BYTES
        assert rig.hub.sent(FIRST) == SHARD_BYTES


def test_bytes_that_stay_wrong_are_given_up_and_never_stamped(rig: Rig) -> None:
    rig.hub.err(f"flip,path={FIRST}")

    result = rig.fetch()

    assert result.returncode == 2
    assert f"still not as published after 3 downloads: {FIRST}" in result.stderr
    assert not rig.dest.exists() and rig.holds_nothing_false()
    assert rig.hub.sent(SECOND) == SHARD_BYTES


def final() -> set[int]:
    """The exit statuses after which systemd does not start it again."""
    unit = fetch_unit_text()
    (line,) = [line for line in unit.splitlines() if line.startswith("RestartPreventExitStatus=")]
    return set(map(int, line.partition("=")[2].split()))


def test_a_hub_that_is_away_for_a_while_is_waited_for_with_pauses_that_grow_to_sixty_times_the_first(rig: Rig) -> None:
    rig.hub.err("503")
    rig.options = ("--pause=5",)
    with rig.fetching() as process:
        assert process.stdout is not None
        pauses = []
        for line in process.stdout:
            if pause := re.search(r"the hub answered 503; next try in (\d+) s", line):
                pauses.append(int(pause[1]))
                until(lambda: rig.told().get("step") == "waiting before the next try")
                assert re.search("failed: .*answered 503", rig.told()["doing"])
                if len(pauses) == 8:
                    rig.hub.err()
                rig.later(pauses[-1])
        process.communicate(timeout=HANG_S)

    assert process.returncode == 0
    assert rig.is_as_published()
    assert pauses[:8] == [5, 10, 20, 40, 80, 160, 300, 300]


def test_a_hub_that_stays_away_for_long_is_given_up_and_the_next_run_goes_on(rig: Rig) -> None:
    rig.hub.err(f"503,path={FIRST}")
    rig.options = (f"--patience={6 * 3600}",)

    with rig.fetching() as process:
        until(lambda: all((rig.staging / name).exists() for name in (SECOND, THIRD)), lambda: process.poll() is None)
        until(lambda: rig.later(3600) or process.poll() is not None)
        said = process.communicate(timeout=HANG_S)[0]

    assert process.returncode in final(), said
    told = rf"given up after \d+.\d h without progress; the last failure: {FIRST} from .*answered 503"
    assert re.search(told, said)
    assert rig.holds_nothing_false()
    rig.hub.err()
    rig.hub.forget()
    assert rig.fetch().returncode == 0
    assert rig.is_as_published()
    assert rig.hub.sent(SECOND) == 0


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"repo": "org/other"}, "no such repository"),
        ({"revision": "f" * 40}, "no such commit"),
    ],
)
def test_what_the_hub_does_not_have_is_not_asked_for_again(rig: Rig, changes: dict[str, str], why: str) -> None:
    result = rig.fetch(**changes)

    assert result.returncode == 2
    assert why in result.stderr
    assert "next try" not in result.stdout


def test_a_gated_checkpoint_without_a_token_is_told(rig: Rig, tmp_path: Path) -> None:
    with hub_of(rig.hub.repository, tmp_path / "gated", gated=True) as gated:
        result = rig.fetch(hubs=[gated.url])

    assert result.returncode == 2
    assert "the model's terms must be accepted first" in result.stderr


def test_what_nobody_foresaw_is_tried_again_by_systemd(rig: Rig) -> None:
    result = rig.fetch(venv="/not/there")

    assert result.returncode not in {0, *final()}
    assert "No such file or directory: '/not/there/bin/python'" in result.stderr


def killed_in_the_middle(rig: Rig) -> int:
    """Kill a run; returns how many bytes have arrived then. The hub forgets it."""
    rig.hub.tap.close_after(1_600_000)
    with rig.fetching() as process:
        until(lambda: rig.arrived() > 4_000_000, lambda: process.poll() is None)
    there = rig.arrived()
    rig.hub.tap.open()
    rig.hub.forget()
    return there


def test_a_killed_run_goes_on_within_its_files(rig: Rig) -> None:
    there = killed_in_the_middle(rig)

    assert not rig.dest.exists() and rig.holds_nothing_false()
    result = rig.fetch()
    assert result.returncode == 0, result.stdout
    assert rig.is_as_published() and rig.is_clean()
    assert rig.hub.sent() <= sum(entry.size for entry in rig.hub.repository.entries.values()) - there + 100_000


@pytest.mark.parametrize("xet", [False, True], ids=["plain HTTP", "xet"])
def test_runs_killed_at_random_moments_leave_nothing_false_and_the_last_one_finishes(
    repository: Repository, tmp_path: Path, xet: bool
) -> None:
    with hub_of(repository, tmp_path / "hub", xet=xet) as hub:
        killed_at_random(Rig(tmp_path / "rig1", hub), 3)

        assert any(line["about"].startswith("xet:") for line in hub.journal) == xet


def test_a_client_that_is_killed_is_started_again(rig: Rig) -> None:
    rig.hub.tap.close_after(1_000_000)
    with rig.fetching() as process:
        until(lambda: rig.arrived() > 2_000_000, lambda: process.poll() is None)
        rig.kill_client(process)
        rig.hub.tap.open()
        said = process.communicate(timeout=HANG_S)[0]

    assert process.returncode == 0, said
    assert "the hub's client exited with -9" in said
    assert rig.is_as_published()


@contextmanager
def small_disk(rig: Rig, size: str) -> Iterator[None]:
    """The rig's store lies on a file system of this size."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    rig.store.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(rig.store)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(rig.store)], check=True)


def filled_meanwhile(rig: Rig, size: int, *, more_arrives: bool = True) -> str:
    """What a download says that is under way when others write so many bytes to its disk."""
    rig.hub.tap.close_after(700_000)
    with rig.fetching() as process:
        until(lambda: rig.arrived() > 1_000_000, lambda: process.poll() is None)
        (rig.store / "other").write_bytes(bytes(size))
        if more_arrives:
            rig.hub.tap.open()
        said = process.communicate(timeout=HANG_S)[0]
        rig.hub.tap.open()
    assert process.returncode == 2, said
    assert "the disk is full: free some space or choose another model_store" in said
    assert rig.holds_nothing_false()
    again = rig.fetch()
    assert again.returncode == 2
    assert "more bytes are needed" in again.stderr
    (rig.store / "other").unlink()
    assert rig.fetch().returncode == 0
    assert rig.is_as_published()
    return str(said)


def test_a_full_disk_is_told_and_the_download_goes_on_once_there_is_room(rig: Rig) -> None:
    with small_disk(rig, "12m"):
        filled_meanwhile(rig, 7_000_000)


def test_a_disk_that_the_system_needs_as_well_is_never_filled(rig: Rig) -> None:
    with small_disk(rig, "2100m"):
        rig.options = ("--system", str(rig.store))
        # The rest would fit, and could arrive before the download has looked.
        said = filled_meanwhile(rig, 60 << 20, more_arrives=False)

        assert f"and the system needs {2 << 30}" in said


def test_a_lost_file_a_changed_one_and_a_foreign_one_are_put_right(rig: Rig) -> None:
    rig.fetch()
    (rig.dest / "config.json").unlink()
    (rig.dest / FIRST).write_bytes(bytes(SHARD_BYTES - 1))
    (rig.dest / "sub" / "notes.txt").write_text("mine")
    rig.hub.forget()

    assert rig.fetch().returncode == 0
    assert rig.is_as_published() and rig.is_clean()
    assert rig.hub.sent(FIRST) == SHARD_BYTES
    assert rig.hub.sent(SECOND) == rig.hub.sent(THIRD) == 0


def test_a_flipped_byte_in_a_file_of_unchanged_size_is_noticed_and_that_file_fetched_alone(rig: Rig) -> None:
    rig.fetch()
    with (rig.dest / FIRST).open("r+b") as file:
        file.seek(1000)
        file.write(b"?!")
    rig.hub.forget()

    result = rig.fetch()

    assert result.returncode == 0, result.stderr
    assert f"is not as published: {FIRST}" in result.stdout
    assert rig.is_as_published()
    assert rig.hub.sent() == rig.hub.sent(FIRST) == SHARD_BYTES


def test_a_wrong_file_that_cannot_be_removed_at_once_never_counts_as_verified(rig: Rig, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    rig.fetch()
    (rig.dest / FIRST).write_bytes(bytes(SHARD_BYTES))
    # As if it were killed at that moment: what is mounted cannot be removed, but its directory be renamed.
    mounted = tmp_path / "wrong"
    mounted.write_bytes(bytes(SHARD_BYTES))
    subprocess.run(["mount", "--bind", str(mounted), str(rig.dest / FIRST)], check=True)
    try:
        assert rig.fetch().returncode != 0
    finally:
        subprocess.run(["umount", str(next(rig.store.rglob(FIRST)))], check=True)

    assert rig.fetch().returncode == 0
    assert rig.is_as_published() and rig.is_clean()


def test_an_empty_directory_made_by_hand_does_not_undo_a_download_under_way(rig: Rig) -> None:
    there = killed_in_the_middle(rig)
    (rig.dest / "sub").mkdir(parents=True)

    assert rig.fetch().returncode == 0
    assert rig.is_as_published() and rig.is_clean()
    assert rig.hub.sent() <= sum(entry.size for entry in rig.hub.repository.entries.values()) - there + 100_000


def test_a_store_that_another_installation_stamped_is_verified_and_nothing_is_downloaded(rig: Rig) -> None:
    rig.fetch()
    stamp = json.loads(rig.stamp.read_text())
    rig.stamp.write_text(json.dumps({**stamp, "machine": "another"}))
    rig.hub.forget()

    result = rig.fetch()

    assert result.returncode == 0, result.stderr
    assert "is as published; nothing to download" in result.stdout
    assert json.loads(rig.stamp.read_text())["machine"] == stamp["machine"]
    assert rig.hub.journal == []


def test_files_that_another_installation_verified_before_its_end_are_verified_anew(rig: Rig) -> None:
    rig.hub.err(f"stall,path={THIRD}")
    with rig.fetching() as process:
        until(lambda: all((rig.staging / name).exists() for name in (FIRST, SECOND)), lambda: process.poll() is None)
    with (rig.staging / FIRST).open("r+b") as file:
        file.write(b"?!")
    (mark,) = rig.staging.glob(".arriving/.arriving")
    mark.write_text("another")
    rig.hub.err()
    rig.hub.forget()

    result = rig.fetch()

    assert result.returncode == 0, result.stdout + result.stderr
    assert rig.is_as_published() and rig.is_clean()
    assert [rig.hub.sent(FIRST), rig.hub.sent(SECOND)] == [SHARD_BYTES, 0]


def test_a_run_stopped_between_the_rename_and_the_stamp_is_finished_by_the_next(rig: Rig) -> None:
    rig.fetch()
    rig.stamp.unlink()
    rig.hub.forget()

    assert rig.fetch().returncode == 0
    assert rig.stamp.exists()
    assert rig.hub.journal == []


def test_files_are_taken_from_a_directory_and_only_wrong_or_missing_ones_from_the_hub(rig: Rig, tmp_path: Path) -> None:
    source = tmp_path / "usb-disk"
    (source / "sub").mkdir(parents=True)
    for name, entry in rig.hub.repository.entries.items():
        (source / name).symlink_to(entry.source)
    (source / SECOND).unlink()
    (source / THIRD).unlink()
    (source / THIRD).write_bytes(bytes(SHARD_BYTES))

    result = rig.fetch(sources=[str(source)])

    assert result.returncode == 0, result.stdout + result.stderr
    assert rig.is_as_published() and rig.is_clean()
    assert f"{THIRD} from {source} is not as published" in result.stdout
    assert rig.hub.sent() == 2 * SHARD_BYTES


def test_a_whole_directory_needs_no_hub_at_all(rig: Rig) -> None:
    folder = rig.hub.repository.folder
    result = rig.fetch(sources=["/not/there", str(folder / "sub"), str(folder)], hubs=["http://127.0.0.1:9"])

    assert result.returncode == 0, result.stdout + result.stderr
    assert f"7 files are in {folder}" in result.stdout
    assert rig.is_as_published()


def test_progress_says_what_it_does_and_how_far_it_is(rig: Rig) -> None:
    rig.hub.tap.close_after(1_300_000)
    with rig.fetching() as process:
        until(lambda: rig.told().get("bytes_done", 0) > 3_000_000, lambda: process.poll() is None)
        told = rig.told()
        rig.hub.tap.open()
        said = process.communicate(timeout=HANG_S)[0]

    assert process.returncode == 0, said
    total = sum(entry.size for entry in rig.hub.repository.entries.values())
    assert (told["step"], told["bytes_total"]) == ("downloading", total)
    assert 3_000_000 < told["bytes_done"] <= 4_000_000
    assert told["rate"] > 0
    assert "files from 127.0.0.1" in told["doing"]


def test_the_rate_is_that_of_the_last_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([100.0, 101.0, 102.0, 132.0])
    monkeypatch.setattr(report, "time", SimpleNamespace(monotonic=lambda: next(moments)))
    progress, rates = report.Progress(tmp_path / "progress.json", 9_000), []
    for done in (0, 2_000, 6_000, 6_000):
        progress.tell("downloading", done)
        rates.append(json.loads((tmp_path / "progress.json").read_text())["rate"])

    assert rates == [0, 2_000, 3_000, 0]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"revision": "main"}, "not a commit of 40 hex digits"),
        ({"dest": "relative/path"}, "not an absolute directory"),
        ({"dest": "/"}, "not an absolute directory"),
        ({"files": {"config.json": "many"}}, "is not a size and a checksum"),
        ({"files": {"../../etc/passwd": f"1 git:{'0' * 40}"}}, "is not a path inside a checkpoint"),
        ({"hubs": []}, "has no files or no hubs"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(rig: Rig, changes: dict[str, object], why: str) -> None:
    result = rig.fetch(**changes)

    assert result.returncode == 2
    assert why in result.stderr


def test_a_file_is_on_the_disk_before_it_has_its_verified_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut a name without its content would count as verified."""
    content = b"weights"
    file = File("sub/a.bin", len(content), hashlib.sha256(content).hexdigest(), None)
    store = Store(REPO, "0" * 40, tmp_path / REPO / ("0" * 40), {file.path: file})
    store.prepare()
    store.arriving(file).write_bytes(content)
    named = store.staging / file.path
    synced: list[tuple[int, bool]] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append((os.fstat(descriptor).st_ino, named.exists())))

    assert store.accept(file)
    assert (named.stat().st_ino, False) in synced


def test_a_download_has_these_limits() -> None:
    """What a hostile hub or peer can cost, and how long an honest one that is slow is waited for."""
    assert (run.GIVE_UP_AFTER_S, run.PAUSE_S, run.WRONG_DOWNLOADS, run.BROKEN_COPIES) == (21_600, 5, 3, 3)
    assert (run.WORKERS, run.COPIES, run.CHECKS, run.LISTEN_S) == (8, 4, 2, 2)
    assert (peers.PATIENCE_S, peers.DEAF_S, peers.REST_S) == (2, 30, 5)
    assert (peers.SLOWEST, peers.MEMORY_BYTES) == (500_000, 536_870_912)
    assert (hubs.LONGEST_PAUSE, store.RESERVE_BYTES) == (60, 2_147_483_648)
