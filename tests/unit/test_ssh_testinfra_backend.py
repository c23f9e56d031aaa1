"""The audit's connection, against a real sshd, and the audit's own command line."""

from __future__ import annotations

import hmac
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import testinfra.host
from loopback_sshd import ROOT, Sshd, programs_first, running_sshd

from rigup.errors import RigupError
from rigup.ssh import testinfra_backend, transport
from rigup.ssh.batch import Command
from rigup.ssh.client import Client
from tests.unit.own_address import OWN_ADDRESS
from tests.unit.waiting import HANG_S


@pytest.fixture
def sshd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshd]:
    with running_sshd(tmp_path) as server:
        server.lab()
        monkeypatch.setenv("RIGUP_INVENTORY", server.environment["RIGUP_INVENTORY"])
        monkeypatch.setenv("RIGUP_CACHE", str(tmp_path / "facts"))
        new_session()
        yield server
        new_session()


def new_session() -> None:
    """Forget what this process knows of inventory and hosts, as a new one would."""
    testinfra_backend.session.cache_clear()
    testinfra_backend.inventory.cache_clear()


def box() -> testinfra.host.Host:
    # Past testinfra's memory of hosts, which outlives this module's sessions.
    return testinfra.host.Host(testinfra_backend.RigBackend("box"))


def executions() -> int:
    return testinfra_backend.session("box").executions


def test_commands_answer_with_output_errors_and_exit_code(sshd: Sshd) -> None:
    answer = box().run("echo %s; echo problem >&2; exit 3", "it's ü")
    assert (answer.stdout, answer.stderr, answer.rc) == ("it's ü\n", "problem\n", 3)


def test_testinfras_own_modules_work_over_it(sshd: Sshd) -> None:
    (sshd.folder / "seen").write_text("content\n")
    file = box().file(str(sshd.folder / "seen"))
    assert file.exists and file.content_string == "content\n"
    assert box().system_info.type == "linux"


def test_a_command_is_run_once_per_session(sshd: Sshd) -> None:
    for _ in range(3):
        box().run(f"echo again >>{sshd.folder}/count")
    assert (sshd.folder / "count").read_text() == "again\n"
    assert executions() == 1


def test_the_next_audit_asks_for_everything_at_once_and_sees_what_is_there_then(sshd: Sshd) -> None:
    state = sshd.folder / "state"
    for content in ("old", "new"):
        state.write_text(content)
        assert box().run(f"cat {state}").stdout == content
        for number in range(20):
            assert box().run(f"echo {number}").stdout == f"{number}\n"
        count = executions()
        testinfra_backend.close_all()
        new_session()
    assert count == 1


def tampered(text: str, kept: dict[str, Any], command: str) -> str:
    """One of the commands is another one."""
    assert "echo 0" in text
    return text.replace("echo 0", command)


def added(text: str, kept: dict[str, Any], command: str) -> str:
    return json.dumps({**kept, "commands": [*kept["commands"], {**kept["commands"][0], "source": command}]})


def unsealed(text: str, kept: dict[str, Any], command: str) -> str:
    return json.dumps({"commands": [{**kept["commands"][0], "source": command}]})


def sealed_without_a_key(text: str, kept: dict[str, Any], command: str) -> str:
    entries = [{**kept["commands"][0], "source": command}]
    seal = hmac.new(b"", f"box.audit.json\n{json.dumps(entries)}".encode(), "sha256").hexdigest()
    return json.dumps({"commands": entries, "seal": seal})


def as_root(text: str, kept: dict[str, Any], command: str) -> str:
    """The command is an honest one, of another host, where the audit may become root."""
    return text.replace('"sudo": false', '"sudo": true')


@pytest.mark.parametrize("change", [tampered, added, unsealed, sealed_without_a_key, as_root])
def test_of_a_memory_that_somebody_has_changed_nothing_is_run(
    sshd: Sshd, change: Callable[[str, dict[str, Any], str], str]
) -> None:
    mark = sshd.folder / "mark"
    box().run("echo 0")
    box().run(f"date +%N >>{mark}")
    testinfra_backend.close_all()
    memory = sshd.folder / "facts/box.audit.json"
    text = memory.read_text()
    memory.write_text(change(text, json.loads(text), f"touch {sshd.folder}/stolen"))
    mark.unlink()
    new_session()
    assert box().run("true").rc == 0
    assert executions() == 1
    assert not mark.exists() and not (sshd.folder / "stolen").exists()
    # As it was it would have been run.
    memory.write_text(text)
    new_session()
    assert box().run("true").rc == 0
    assert mark.exists()


