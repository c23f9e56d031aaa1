"""rigup models: what lies in a store, as the fact reads it from a real directory, and what may be removed."""

from __future__ import annotations

import io
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from rigup.cli import main
from rigup.cli._confirm import agreed
from rigup.cli._terminal import SafeConsole
from rigup.cli.models import chosen, removal, table
from rigup.errors import RigupError
from rigup.facts.store import Stored, StoredModels, parse_stored_models
from rigup.render.systemd import unit_text
from tests.unit.sample import plan

A, B = "a" * 40, "b" * 40


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A verified checkpoint, one whose stamp is of other bytes, and one that is arriving."""
    store = tmp_path / "models"
    for revision, size in ((A, 100), (B, 200)):
        (store / "org/one" / revision / "sub").mkdir(parents=True)
        (store / "org/one" / revision / "weights").write_bytes(bytes(size))
        (store / "org/one" / revision / "sub/file").write_bytes(bytes(5))
        stamp = {"repo": "org/one", "revision": revision, "bytes": 105, "verified_at": "2026-11-23T23:07:29+00:00"}
        (store / "org/one" / f"{revision}.verified.json").write_text(json.dumps(stamp, indent=2) + "\n")
    (store / "org/two" / f".{A}.incoming/.arriving").mkdir(parents=True)
    (store / "org/two" / f".{A}.incoming/.arriving/weights").write_bytes(bytes(50))
    return store


def read(store: Path) -> list[Stored]:
    fact = StoredModels()
    done = subprocess.run(["sh", "-c", str(fact.command(str(store)))], capture_output=True, text=True, check=True)
    return fact.process(done.stdout.splitlines())


def test_each_checkpoint_is_listed_with_its_size_and_state(store: Path) -> None:
    assert [(m.repo, m.revision, m.bytes, m.state) for m in read(store)] == [
        ("org/one", A, 105, "verified"),
        ("org/one", B, 205, "unverified"),
        ("org/two", A, 50, "arriving"),
    ]


def test_a_host_without_a_store_has_nothing(tmp_path: Path) -> None:
    assert read(tmp_path / "not-there") == []


def test_the_hosts_plan_says_who_uses_it() -> None:
    plan = {"endpoints": [{"name": "main", "checkpoint": {"repo": "org/one", "revision": A}}]}
    (found,) = parse_stored_models([f"7 org/one/{A}/weights", "--- plan", json.dumps(plan)])
    assert found.used_by == ("main",)


def test_the_units_in_force_and_on_trial_say_so_too_whatever_became_of_the_plan() -> None:
    lines = [
        f"7 org/one/{A}/weights",
        f"7 org/one/{B}/weights",
        "--- plan",
        '{"endpoints": [{"name": "main"',
        "--- units",
        f"/usr/local/lib/systemd/system/llm@main.service:org/one/{A}",
        f"/run/systemd/system/llm@main.service:org/one/{B}",
        "--- running",
        "llm@main.service loaded active running rigup endpoint main",
    ]
    found = parse_stored_models(lines)
    assert [each.used_by for each in found] == [("main",), ("main, on trial",)]
    assert [each.unclear for each in found] == [(), ()]
    for damaged in ('{"endpoints": 7}', '{"endpoints": [7]}', "[]", ""):
        (one, _) = parse_stored_models([*lines[:3], damaged, "--- running", *lines[-1:]])
        assert (one.used_by, one.unclear) == ((), ("main",))


def test_a_unit_names_the_checkpoint_where_the_fact_looks_for_it(tmp_path: Path) -> None:
    unit = tmp_path / "llm@main.service"
    endpoint = plan().endpoints[0]
    unit.write_text(unit_text(endpoint))
    command = str(StoredModels().command("/none")).replace("/usr/local/lib/systemd/system", str(tmp_path))
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    checkpoint = endpoint.checkpoint
    there = f"7 {checkpoint.repo}/{checkpoint.revision}/weights"
    (found,) = parse_stored_models([there, *done.stdout.splitlines()])
    assert found.used_by == ("main",)


IDLE = Stored("org/one", A, 239_800_000_000, "verified", "2026-11-23T23:07:29+00:00")
USED = Stored("org/two", B, 1_000_000, "verified", "2026-11-23T23:07:29+00:00", ("main",))


def test_the_table_has_a_line_for_each() -> None:
    out = io.StringIO()
    SafeConsole(file=out).print(table({"rig1": [IDLE, USED], "rig2": []}))
    assert out.getvalue().splitlines() == [
        "host  checkpoint  commit        size      state     used by",
        "rig1  org/one     aaaaaaaaaaaa  239.8 GB  verified  nobody",
        "rig1  org/two     bbbbbbbbbbbb  1 MB      verified  main",
        "rig2  nothing",
    ]


def test_what_an_endpoint_uses_is_never_removed() -> None:
    with pytest.raises(RigupError, match="is used by endpoint main: give the endpoint another recipe"):
        chosen([IDLE, USED], "org/two", "rig1")


def test_what_is_being_fetched_or_may_be_in_use_is_not_removed() -> None:
    running = [f"model-fetch@org--one--{A[:12]}.service loaded activating auto-restart rigup: fetch the checkpoint"]
    (fetched,) = parse_stored_models([f"7 org/one/.{A}.incoming/weights", "--- running", *running])
    with pytest.raises(RigupError, match=rf"downloaded on rig1: .*disable --now model-fetch@org--one--{A[:12]}"):
        chosen([fetched], "org/one", "rig1")
    with pytest.raises(RigupError, match=r"endpoint main runs on rig1, and neither .*plan.json nor its unit says"):
        chosen([replace(IDLE, unclear=("main",))], "org/one", "rig1")


@pytest.mark.parametrize(
    "words",
    [
        ["models", "--inventory", "x.yaml", "rm", "rig1", "a/b"],
        ["models", "rm", "rig1", "a/b", "--inventory", "x.yaml"],
    ],
)
def test_the_inventory_may_be_named_before_or_behind_rm(words: list[str]) -> None:
    assert main.parser().parse_args(words).inventory == Path("x.yaml")
    assert main.parser().parse_args(["models", "rm", "rig1", "a/b"]).inventory is None


def test_where_nobody_answers_nothing_is_agreed_to(monkeypatch: pytest.MonkeyPatch) -> None:
    for said, meant in (("", False), ("\n", False), ("no\n", False), ("y\n", True), ("Yes\n", True)):
        monkeypatch.setattr("sys.stdin", io.StringIO(said))
        assert agreed("Remove it?") is meant


def test_only_what_is_named_is_removed() -> None:
    assert chosen([IDLE, USED], "org/one", "rig1") == [IDLE]
    assert chosen([IDLE, USED], f"org/one@{A[:7]}", "rig1") == [IDLE]
    with pytest.raises(RigupError, match="has no org/three in its model store: it has org/one@aaaaaaaaaaaa"):
        chosen([IDLE, USED], "org/three", "rig1")
    with pytest.raises(RigupError, match="at several commits"):
        chosen([IDLE, Stored("org/one", B, 1, "verified")], "org/one", "rig1")


def test_the_promise_goes_before_the_files() -> None:
    command = removal("/srv/models", IDLE)
    stamp, tree = f"/srv/models/org/one/{A}.verified.json", f"/srv/models/org/one/{A} "
    assert 0 < command.index(stamp) < command.index(tree)
    assert f"/srv/models/org/one/.{A}.incoming" in command
    assert "systemctl disable --quiet --now -- model-fetch@org--one--aaaaaaaaaaaa.service" in command
