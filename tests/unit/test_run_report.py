"""What a deploy leaves behind, seen through pyinfra's own command line against a real sshd."""

from __future__ import annotations

import json
import re
import shlex
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from loopback_sshd import PYINFRA, Sshd, running_sshd

from rigup.cli.main import main
from rigup.run import report, summary
from tests.unit.own_address import OWN_ADDRESS
from tests.unit.waiting import HANG_S, until

RECORD = "from rigup.run.recorder import start_recording\nstart_recording()\n"

DEPLOY = (
    RECORD
    + """
from pyinfra.api.deploy import deploy
from pyinfra.operations import files, server
@deploy("base")
def base():
    files.directory(name="Make a folder", path="{root}/folder")
    server.shell(name="Always", commands=["true"])
@deploy("driver")
def driver():
    server.shell(name="Break", commands=["echo what went wrong >&2; test ! -e {root}/broken"])
    server.shell(name="Never mind", commands=["false"], _ignore_errors=True)
base()
driver()
"""
)


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    with running_sshd(tmp_path) as server:
        (tmp_path / "root").mkdir()
        yield server


def deploy(sshd: Sshd, text: str = DEPLOY) -> str:
    (sshd.folder / "deploy.py").write_text(text.replace("{root}", f"{sshd.folder}/root"))
    return "deploy.py"


def runs(sshd: Sshd) -> list[Path]:
    return report.runs(sshd.folder / ".rigup/runs")


def last(sshd: Sshd) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((runs(sshd)[-1] / "report.json").read_text())
    return loaded


def results(made: dict[str, Any]) -> dict[str, str]:
    return {f"{o['step']}: {o['operation']}": o["result"] for o in made["operations"]}


def test_a_run_that_goes_well_is_reported_by_host_step_and_operation(sshd: Sshd) -> None:
    run = sshd.pyinfra(str(sshd.inventory()), deploy(sshd), "-y")
    assert run.returncode == 0, run.stderr
    made = last(sshd)
    assert made["result"] == "ok"
    assert results(made) == {
        "base: Make a folder": "changed",
        "base: Always": "changed",
        "driver: Break": "changed",
        "driver: Never mind": "ignored",
    }
    assert made["hosts"]["box"]["changed"] == 3
    assert [(step["step"], step["changed"]) for step in made["steps"]] == [("base", 2), ("driver", 1)]
    assert all(o["seconds"] > 0 for o in made["operations"])
    assert "rigup: done in" in run.stderr and "3 changes" in run.stderr

    again = sshd.pyinfra(str(sshd.inventory()), deploy(sshd), "-y")
    assert again.returncode == 0
    assert results(last(sshd))["base: Make a folder"] == "unchanged"
    assert len(runs(sshd)) == 2


SWITCHES = (
    RECORD
    + """
from rigup.operations._notes import note
from rigup.operations._host import work
from pyinfra.api.exceptions import OperationError
from pyinfra.api.operation import operation
@operation()
def switch(fails):
    def do(host):
        note(host.name, downtime_s=95.4)
        if fails:
            raise OperationError("it does not serve")
    yield work(do, "switch")
switch(name="serve | Serve a as main", fails={fails})
"""
)


@pytest.mark.parametrize(("fails", "result"), [(False, "changed"), (True, "failed")])
def test_for_how_long_nothing_answered_stands_in_the_report_of_a_switch(sshd: Sshd, fails: bool, result: str) -> None:
    run = sshd.pyinfra(str(sshd.inventory()), deploy(sshd, SWITCHES.replace("{fails}", str(fails))), "-y")

    (operation,) = last(sshd)["operations"]
    assert (operation["result"], operation["downtime_s"]) == (result, 95.4)
    assert "  no answer for 95.4 s on box: serve: Serve a as main" in run.stderr


def test_a_failure_is_reported_with_its_host_step_and_error(sshd: Sshd) -> None:
    (sshd.folder / "root/broken").touch()
    run = sshd.pyinfra(str(sshd.inventory()), deploy(sshd), "-y")
    assert run.returncode == 1
    made = last(sshd)
    assert made["result"] == "failed"
    assert results(made)["driver: Break"] == "failed"
    failed = next(o for o in made["operations"] if o["result"] == "failed")
    assert failed["error"] == "what went wrong"
    summary = run.stderr[run.stderr.index("rigup: failed") :]
    assert "failed on box, step driver: Break:" in summary
    assert "what went wrong" in summary
    assert "run the same command again" in summary


