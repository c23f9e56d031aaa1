"""The ledger's lines, and what comes out of a JSON file of others when our keys go."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from rigup import ledger, paths
from rigup.facts.ledger import RemainsValue, parse_remains, parse_sums, remains_of
from rigup.operations import docker, files
from rigup.operations._apt_get import parse_additions
from rigup.operations._ledger import note
from rigup.operations.drain import running_requests
from rigup.operations.teardown import finish
from tasks.rebuild import _overview
from tests.unit.deploys import Actor, on_this_machine

LINES = [
    '{"added": "directories", "names": ["/etc/docker"]}',
    '{"added": "keys", "path": "/etc/docker/daemon.json", "values": {"features": {"cdi": true}}}',
    '{"added": "packages", "names": ["curl", "libcurl4t64"]}',
    '{"added": "packages", "names": ["docker-ce", "curl"]}',
    '{"added": "file", "path": "/etc/systemd/system/llm@main.service", "sha256": "aa"}',
    '{"added": "file", "path": "/etc/systemd/system/llm@main.service", "sha256": "bb"}',
    '{"added": "file", "path": "/etc/systemd/system/model-fetch@.service", "sha256": "cc"}',
    '{"added": "file", "path": "/etc/apt/sources.list.d/docker.list", "sha256": ""}',
    '{"added": "removed", "names": ["docker.io", "libcurl4t64"]}',
    '{"added": "volumes", "names": ["llm-main-root-.cache"]}',
    '{"added": "file", "path": "/etc/systemd/system/llm@theirs.service", "sha256": ""}',
    '{"added": "users", "names": ["rigup-fe',
]


def test_the_ledger_gathers_its_lines_and_passes_over_a_torn_one() -> None:
    book = ledger.parse(LINES)
    assert book.packages == ("curl", "libcurl4t64", "docker-ce")
    assert book.files["/etc/systemd/system/llm@main.service"] == {"aa", "bb"}
    assert book.keys == {"/etc/docker/daemon.json": {"features": {"cdi": True}}}
    # One of them had come with a deploy: nobody misses it.
    assert book.removed == ("docker.io",)
    assert book.users == ()
    assert book.units == ["llm@main.service", "model-fetch@*.service"]
    assert book.volumes == ("llm-main-root-.cache",)
    wanted = remains_of(book)
    # A file of others that made way is looked for by nobody: it comes back.
    assert "/etc/apt/sources.list.d/docker.list" not in wanted["paths"]
    assert {"/etc/rigup", "/etc/systemd/system/llm@main.service"} <= set(wanted["paths"])
    assert "/etc/docker/daemon.json.rigup-backup" in wanted["paths"]
    assert not any("theirs" in word for words in wanted.values() for word in words if "backup" not in word)
    assert "/etc/systemd/system/*.wants/model-fetch@*.service" in wanted["links"]


def test_every_directory_that_a_file_needs_is_recorded(tmp_path: Path) -> None:
    for name in ("it's deep/$conf.d/first", "it's deep/$conf.d/second"):
        assert on_this_machine(files.install, dest=f"{tmp_path}/{name}", content="x").changed

    book = ledger.parse(Path(paths.LEDGER).read_text().splitlines())

    assert book.directories == (f"{tmp_path}/it's deep", f"{tmp_path}/it's deep/$conf.d")


@pytest.mark.parametrize(
    ("present", "before", "values", "kept"),
    [
        ({"a": 1, "o": {"x": 1}}, {}, {}, ()),
        ({"a": 1, "o": {"x": 1}, "theirs": 2}, {"theirs": 2}, {"theirs": 2}, ()),
        ({"a": 1, "o": {"x": 1, "y": 2}}, {"o": {"y": 2}}, {"o": {"y": 2}}, ()),
        ({"a": 1}, {"a": 7}, {"a": 7}, ()),
        ({"a": 9, "o": {"x": 5}}, {}, {"a": 9, "o": {"x": 5}}, ("a", "o.x")),
        ({}, {"a": 7}, {}, ()),
        ({"a": 1, "o": {}}, {"o": {}}, {"o": {}}, ()),
    ],
)
def test_our_keys_go_and_what_others_had_or_changed_stays(
    present: dict[str, object], before: dict[str, object], values: dict[str, object], kept: tuple[str, ...]
) -> None:
    assert ledger.unmerge(present, {"a": 1, "o": {"x": 1}}, before) == ledger.Unmerged(values, kept)


@pytest.mark.parametrize(
    ("present", "before", "values", "kept"),
    [
        ({"l": ["ours"]}, {}, {}, ()),
        ({"l": ["ours", "theirs"]}, {"l": ["theirs"]}, {"l": ["theirs"]}, ()),
        ({"l": ["later", "ours"]}, {}, {"l": ["later"]}, ("l",)),
        ({"l": []}, {"l": []}, {"l": []}, ()),
        ({"l": "no list"}, {}, {"l": "no list"}, ("l",)),
    ],
)
def test_of_a_list_our_entries_go_and_the_others_stay(
    present: dict[str, object], before: dict[str, object], values: dict[str, object], kept: tuple[str, ...]
) -> None:
    assert ledger.unmerge(present, {"l": ["ours"]}, before) == ledger.Unmerged(values, kept)


def test_every_entry_that_we_ever_put_into_a_list_is_ours() -> None:
    line = '{"added": "keys", "path": "/daemon.json", "values": {"log-driver": "%s", "registry-mirrors": ["%s"]}}'
    book = ledger.parse([line % ("local", "http://a"), line % ("none", "http://b")])
    assert book.keys["/daemon.json"]["log-driver"] == "none"
    assert sorted(book.keys["/daemon.json"]["registry-mirrors"]) == ["http://a", "http://b"]


def test_a_file_is_in_the_ledger_with_what_was_there_before_its_first_write(tmp_path: Path, room: Path) -> None:
    path = tmp_path / "it's a file"
    path.write_text("theirs")
    on_this_machine(files.install, dest=str(path), content="ours", user="root", group="root")
    on_this_machine(files.install, dest=str(path), content="ours again", user="root", group="root")
    assert (room / f"before{path}").read_text() == "theirs"
    book = ledger.parse((room / "ledger").read_text().splitlines())
    assert len(book.files[str(path)]) == 2
    assert (room / "ledger").stat().st_mode & 0o077 == 0
    assert room.stat().st_mode & 0o077 == 0


def test_of_a_merged_file_only_the_keys_are_ours(daemon_json: Path, room: Path) -> None:
    daemon_json.parent.mkdir()
    daemon_json.write_text('{"theirs": 1}')
    on_this_machine(docker.daemon_config, values={"ours": {"a": 1}})
    book = ledger.parse((room / "ledger").read_text().splitlines())
    assert book.keys == {str(daemon_json): {"ours": {"a": 1}}}
    assert not book.files
    assert json.loads((room / f"before{daemon_json}").read_text()) == {"theirs": 1}


def test_a_removed_file_of_others_is_kept_for_later(tmp_path: Path, room: Path) -> None:
    path = tmp_path / "old.list"
    path.write_text("theirs")
    assert on_this_machine(files.absent, path=str(path)).changed
    assert not path.exists()
    assert (room / f"before{path}").read_text() == "theirs"
    assert not on_this_machine(files.absent, path=str(path)).changed


def test_only_what_apt_installs_anew_is_an_addition() -> None:
    assert parse_additions(
        [
            "Inst libc6 [2.41-12] (2.41-13 Debian:13.3/stable [amd64])",
            "Inst libcurl4t64 (8.14.1-2 Debian:13.2/stable [amd64])",
            "Inst gcc:i386 (4:14.2 Debian:13.2/stable [i386]) []",
            "Conf curl (8.14.1-2 Debian:13.2/stable [amd64])",
        ]
    ) == ["gcc", "libcurl4t64"]


def test_remains_and_sums_are_read_from_their_lines() -> None:
    remains = parse_remains(
        """\
