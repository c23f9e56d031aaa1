"""rigup status: what hosts say of themselves, read over ssh and put into words."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from rigup.cli import main, status
from rigup.cli._terminal import SafeConsole
from rigup.facts.endpoints import EndpointsValue
from rigup.facts.serving import VerificationValue
from rigup.facts.store import parse_downloads
from rigup.facts.units import UnitStateValue

SERVES = {
    "name": "main",
    "recipe": "vllm-nvfp4-cu130",
    "gpus": "all",
    "url": "http://127.0.0.1:8000",
    "state": "serving",
    "health": 200,
    "since": "2026-11-23T20:56:03+00:00",
    "restarts": 0,
    "verified": "2026-11-23T20:57:00+00:00",
    "on_trial": False,
}
GPUS = [{"index": at, "used": 92160, "total": 97887, "busy": 0} for at in range(4)]
FETCHING = {"checkpoint": "nvidia--Q--abab", "step": "downloading", "bytes_done": 60_000_000_000,
            "bytes_total": 240_000_000_000}  # fmt: skip


def host(*endpoints: dict[str, Any], error: str | None = None, **more: Any) -> dict[str, Any]:
    return {"error": error, "endpoints": list(endpoints), "gpus": GPUS, "downloads": [], **more}


def shown(**hosts: dict[str, Any]) -> str:
    out = io.StringIO()
    status.render({"at": "2026-11-23T23:00:00+00:00", "hosts": hosts}, SafeConsole(file=out, width=200))
    return out.getvalue()


@pytest.mark.parametrize(
    ("unit", "health", "verified", "state"),
    [
        ({"load": "loaded", "active": "active"}, 200, True, "serving"),
        ({"load": "loaded", "active": "active"}, 200, False, "not verified"),
        ({"load": "loaded", "active": "active"}, 503, True, "not healthy"),
        ({"load": "loaded", "active": "activating", "sub": "start-post"}, 0, False, "starting"),
        ({"load": "loaded", "active": "activating", "sub": "auto-restart"}, 0, False, "failing"),
        ({"load": "loaded", "active": "failed", "sub": "failed"}, 0, False, "failed"),
        ({"load": "loaded", "active": "inactive"}, 0, False, "stopped"),
        ({}, 0, False, "not deployed"),
    ],
)
def test_a_state_is_a_word(unit: dict[str, Any], health: int, verified: bool, state: str) -> None:
    assert status.state_of(UnitStateValue(**unit), health, verified) == state


def test_what_is_on_trial_comes_before_what_is_in_force_and_what_is_nowhere_is_still_told() -> None:
    records = {("main", "old"): {"recipe": "a"}, ("main", "new"): {"recipe": "b"}}
    rest = {"gpus": "all", "address": "127.0.0.1", "port": 8000, "ready_path": "/health"}
    plan = json.dumps({"endpoints": [{"name": "main", "recipe": "a"} | rest, {"name": "small", "recipe": "c"} | rest]})

    def recipes(plan: str | None, **units: dict[str, str]) -> list[str]:
        return [each["recipe"] for each in status.endpoints_of(plan, EndpointsValue(records=records, **units))]

    assert recipes(None) == recipes("damaged") == []
    assert recipes(None, on_trial={"main": "new"}) == ["b"]
    assert recipes(plan, in_force={"main": "old"}) == ["a", "c"]
    assert recipes(plan, in_force={"main": "old"}, on_trial={"main": "new"}) == ["b", "c"]
    assert "starting, on trial" in shown(rig1=host({**SERVES, "state": "starting", "on_trial": True}))


def test_a_row_says_what_serves_since_when_and_how_full_the_gpus_are() -> None:
    text = shown(rig1=host(SERVES))
    row = next(line for line in text.splitlines() if line.startswith("rig1"))
    assert row.split("  ")[0] == "rig1"
    for word in ("main", "serving", "vllm-nvfp4-cu130", "2026-11-23 20:56", "360 of 382 GiB on 4"):
        assert word in row


def test_a_proof_of_an_earlier_start_proves_nothing() -> None:
    record = {"passed": True, "invocation": "a", "digest": "d"}
    assert VerificationValue(record, "a").passed_since_start
    assert not VerificationValue(record, "b").passed_since_start
    assert not VerificationValue({**record, "invocation": ""}, "").passed_since_start


def test_a_download_says_how_far_it_is() -> None:
    assert "nvidia--Q--abab: downloading, 60.0 GB of 240.0 GB" in shown(rig1=host(downloads=[FETCHING]))


def test_hosts_without_endpoints_and_hosts_that_do_not_answer_have_their_row() -> None:
    text = shown(rig1=host(), rig2=host(error="no connection to ops@10.0.0.2, port 22: timed out"))
    assert "nothing deployed" in text
    assert "no connection to ops@10.0.0.2" in text


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (host(SERVES), 0),
        (host(SERVES, SERVES | {"state": "starting"}), 2),
        (host(), 2),
        (host(error="no connection"), 1),
    ],
)
def test_the_exit_code_says_whether_all_serves(found: dict[str, Any], code: int) -> None:
    assert status.exit_code({"at": "now", "hosts": {"rig1": found}}) == code


def test_only_downloads_that_run_are_told_whatever_earlier_ones_left() -> None:
    lines = [
        "model-fetch@a--b--0123.service loaded active running rigup: fetch the checkpoint a--b--0123",
        '/run/rigup-fetch/a--b--0123/progress.json:{"step": "verifying", "bytes_done": 5, "bytes_total": 9}',
        '/run/rigup-fetch/old/progress.json:{"step": "verifying", "bytes_done": 9, "bytes_total": 9}',
    ]
    assert parse_downloads(lines) == [
        {"checkpoint": "a--b--0123", "step": "verifying", "bytes_done": 5, "bytes_total": 9}
    ]
    assert parse_downloads(lines[:1]) == [{"checkpoint": "a--b--0123"}]


def test_a_download_that_gave_up_says_so_and_why() -> None:
    why = "failed: the disk is full: free some space or choose another model_store"
    lines = [
        "model-fetch@a--b--0123.service loaded failed failed rigup: fetch the checkpoint a--b--0123",
        f"last model-fetch@a--b--0123.service {why}",
        '/run/rigup-fetch/a--b--0123/progress.json:{"step": "downloading", "doing": "8 files from hub", '
        '"bytes_done": 5000000, "bytes_total": 9000000, "rate": 4}',
    ]
    (download,) = parse_downloads(lines)
    assert (download["step"], download["doing"], download["bytes_done"]) == ("given up", why, 5_000_000)
    assert f"a--b--0123: given up, 5 MB of 9 MB, {why}" in shown(rig1=host(downloads=[download]))
    assert parse_downloads(lines[:1]) == [{"checkpoint": "a--b--0123", "step": "given up", "doing": "", "rate": 0}]


def test_a_host_that_cannot_be_reached_is_told_as_json_with_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inventory = tmp_path / "lab.yaml"
    inventory.write_text("hosts: {rig1: {address: 127.0.0.1, port: 1, known_hosts: /dev/null}}\n")
    assert main.main(["status", "--json", "--inventory", str(inventory)]) == 1
    told = json.loads(capsys.readouterr().out)
    assert "no connection to root@127.0.0.1, port 1" in told["hosts"]["rig1"]["error"]


def test_what_the_host_found_about_itself_is_told_where_it_looks() -> None:
    assert "daily audit" not in shown(rig1=host())
    found = {"at": "2026-11-23T20:00:00+00:00", "plan": "abc", "findings": ["store: a byte less"]}
    assert "1 finding" in shown(rig1=host(audit=found))