def test_a_plan_leaves_no_run_behind(sshd: Sshd) -> None:
    run = sshd.pyinfra(str(sshd.inventory()), deploy(sshd), "--dry")
    assert run.returncode == 0, run.stderr
    assert runs(sshd) == []
    assert "rigup:" not in run.stderr


def test_a_run_that_is_refused_before_it_begins_is_reported(sshd: Sshd) -> None:
    text = RECORD + "from pyinfra.api.exceptions import PyinfraError\nraise PyinfraError('no GPUs here')\n"
    run = sshd.pyinfra(str(sshd.inventory()), deploy(sshd, text), "-y")
    assert run.returncode == 1
    assert last(sshd)["result"] == "failed"
    assert "no GPUs here" in last(sshd)["errors"][0]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_what_was_under_way_and_exits_as_shells_do(
    sshd: Sshd, number: signal.Signals, code: int
) -> None:
    text = RECORD + (
        "from pyinfra.operations import server\n"
        "server.shell(name='quick', commands=['true'])\n"
        f"server.shell(name='slow', commands=['touch {sshd.folder}/root/begun; {sshd.forever}'])\n"
    )
    process = subprocess.Popen(
        [str(PYINFRA), str(sshd.inventory()), deploy(sshd, text), "-y"],
        cwd=sshd.folder, env=sshd.shell_environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until((sshd.folder / "root/begun").exists, lambda: process.poll() is None)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=HANG_S)

    assert process.returncode == code, stderr
    made = last(sshd)
    assert made["result"] == "interrupted"
    assert made["running"] == [{"host": "box", "step": "deploy", "operation": "slow"}]
    assert "still running on box, step deploy: slow" in stderr


@pytest.mark.parametrize("connector", ["rig", "ssh"])
def test_a_run_interrupted_while_it_connects_is_reported_and_exits_as_shells_do(sshd: Sshd, connector: str) -> None:
    with socket.create_server((OWN_ADDRESS, 0)) as silent:
        process = subprocess.Popen(
            [str(PYINFRA), sshd.lab(port=silent.getsockname()[1]), deploy(sshd), "-y"],
            cwd=sshd.folder, env=sshd.shell_environment(RIGUP_CONNECTOR=connector), stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        silent.settimeout(HANG_S)
        connection, _ = silent.accept()
        with connection:
            connection.settimeout(HANG_S)
            assert connection.recv(4) == b"SSH-"
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=HANG_S)
    assert process.returncode == 130
    assert last(sshd)["result"] == "interrupted"
    assert list(last(sshd)["hosts"]) == ["box"]


def test_a_run_ends_also_where_the_signal_arrives_while_a_thread_has_its_turn(sshd: Sshd) -> None:
    """As paramiko's: what is raised in a thread ends that thread alone."""
    text = RECORD + (
        "import os, signal, threading\n"
        "thread = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGTERM))\n"
        "thread.start()\n"
        "thread.join()\n"
    )
    run = sshd.pyinfra(str(sshd.inventory()), deploy(sshd, text), "-y")
    assert run.returncode == 143, run.stderr
    assert last(sshd)["result"] == "interrupted"


@pytest.mark.parametrize("connector", ["rig", "ssh"])
def test_a_run_that_reaches_no_host_is_the_last_run_in_the_report(sshd: Sshd, connector: str) -> None:
    assert sshd.pyinfra(sshd.lab(), deploy(sshd), "-y", RIGUP_CONNECTOR=connector).returncode == 0
    run = sshd.pyinfra(sshd.lab(port=1), deploy(sshd), "-y", RIGUP_CONNECTOR=connector)
    assert run.returncode == 1
    assert len(runs(sshd)) == 2
    made = last(sshd)
    assert made["result"] == "failed"
    assert made["hosts"]["box"]["result"] == "unreachable"
    assert "port 1" in made["hosts"]["box"]["error"]
    summary = run.stderr[run.stderr.index("rigup: failed") :]
    assert "box: unreachable: " in summary
    assert "No hosts remaining" not in summary


@pytest.mark.parametrize(
    "arguments", [["deploy.py", "--dry"], ["exec", "--", "true"], ["fact", "server.Hostname"], ["debug-inventory"]]
)
def test_what_is_no_deploy_leaves_no_run_behind_where_no_host_is_reached(sshd: Sshd, arguments: list[str]) -> None:
    deploy(sshd)
    sshd.pyinfra(sshd.lab(port=1), *arguments)
    assert runs(sshd) == []