--- units
llm@a.service loaded active running rigup endpoint a
--- tables
table inet other
table inet rigup
--- paths
/etc/a b
--- named
/opt/rigup-notes
/etc/a b
--- packages
config-files curl
not-installed vim
installed docker-ce
--- users
rigup-fetch:x:997:997::/nonexistent:/usr/sbin/nologin""".splitlines()
    )
    things = ["package curl", "package docker-ce", "user rigup-fetch", "unit llm@a.service"]
    assert remains.words() == [*things, "nftables: table inet rigup", "/etc/a b"]
    assert remains.named == ("/opt/rigup-notes",)
    assert parse_sums(["aa  /etc/a b", "bb  /etc/c"]) == {"/etc/a b": "aa", "/etc/c": "bb"}


def test_running_and_waiting_requests_are_counted_over_all_engines() -> None:
    text = """
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="Qwen3.5-397B-A17B"} 2.0
vllm:num_requests_running{engine="1",model_name="Qwen3.5-397B-A17B"} 1.0
vllm:num_requests_waiting{engine="0",model_name="Qwen3.5-397B-A17B"} 1.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 1.0
"""
    assert running_requests(text.splitlines()) == 4
    assert running_requests(['sglang:num_running_reqs{model_name="m"} 3.0', "sglang:num_queue_reqs 1"]) == 4
    assert running_requests(["<html>no metrics</html>"]) is None


# Lines that were cut off, and damage


def note_on_this_machine(*names: str) -> int:
    """Run the command that records packages, as an operation does; return its exit status."""
    return subprocess.run(["sh", "-c", note("packages", names).get_raw_value()], capture_output=True).returncode


def test_a_ledger_that_was_cut_at_any_byte_takes_the_next_entry_and_keeps_those_before(room: Path) -> None:
    for names in (["curl"], ["haproxy", "docker-ce"], ["it's"]):
        assert note_on_this_machine(*names) == 0
    whole = (room / "ledger").read_bytes()
    for cut in range(len(whole) + 1):
        # A file system may also have kept the length, but not the bytes.
        for torn in (whole[:cut], whole[:cut] + b"\0" * 7):
            (room / "ledger").write_bytes(torn)
            assert note_on_this_machine("new") == 0
            book = ledger.parse((room / "ledger").read_text().splitlines())
            complete = [name for line in whole[:cut].split(b"\n")[:-1] for name in json.loads(line)["names"]]
            assert book.packages == (*complete, "new"), torn
            assert book.unreadable == ()


def test_an_entry_that_a_full_disk_cut_off_fails_and_does_not_damage_the_next(tmp_path: Path, room: Path) -> None:
    room.mkdir()
    lines = tmp_path / "ledger"
    record = note("packages", ["x" * 90]).get_raw_value()
    script = f"""
        mount -t tmpfs -o size=8k none {shlex.quote(str(room))} && cd {shlex.quote(str(room))}
        head -c 4096 /dev/zero >filler && n=0
        while {record}; do n=$((n + 1)); done
        rm filler && {note("packages", ["after"]).get_raw_value()} && cp ledger {shlex.quote(str(lines))} && echo $n
    """
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "No space left" in done.stderr or "I/O error" in done.stderr
    book = ledger.parse(lines.read_text().splitlines())
    assert int(done.stdout) > 10 and len(lines.read_text().splitlines()) == int(done.stdout) + 1
    assert book.packages == ("x" * 90, "after") and book.unreadable == ()


DAMAGE = [
    '{"added": "users", "names": ["rigup-fe{"added": "packages", "names": ["haproxy"]}',
    "\0\0\0\0",
    "",
    "[]",
    "[" * 100_000,
    '{"added": "users"}',
    '{"added": "users", "names": "rigup-fetch"}',
    '{"added": "users", "names": [1]}',
    '{"added": "file", "path": "/etc/x"}',
    '{"added": "file", "path": "/etc/x", "sha256": 1}',
    '{"added": "keys", "path": "/etc/x", "values": []}',
    '{"added": "files", "names": []}',
    '{"added": "unreadable", "names": []}',
    '{"added": ["users"], "names": []}',
    '{"added": "things of the next version", "names": ["x"]}',
]


@pytest.mark.parametrize("line", DAMAGE, ids=lambda line: line[:40])
def test_a_damaged_line_stops_the_rebuild_and_is_shown_unless_it_is_the_last(line: str) -> None:
    good = '{"added": "packages", "names": ["curl"]}'
    assert ledger.parse([good, line]) == ledger.Ledger(packages=("curl",))
    book = ledger.parse([good, line, good])
    assert book.packages == ("curl",)
    outcome = Actor().does(finish.confirmed, ledger=book)
    assert outcome.failed
    assert "/var/lib/rigup/ledger on @fake/rig1 is damaged; nothing was changed" in outcome.told
    assert f"line 2: {line[:160]!a}" in outcome.told


def test_a_rebuild_lists_damaged_lines_even_if_it_finds_nothing_else() -> None:
    book = ledger.parse(["x", '{"added": "packages", "names": ["curl"]}'])
    assert "damaged lines of the ledger: line 1: 'x'" in _overview("rig1", book, RemainsValue(), with_store=False)
