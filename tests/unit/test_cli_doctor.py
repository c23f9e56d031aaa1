"""`rigup doctor`, `rigup version` and `rigup completion`: what concerns the control machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rigup.cli.main import main
from tests.unit.loopback_sshd import ROOT
from tests.unit.waiting import HANG_S, until


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with an inventory, the key of its host, and the host's known key."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    for name in ("key", "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", name], check=True)
    Path("known_hosts").write_text(f"192.0.2.1 {Path('host_key.pub').read_text()}")
    Path("lab.yaml").write_text("hosts: {box: {address: 192.0.2.1, user: root, key: key, known_hosts: known_hosts}}\n")
    monkeypatch.setenv("RIGUP_INVENTORY", str(tmp_path / "lab.yaml"))
    return tmp_path


def checks(capsys: pytest.CaptureFixture[str], code: int) -> dict[str, tuple[str, str]]:
    """What is not in order: the result and what to do, by check."""
    assert main(["doctor", "--json"]) == code
    found = json.loads(capsys.readouterr().out)["checks"]
    return {each["check"]: (each["result"], each["remedy"]) for each in found if each["result"] != "ok"}


def test_a_machine_in_order_has_no_findings(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checks(capsys, 0) == {}


def test_an_inventory_that_cannot_be_read_fails(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (machine / "lab.yaml").write_text("hosts: {box: {adress: 192.0.2.1}}\n")
    assert checks(capsys, 1)["inventory"][0] == "fail"


def test_a_key_that_others_can_read_is_told_with_what_to_do(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (machine / "key").chmod(0o644)
    assert checks(capsys, 0) == {"ssh keys": ("warn", f"run `chmod 600 {machine}/key`")}


def test_no_key_fails(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (machine / "key").unlink()
    (machine / "key.pub").unlink()
    (result, remedy) = checks(capsys, 1)["ssh keys"]
    assert result == "fail" and f"key {machine}/key: no such private key file" in remedy


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as line:
        return line.connect_ex(str(path)) == 0


def test_an_agent_that_answers_is_in_order(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = machine / "agent"
    monkeypatch.setenv("SSH_AUTH_SOCK", str(agent))
    with subprocess.Popen(["ssh-agent", "-D", "-a", agent], stdout=subprocess.DEVNULL) as running:
        until(lambda: listens(agent), lambda: running.poll() is None)
        assert checks(capsys, 0) == {}
        running.terminate()


def test_an_agent_that_does_not_answer_and_an_unknown_host_are_warnings(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", str(machine / "gone"))
    (machine / "known_hosts").unlink()
    found = checks(capsys, 0)
    assert {check: result for check, (result, _) in found.items()} == {"ssh agent": "warn", "known hosts": "warn"}


def test_an_unknown_host_fails_if_ssh_refuses_unknown_ones(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (machine / ".ssh").mkdir()
    (machine / ".ssh/config").write_text("StrictHostKeyChecking yes\n")
    (machine / "known_hosts").unlink()
    result, remedy = checks(capsys, 1)["known hosts"]
    assert result == "fail" and "rigup accept box" in remedy


def test_without_programs_it_says_which_to_install(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(machine))
    found = checks(capsys, 1)
    assert found["ssh"][0] == "fail" and "openssh-client" in found["ssh"][1]
    assert found["git"][0] == "warn"


def test_version_says_what_runs_and_where_its_data_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    rows = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert rows["files"] == str(ROOT / "files") and rows["interpreter"] == sys.executable
    assert rows["python"] == ".".join(map(str, sys.version_info[:3]))


# Completion


def completed(line: str, shell: str = "bash") -> list[str]:
    """What a shell offers after this line, as its script asks for it."""
    environment = {
        **os.environ, "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_SHELL": shell, "_ARGCOMPLETE_STDOUT_FILENAME": "offered",
    }  # fmt: skip
    argv = [sys.executable, "-m", "rigup.cli"]
    Path("offered").write_text("")
    subprocess.run(argv, env=environment, timeout=HANG_S)
    return [word.strip() for word in Path("offered").read_text().split("\n") if word]


def test_commands_options_hosts_endpoints_and_recipes_are_completed(machine: Path) -> None:
    assert completed("rigup stat") == ["status"]
    assert completed("rigup status b") == ["box", "box/main"]
    assert completed("rigup plan b") == ["box"]
    assert completed("rigup show vllm-stock-b12x-") == ["vllm-stock-b12x-mtp2"]
    assert completed("rigup recipes --eng") == ["--engine"]
    (machine / "lab.yaml").unlink()
    assert completed("rigup status b") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script_of_its_own(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    wanted = {"bash": "complete ", "zsh": "#compdef rigup", "fish": "complete --command rigup"}
    assert wanted[shell] in script


def test_bash_reads_its_script_and_completes(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    program = machine / "rigup"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m rigup.cli "$@"\n')
    program.chmod(0o755)
    ask = 'COMP_WORDS=(rigup stat); COMP_CWORD=1; COMP_LINE="rigup stat"; COMP_POINT=10; COMP_TYPE=9'
    text = f'{capsys.readouterr().out}\n{ask}\n_python_argcomplete rigup\nprintf "%s\\n" "${{COMPREPLY[@]}}"\n'
    environment = {**os.environ, "PATH": f"{machine}:{os.environ['PATH']}"}
    done = subprocess.run(["bash"], input=text, env=environment, capture_output=True, text=True, timeout=HANG_S)
    assert (done.stdout.strip(), done.stderr) == ("status", "")