def test_a_killed_run_still_tells_what_was_under_way(sshd: Sshd) -> None:
    text = RECORD + (
        "from pyinfra.operations import server\n"
        f"server.shell(name='slow', commands=['touch {sshd.folder}/root/begun; {sshd.forever}'])\n"
    )
    process = subprocess.Popen(
        [str(PYINFRA), str(sshd.inventory()), deploy(sshd, text), "-y"],
        cwd=sshd.folder, env=sshd.shell_environment(), stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until((sshd.folder / "root/begun").exists, lambda: process.poll() is None)
    process.kill()
    process.wait()

    made = report.build(report.read_events(runs(sshd)[-1] / "events.jsonl"))
    assert made["result"] == "unfinished"
    assert made["running"][0]["operation"] == "slow"


def test_a_host_that_cannot_be_reached_is_in_the_report_while_the_others_finish(sshd: Sshd) -> None:
    inventory = sshd.lab()
    path = Path(sshd.environment["RIGUP_INVENTORY"])
    hosts = yaml.safe_load(path.read_text())["hosts"]
    path.write_text(yaml.safe_dump({"hosts": {**hosts, "dead": {**hosts["box"], "port": 1}}}))
    run = sshd.pyinfra(inventory, deploy(sshd), "-y")
    assert run.returncode == 1
    made = last(sshd)
    assert made["hosts"]["dead"]["result"] == "unreachable"
    assert "no connection to" in made["hosts"]["dead"]["error"]
    assert made["hosts"]["box"]["result"] == "ok"
    assert made["result"] == "failed"
    assert "dead: unreachable" in run.stderr


@pytest.mark.parametrize("secret", ["hf_hunter2", 'hunter"2', r"hunter\2", "hünter2", 'h"ü\\"2'])
def test_secrets_of_the_hosts_data_never_reach_the_report(sshd: Sshd, secret: str) -> None:
    text = RECORD + (
        "import shlex\nfrom pyinfra import host\nfrom pyinfra.operations import server\n"
        "said = shlex.quote(host.data.hub_token)\n"
        "server.shell(name=f'use {host.data.hub_token}', commands=[f'printf %s {said} >&2; false'])\n"
    )
    run = sshd.pyinfra(str(sshd.inventory(hub_token=secret)), deploy(sshd, text), "-y")
    assert run.returncode == 1
    made = last(sshd)["operations"][-1]
    assert (made["operation"], made["error"]) == ("use ***", "***")
    for path in runs(sshd)[-1].iterdir():
        for written in (secret, json.dumps(secret)[1:-1]):
            assert written not in path.read_text()


# What is made of events, without a run.

ENDPOINT = {
    "name": "main", "url": "http://127.0.0.1:8000", "recipe": "fast", "model": "qwen", "image": "v/v@sha256:ab",
    "image_tag": "v/v:nightly", "repo": "org/model", "revision": "a" * 40, "unit": "llm@main.service",
}  # fmt: skip


def events(*more: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"at": "2026-01-01T00:00:00.000+00:00", "event": "begin", "hosts": ["rig1", "rig2"],
         "inventory": None, "then": "`rigup audit` verifies the hosts."},
        {"event": "plan", "host": "rig1", "ssh": ["ssh", "-p", "22", "ops@10.0.0.1"], "sudo": True,
         "endpoints": [ENDPOINT]},
        *more,
    ]  # fmt: skip


def operation(host: str, name: str, result: str, seconds: float, **more: str) -> dict[str, Any]:
    return {"event": "operation", "host": host, "step": "base", "operation": name, "result": result,
            "seconds": seconds, **more}  # fmt: skip


def test_the_report_names_commands_with_the_inventory_and_the_hosts_of_the_run(sshd: Sshd) -> None:
    inventory = sshd.lab()
    path = Path(sshd.environment["RIGUP_INVENTORY"])
    hosts = yaml.safe_load(path.read_text())["hosts"]
    path.write_text(yaml.safe_dump({"hosts": {**hosts, "other": {**hosts["box"], "port": 1}}}))
    run = sshd.pyinfra(inventory, deploy(sshd), "-y", "--limit", "box")
    assert f"Next: `RIGUP_INVENTORY={path} rigup audit box` verifies the hosts." in run.stderr

    path.write_text(yaml.safe_dump({"hosts": hosts}))
    run = sshd.pyinfra(inventory, deploy(sshd), "-y")
    assert f"Next: `RIGUP_INVENTORY={path} rigup audit` verifies the hosts." in run.stderr