def test_a_memory_is_used_only_with_the_key_that_no_other_user_can_read(
    sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = sshd.folder / "mark"
    box().run(f"date +%N >>{mark}")
    testinfra_backend.close_all()
    mark.unlink()

    def runs() -> bool:
        new_session()
        box().run("true")
        return mark.exists()

    key = Path(os.environ["XDG_STATE_HOME"], "rigup/memory.key")
    assert key.stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("XDG_STATE_HOME", str(sshd.folder / "another"))
    assert not runs()
    monkeypatch.setenv("XDG_STATE_HOME", str(key.parents[1]))
    key.chmod(0o644)
    assert not runs()
    key.chmod(0o600)
    assert runs()


@pytest.mark.parametrize("works", [True, False])
def test_a_command_is_run_with_sudo_where_this_login_may_use_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    end = 'exec "$@"' if works else "exit 1"
    (programs / "sudo").write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\nshift 2\n{end}\n')
    (programs / "sudo").chmod(0o755)
    with running_sshd(tmp_path, programs_first(programs)) as server:
        server.lab()
        monkeypatch.setenv("RIGUP_INVENTORY", server.environment["RIGUP_INVENTORY"])
        monkeypatch.setenv("RIGUP_CACHE", str(tmp_path / "facts"))
        new_session()
        answer = testinfra_backend.session("box").run(Command("echo done", sudo=True))
        new_session()
    assert (answer.code, answer.stdout) == (0, b"done\n")
    assert ("echo done" in (tmp_path / "calls").read_text()) is works


def test_its_connection_sends_at_once_and_notices_a_dead_peer(sshd: Sshd) -> None:
    with Client(testinfra_backend.inventory().host("box")) as client:
        for option, value in ((socket.TCP_NODELAY, 1), (socket.TCP_USER_TIMEOUT, transport.DEAD_AFTER_MS)):
            assert client.transport.sock.getsockopt(socket.IPPROTO_TCP, option) == value


def test_much_output_on_both_streams_comes_through_whole(sshd: Sshd) -> None:
    answer = box().run("head -c 3000000 /dev/zero | tr '\\0' e >&2; head -c 3000000 /dev/zero | tr '\\0' o")
    assert (len(answer.stdout), len(answer.stderr)) == (3_000_000, 3_000_000)


def test_a_connection_cut_in_the_middle_of_an_audit_is_made_again(sshd: Sshd) -> None:
    assert box().run("echo before").stdout == "before\n"
    sshd.cut()
    assert box().run("echo after").stdout == "after\n"


def test_a_host_that_cannot_be_reached_is_named_with_address_and_port(sshd: Sshd) -> None:
    sshd.lab(port=1)
    new_session()
    with pytest.raises(RigupError, match=rf"box: no connection to .*@{OWN_ADDRESS}, port 1"):
        box().run("true")


def test_a_host_with_another_key_than_the_known_one_is_refused(sshd: Sshd) -> None:
    other = (sshd.folder / "user_key.pub").read_text()
    (sshd.folder / "known_hosts").write_text(f"[{OWN_ADDRESS}]:{sshd.port} {other}")
    with pytest.raises(RigupError, match="its host key has changed"):
        box().run("true")


def audit(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "pytest", "tests/audit", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, check=False)


def test_the_audit_says_once_why_a_host_cannot_be_audited_and_fails(sshd: Sshd) -> None:
    sshd.lab(port=1)
    run = audit("-q")
    assert run.returncode == 1, run.stdout
    assert run.stdout.count("not checked") == 1
    assert "box: preflight-system" in run.stdout
    assert "no connection to" in run.stdout


def test_the_audit_of_hosts_that_were_never_deployed_says_so(sshd: Sshd) -> None:
    run = audit("-q")
    assert run.returncode == 2, run.stdout
    assert "box: nothing is deployed here" in run.stdout


def test_the_audit_refuses_an_unknown_host_by_name(sshd: Sshd) -> None:
    run = audit("--hosts", "bix")
    assert run.returncode == 4
    assert "no host is named 'bix': did you mean box?" in run.stderr


def test_the_audit_reads_neither_pyinfra_nor_plugins_that_it_does_not_use(
    sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    run = audit("--collect-only", "-q", "--capture=no")
    read = {line.rpartition("|")[2].strip().partition(".")[0] for line in run.stderr.splitlines()}
    assert {"testinfra", "rigup", "paramiko"} < read
    assert read.isdisjoint({"pyinfra", "httpx", "hypothesis", "anyio", "typeguard"})


def test_a_check_is_found_by_its_id(sshd: Sshd) -> None:
    run = audit("--collect-only", "-q", "-k", "docker-runtime")
    assert run.stdout.count("test_docker_runtime") == 1
    assert "test_docker_config" not in run.stdout
