"""rigup status: what is known of hosts in words, and what of it needs attention."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rigup.cli import main
from rigup.cli._status_data import HostStatus, Status, endpoints_of, state_of
from rigup.cli._status_text import as_text
from rigup.cli._status_words import attention
from rigup.cli._terminal import SafeConsole
from rigup.facts.balancer import BalancerValue, ServerValue
from rigup.facts.drift import DailyAuditValue
from rigup.facts.endpoints import EndpointsValue
from rigup.facts.journal import Xid
from rigup.facts.serving import VerificationValue
from rigup.facts.store import Progress, parse_downloads
from rigup.facts.units import UnitStateValue, Work
from tests.unit.status_sample import AT, endpoint, gpu, host, in_zone

NONE = "\N{EN DASH}"
FETCHING: Progress = {"checkpoint": "nvidia--Q--abab", "step": "downloading", "bytes_done": 60_000_000_000,
                      "bytes_total": 240_000_000_000, "rate": 90_000_000}  # fmt: skip


@pytest.fixture(autouse=True)
def in_utc() -> Iterator[None]:
    with in_zone("UTC"):
        yield


def shown(**hosts: HostStatus) -> str:
    out = io.StringIO()
    SafeConsole(file=out, width=200).print(as_text(Status(AT, hosts)))
    return out.getvalue()


def noticed(found: HostStatus) -> list[str]:
    return [each.what for each in attention(Status(AT, {"rig1": found}))]


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
    assert state_of(UnitStateValue(**unit), health, verified) == state


def test_what_is_on_trial_comes_before_what_is_in_force_and_what_is_nowhere_is_still_told() -> None:
    records: Any = {("main", "old"): {"recipe": "a"}, ("main", "new"): {"recipe": "b"}}
    rest = {"gpus": "all", "address": "127.0.0.1", "port": 8000, "ready_path": "/health"}
    plan = json.dumps({"endpoints": [{"name": "main", "recipe": "a"} | rest, {"name": "small", "recipe": "c"} | rest]})

    def recipes(plan: str | None, **units: dict[str, str]) -> list[str]:
        return [each["recipe"] for each in endpoints_of(plan, EndpointsValue(records=records, **units))]

    assert recipes(None) == recipes("damaged") == []
    assert recipes(None, on_trial={"main": "new"}) == ["b"]
    assert recipes(plan, in_force={"main": "old"}) == ["a", "c"]
    assert recipes(plan, in_force={"main": "old"}, on_trial={"main": "new"}) == ["b", "c"]
    assert "serving, on trial" in shown(rig1=host(endpoint(on_trial=True)))


def test_a_row_says_what_serves_since_when_and_how_busy_it_is() -> None:
    (row,) = (line.split() for line in shown(rig1=host(endpoint())).splitlines() if " serving " in line)
    assert row == ["rig1", "main", "serving", "413", "7", "0", "31", "%", "2026-11-23", "20:56", "UTC"]
    assert "rig1/main: Qwen3.5 at http://192.0.2.11:8000, recipe vllm-nvfp4-cu130" in shown(rig1=host(endpoint()))


def test_what_an_engine_does_not_say_is_a_dash() -> None:
    silent = endpoint(tokens_per_s=None, running=None, waiting=None, kv_cache=None)
    (row,) = (line.split() for line in shown(rig1=host(silent)).splitlines() if " serving " in line)
    assert row[3:7] == [NONE] * 4


@pytest.mark.parametrize(
    ("last_start_s", "words"),
    [
        (312, "starting, 1 min 30 s, about 3 min 42 s left, 2 restarts"),
        (60, "starting, 1 min 30 s, its last start took 1 min 00 s, 2 restarts"),
        (None, "starting, 1 min 30 s, 2 restarts"),
    ],
)
def test_a_start_is_compared_with_the_last_one(last_start_s: int | None, words: str) -> None:
    starting = endpoint(state="starting", since="2026-11-24T07:58:30+00:00", restarts=2, last_start_s=last_start_s)
    assert noticed(host(starting)) == [f"main is {words}"]


def test_what_is_well_needs_no_attention() -> None:
    clean = DailyAuditValue("2026-11-24T03:00:00+00:00", "abc")
    held = gpu(1, throttled=("power limit",))
    found = replace(host(endpoint()), gpus=(gpu(0), held), audit=clean, downloads=(FETCHING,))
    # The card has recovered.
    assert noticed(replace(found, xids=(Xid("0000:01:00.0", 154, 1, 1795420800.0),))) == []


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (HostStatus(AT, error="no connection"), "no connection"),
        (host(endpoint(), notes=("no answer within 10 s: nvidia-smi",)), "no answer within 10 s: nvidia-smi"),
        (host(endpoint(state="not healthy")), "main is not healthy"),
        (host(endpoint(state="not deployed")), "main is not deployed"),
        (host(endpoint(kv_cache=0.97, waiting=1)), "main: its KV cache is full, and 1 request waits"),
        (host(gpus=(gpu(3, throttled=("heat (hardware)",)),)), "GPU 3 is slowed by heat (hardware)"),
        (
            host(gpus=(gpu(0), gpu(1)), xids=(Xid("0000:21:00.0", 79, 1, 1795420800.0),)),
            "GPU 1 reported Xid 79, last at 2026-11-23 08:00 UTC",
        ),
        (
            host(gpus=(gpu(0),), xids=(Xid("0000:21:00.0", 79, 3, 1795420800.0),)),
            "the GPU at 0000:21:00.0, which nvidia-smi does not list, reported Xid 79 (3 times), last at "
            "2026-11-23 08:00 UTC",
        ),
        (
            host(downloads=({"checkpoint": "a--b--0123", "step": "given up", "doing": "the disk is full"},)),
            "a--b--0123: given up, the disk is full",
        ),
        (
            host(audit=DailyAuditValue("2026-11-24T03:00:00+00:00", "abc", ("store: a byte less",))),
            "daily audit: 1 finding 5 h ago",
        ),
        (host(audit=DailyAuditValue("2026-11-21T03:00:00+00:00", "abc")), "daily audit: clean 77 h ago, late"),
    ],
)
def test_what_needs_attention_is_said(found: HostStatus, words: str) -> None:
    assert noticed(found) == [words]


def test_a_host_without_an_answer_comes_first() -> None:
    found = attention(Status(AT, {"a": host(endpoint(state="failed")), "b": HostStatus(AT, error="timed out")}))
    assert [(each.host, each.what, each.remedy) for each in found] == [
        ("b", "timed out", ""),
        ("a", "main is failed", "`rigup diagnose a/main`"),
    ]


def test_a_proof_of_an_earlier_start_proves_nothing() -> None:
    record = {"passed": True, "invocation": "a", "digest": "d"}
    assert VerificationValue(record, "a").passed_since_start
    assert not VerificationValue(record, "b").passed_since_start
    assert not VerificationValue({**record, "invocation": ""}, "").passed_since_start


def test_a_download_says_how_far_it_is_how_fast_and_how_long_it_takes() -> None:
    words = "rig1: nvidia--Q--abab: downloading, 60.0 GB of 240.0 GB, 90 MB/s, about 33 min 20 s left"
    assert words in shown(rig1=host(downloads=(FETCHING,)))


@pytest.mark.parametrize(
    ("work", "words"),
    [
        (
            Work(
                "rigup-pull-aaaaaaaaaaaa.service",
                1795507100.0,
                "downloading, 4.1 GB of 12.4 GB, 9 of 31 layers complete",
            ),
            "pulling an image, 1 min 40 s, downloading, 4.1 GB of 12.4 GB, 9 of 31 layers complete",
        ),
        (
            Work("rigup-apt.service", 1795507100.0, "Building module:"),
            "installing packages, 1 min 40 s, Building module:",
        ),
        (Work("rigup-audit.service", None, ""), "rigup-audit"),
    ],
)
def test_what_a_deploy_left_running_is_told_with_how_long_it_runs(work: Work, words: str) -> None:
    assert f"rig1: {words}\n" in shown(rig1=host(works=(work,)))


def test_a_load_balancer_says_where_its_requests_run_and_which_endpoint_gets_none() -> None:
    servers = (ServerValue("rig1:main", True, 3), ServerValue("rig2:main", False, 0))
    text = shown(rig1=host(balancer=BalancerValue("192.0.2.11:8080", servers)))
    assert "rig1: load balancer at http://192.0.2.11:8080: 3 at rig1:main, none to rig2:main\n" in text
    assert "! rig1: the load balancer sends no requests to rig2:main" in text
    text = shown(rig1=host(balancer=BalancerValue("192.0.2.11:8080")))
    assert "! rig1: the load balancer does not answer" in text


def test_hosts_without_endpoints_and_hosts_that_do_not_answer_have_their_row() -> None:
    text = shown(rig1=host(), rig2=HostStatus(AT, error="no connection to ops@10.0.0.2, port 22: timed out"))
    assert "nothing deployed" in text
    assert "! rig2: no connection to ops@10.0.0.2" in text
    assert any(line.split() == ["rig2", "unknown"] for line in text.splitlines())


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (host(endpoint()), 0),
        (host(endpoint(), endpoint(state="starting")), 2),
        (host(), 2),
        (HostStatus(AT, error="no connection"), 1),
    ],
)
def test_the_exit_code_says_whether_all_serves(found: HostStatus, code: int) -> None:
    assert Status(AT, {"rig1": found}).exit_code == code


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
    assert f"a--b--0123: given up, 5 MB of 9 MB, {why}" in shown(rig1=host(downloads=(download,)))
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
    found = DailyAuditValue("2026-11-24T03:00:00+00:00", "abc", ("store: a byte less",))
    assert "rig1: daily audit: 1 finding 5 h ago" in shown(rig1=host(audit=found))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--html", "rig1"], "--html rig1 is not the name of a page: write rig1.html; hosts come before --html"),
        (["--html", "a.html", "--watch"], "--html writes one page, so it cannot be combined with --watch"),
        (["--install-timer"], "lab.yaml sets no `status_page`: set it to the path of the page, then try again"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    inventory = tmp_path / "lab.yaml"
    inventory.write_text("hosts: {rig1: {address: 127.0.0.1, port: 1}}\n")
    assert main.main(["status", "--inventory", str(inventory), *words]) == 1
    assert message in capsys.readouterr().err


def test_a_timer_of_this_user_writes_the_page_of_this_inventory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "100% ours").mkdir()
    monkeypatch.chdir(tmp_path / "100% ours")
    inventory = tmp_path / "my lab.yaml"
    inventory.write_text("status_page: rigs.html\nhosts: {rig1: {address: 127.0.0.1, port: 1}}\n")
    assert main.main(["status", "--inventory", str(inventory), "--install-timer"]) == 0
    assert f"To write {tmp_path}/rigs.html every five minutes" in capsys.readouterr().out
    service = (tmp_path / "config/systemd/user/rigup-status.service").read_text().splitlines()
    assert f"WorkingDirectory={tmp_path}/100%% ours" in service
    assert f'Environment="RIGUP_INVENTORY={tmp_path}/my lab.yaml"' in service
    (start,) = (line for line in service if line.startswith("ExecStart="))
    assert start.startswith("ExecStart=/") and start.endswith(" -m rigup.cli status --html")
    assert "OnCalendar=*:0/5" in (tmp_path / "config/systemd/user/rigup-status.timer").read_text()