def test_the_key_of_an_endpoint_is_read_with_the_inventory_of_the_run() -> None:
    made = report.build(events()) | {"inventory": "other lab.yaml"}
    line = summary.try_line(made, "rig1", ENDPOINT | {"public_url": "http://192.0.2.20:8000"})
    assert line.startswith("RIGUP_INVENTORY='other lab.yaml' rigup key rig1/main --header | curl ")


def test_a_step_takes_as_long_as_its_slowest_hosts() -> None:
    made = report.build(
        events(
            operation("rig1", "a", "changed", 1.0),
            operation("rig2", "a", "unchanged", 3.0),
            operation("rig1", "b", "changed", 2.0),
            operation("rig2", "b", "changed", 0.5),
        )
    )
    assert made["steps"] == [{"step": "base", "seconds": 5.0, "changed": 3, "unchanged": 1, "failed": 0, "ignored": 0}]


def test_the_summary_names_endpoint_recipe_digest_revision_and_what_to_do_next() -> None:
    text = summary.render(
        report.build(
            events(
                operation("rig1", "a", "changed", 1.0),
                {"at": "2026-01-01T00:00:09.000+00:00", "event": "end", "seconds": 9.0},
            )
        )
    )
    for word in ("http://127.0.0.1:8000", "fast", "sha256:ab", "a" * 40, "base 1.0", "1 change", "rigup audit"):
        assert word in text
    assert "ssh -p 22 ops@10.0.0.1 sudo journalctl -fu llm@main" in text


def test_only_a_host_that_went_the_whole_way_is_said_to_serve() -> None:
    begun = {"event": "start", "host": "rig1", "step": "serve", "operation": "Serve"}
    ended = {"at": "2026-01-01T00:00:09.000+00:00", "event": "end", "seconds": 9.0}
    for story in (
        [begun, {"event": "interrupted", "signal": "SIGINT"}, ended],
        [operation("rig1", "a", "failed", 1.0, error="broken"), ended],
        [begun],
    ):
        assert "http://127.0.0.1:8000" not in summary.render(report.build(events(*story)))
    other = [operation("rig1", "a", "changed", 1.0), operation("rig2", "a", "failed", 1.0, error="broken"), ended]
    assert "http://127.0.0.1:8000" in summary.render(report.build(events(*other)))


def test_the_line_to_try_holds_a_chat_completion_that_a_shell_passes_on_unharmed(tmp_path: Path) -> None:
    fake = tmp_path / "ssh"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\ncat\n')
    fake.chmod(0o755)
    made = report.build(events())
    made["hosts"]["rig1"]["ssh"] = [str(fake), "it's"]
    line = summary.try_line(made, "rig1", ENDPOINT)
    output = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True).stdout.splitlines()
    assert json.loads(output[-1])["messages"][0]["role"] == "user"
    assert output[:3] == ["it's", "curl", "-sS"]
    assert shlex.quote("it's") in line


def test_the_line_to_try_a_public_endpoint_hands_the_key_on_without_showing_it(tmp_path: Path) -> None:
    for name, script in {"rigup": 'echo "Authorization: Bearer planted"', "curl": 'printf "%s\\n" "$@"; cat'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    made = report.build(events())
    line = summary.try_line(made, "rig1", ENDPOINT | {"public_url": "http://192.0.2.20:8000"})
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    output = subprocess.run(["sh", "-c", line], env=env, capture_output=True, text=True, check=True).stdout
    *arguments, header = output.splitlines()
    assert header == "Authorization: Bearer planted"
    assert "planted" not in line + "".join(arguments)
    assert arguments[:4] == ["-sS", "http://192.0.2.20:8000/v1/chat/completions", "-H", "@-"]
    assert json.loads(arguments[-1])["model"] == "qwen"


def test_a_run_of_which_the_last_event_was_cut_off_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events()) + '{"event": "oper')
    assert len(report.read_events(path)) == 2


def test_the_command_prints_the_last_run_and_says_by_its_exit_code_how_it_went(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["report", "--runs", str(tmp_path)]
    assert main(command) == 1
    assert "no run yet" in capsys.readouterr().err
    stored(tmp_path, operation("rig1", "a", "failed", 1.0, error="broken"), name="2026-01-01T00-00-00")
    stored(tmp_path, operation("rig1", "a", "changed", 1.0), name="2026-01-02T00-00-00")
    assert main(command) == 0
    assert re.search(r"rigup: done in 9.0 s, 1 change\n", capsys.readouterr().out)
    assert main([*command, "2026-01-01T00-00-00"]) == 2
    assert "failed on rig1, step base: a:\n    broken" in capsys.readouterr().out
    assert main([*command, "2026"]) == 1
    assert "no run named 2026 in" in (said := capsys.readouterr().err) and "did you mean 2026-01-01T00-00-00" in said
    assert main([*command, "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["result"] == "ok"


def stored(folder: Path, *more: dict[str, Any], name: str = "2026-01-01T00-00-00") -> None:
    """A run that has ended, in a folder of runs."""
    run = folder / name
    run.mkdir()
    ended = {"at": "2026-01-01T00:00:09.000+00:00", "event": "end", "seconds": 9.0}
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events(*more, ended)))


def test_the_command_names_what_changed_on_which_host_and_how_long_it_took(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored(
        tmp_path,
        operation("rig1", "zero", "changed", 0.0),
        operation("rig1", "one", "changed", 1.5),
        operation("rig1", "two", "unchanged", 0.1),
        operation("rig2", "one", "changed", 12.0),
        operation("rig2", "three", "failed", 0.1, error="broken"),
    )
    main(["report", "--runs", str(tmp_path)])
    told = capsys.readouterr().out
    assert "  changed on rig1, with the seconds it took:\n       1.5  base | one\n       0.0  base | zero\n" in told
    assert "  changed on rig2, with the seconds it took:\n      12.0  base | one\n" in told
    in_order = ("rigup: failed", "  rig2: 1 changed, 1 failed", "failed on rig2, step base: three:\n    broken\n")
    found = [told.index(each) for each in (*in_order, "changed on rig1")]
    assert found == sorted(found)
    assert "two" not in told
    assert "more" not in told


def test_long_lists_are_cut_and_say_how_much_more_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = [operation("rig1", f"change {n}", "changed", 0.1) for n in range(summary.CHANGES + 3)]
    failures = [operation("rig2", f"failure {n}", "failed", 0.1, error="broken") for n in range(summary.FAILURES + 2)]
    stored(tmp_path, *changes, *failures)
    main(["report", "--runs", str(tmp_path)])
    told = capsys.readouterr().out
    assert told.count("base | change") == summary.CHANGES
    assert "    ... and 3 more changes; --json shows all\n" in told
    assert told.count("failed on rig2") == summary.FAILURES
    assert "    ... and 2 more failures; --json shows all\n" in told


@pytest.mark.parametrize("met", ["changed", "unchanged"])
@pytest.mark.parametrize(
    ("waited", "line"),
    [
        (40.0, "rig1: the download of o/n took 100 s: 60.0 s in parallel with other steps, 40.0 s waiting"),
        (0.2, "rig1: the download of o/n finished before it was needed; the other steps took longer"),
    ],
)
def test_the_report_says_whether_the_download_or_all_else_took_longer(waited: float, line: str, met: str) -> None:
    done = {"event": "operation", "host": "rig1", "result": "changed"}
    begun = {**done, "result": met, "at": "2026-01-01T00:00:10.000+00:00", "step": "model", "seconds": 1.0}
    had = {**done, "at": "2026-01-01T00:01:50.000+00:00", "step": "serve", "seconds": waited}
    begun["operation"], had["operation"] = "Start the download of o/n", "Download and verify o/n"

    made = report.build(events(begun, had))

    assert made["downloads"] == [
        {"host": "rig1", "repo": "o/n", "began": begun["at"], "seconds": 100.0, "waited": waited}
    ]
    assert f"  critical path:\n    {line}\n" in summary.render(made)


def test_a_checkpoint_that_was_there_from_the_beginning_is_no_download() -> None:
    same = {"event": "operation", "host": "rig1", "result": "unchanged", "at": "2026-01-01T00:00:10.000+00:00"}
    begun = {**same, "step": "model", "seconds": 0.0, "operation": "Start the download of o/n"}
    had = {**same, "step": "serve", "seconds": 0.0, "operation": "Download and verify o/n"}

    made = report.build(events(begun, had))

    assert made["downloads"] == []
    assert "critical path" not in summary.render(made)
