"""Text of hosts in what rigup prints: no terminal obeys it, rich reads no markup in it; a host ends only itself."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback_sshd import ROOT, Sshd, programs_first, running_sshd

from rigup.errors import Problem, ProblemsError
from rigup.paths import DAILY_AUDIT
from rigup.text import printable
from tests.unit.own_command import rigup

OSC = "\x1b]0;owned\x07"
EVIL = {
    "an escape sequence": "\x1b[2J",
    "a window title": OSC,
    "a bell, a backspace, a carriage return": "\x07\x08\r",
    "C1": "\x9b31m\x90\x9d0;x\x9c",
    "a bidirectional override": "\u202egpj.exe\u2066\u200f",
    "invisible characters": "\u200b\ufeff\u00ad",
    "half a pair of surrogates": "\ud800",
    "separators": "\u2028\u2029",
    "concealed text": "\x1b[8m",
    "black text": "\x1b[30m",
}


def is_harmless(text: str) -> bool:
    return all(character.isprintable() or character in "\n\t" for character in text)


@pytest.mark.parametrize("evil", EVIL.values(), ids=EVIL)
def test_what_a_terminal_would_obey_is_escaped(evil: str) -> None:
    for colors in (False, True):
        shown = printable(f"a{evil}b", colors=colors)
        assert is_harmless(shown) and shown[0] + shown[-1] == "ab" and len(shown) > 2
        shown.encode()


def test_text_stays_as_it_is() -> None:
    for text in ("", "plain\n\ttext", "ü 漢字 🙂 [bold]x[/bold]", "\\x1b"):
        assert printable(text) == printable(text, colors=True) == text
    assert printable("\x1b[1;31mred\x1b[0m\x07", colors=True) == "\x1b[1;31mred\x1b[0m\\x07"


def calls(folder: str) -> Iterator[tuple[Path, ast.Call, str]]:
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield path, node, ast.unparse(node.func)


def test_everything_that_is_printed_is_made_printable() -> None:
    """In commands by their streams and their console, elsewhere by each print."""
    for path, call, name in [*calls("rigup"), *calls("tasks")]:
        if path.parent.name == "cli":
            assert name != "Console", f"{path}: use SafeConsole"
        elif name in ("print", "sys.stderr.write", "sys.stdout.write"):
            assert ast.unparse(call.args[0]).startswith("printable("), f"{path}:{call.lineno}"


def test_preflight_shows_what_hosts_said_as_text() -> None:
    problem = Problem("rig1", "gpus", f"[red]found[/] {''.join(EVIL.values())}", f"[/]{OSC}")
    shown = ProblemsError([problem]).table(width=400)
    assert is_harmless(shown)
    assert "[red]found[/]" in shown and "[/]" in shown


def test_the_report_shows_them_as_text(tmp_path: Path) -> None:
    evil = "".join(EVIL.values())
    events = [
        {"event": "begin", "at": "2026-11-23T20:00:00+00:00", "hosts": ["rig1"], "inventory": None, "then": ""},
        {"event": "operation", "host": "rig1", "step": "base", "operation": f"x{evil}", "seconds": 1.0,
         "result": "failed", "error": f"[/]{evil}"},
        {"event": "error", "error": evil},
    ]  # fmt: skip
    run = tmp_path / "run"
    run.mkdir()
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    shown = rigup("report", "--runs", str(tmp_path), cwd=tmp_path)
    assert shown.returncode == 2, shown.stderr
    assert is_harmless(shown.stdout) and "[/]" in shown.stdout


@pytest.fixture
def sshd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshd]:
    """A host that finds programs of the test first."""
    (tmp_path / "programs").mkdir()
    with running_sshd(tmp_path, programs_first(tmp_path / "programs")) as server:
        yield server


def stand_in(sshd: Sshd, name: str, script: str) -> None:
    path = sshd.folder / "programs" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def inventory(sshd: Sshd, **endpoints: object) -> str:
    """The host `box`, and one that cannot be reached."""
    sshd.lab(endpoints=endpoints) if endpoints else sshd.lab()
    path = Path(sshd.environment["RIGUP_INVENTORY"])
    path.write_text(path.read_text() + "  zzz: {address: 127.0.0.1, port: 1, known_hosts: /dev/null}\n")
    return str(path)


RECORD = {"name": "main", "generation": "abc", "recipe": "r", "gpus": "all", "address": "127.0.0.1", "port": 1,
          "ready_path": "/"}  # fmt: skip
ODD = {
    "escapes": {"recipe": "".join(EVIL.values())},
    "markup": {"recipe": "[/nothing][bold]x"},
    "a string for a number": {"port": "8000\x1b[2J"},
    "a number for a string": {"recipe": 5},
    "an object for a name": {"name": {}},
    "no recipe": {"recipe": None},
    "depth": {"gpus": "DEEP"},
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_status_shows_every_host_whatever_one_of_them_says(sshd: Sshd, odd: dict[str, object]) -> None:
    record = json.dumps({key: value for key, value in {**RECORD, **odd}.items() if value is not None})
    (sshd.folder / "record").write_text(record.replace('"DEEP"', '{"a":' * 100_000 + "1" + "}" * 100_000) + "\n")
    daily = {"at": "0001-01-01T00:00:00+14:00", "plan": 5, "findings": []}
    (sshd.folder / "daily").write_text(json.dumps(daily))
    stand_in(sshd, "cat", f'case "$*" in *endpoint.json*) exec /bin/cat {sshd.folder}/record;; '
             f'*{DAILY_AUDIT}*) exec /bin/cat {sshd.folder}/daily;; esac; exec /bin/cat "$@"')  # fmt: skip
    stand_in(sshd, "grep", 'case "$*" in *Generation*) echo "/etc/systemd/system/llm@main.service:Generation=abc";; '
             f"*progress*) echo '/run/x/i{OSC}/progress.json:{{\"rate\": NaN, \"step\": \"[/]\"}}';; "
             '*) exec /bin/grep "$@";; esac')  # fmt: skip
    stand_in(sshd, "nvidia-smi", f"echo '0, {'9' * 400}, 1, 1'")
    shown = rigup("status", "--inventory", inventory(sshd), cwd=sshd.folder)
    assert shown.returncode == 1
    assert is_harmless(shown.stdout) and is_harmless(shown.stderr)
    assert "no connection to" in shown.stdout, shown.stdout
    assert any(line.startswith("box") for line in shown.stdout.splitlines())


def test_a_key_is_printed_as_text(sshd: Sshd) -> None:
    stand_in(sshd, "cat", f"printf '{OSC}key'")
    endpoints = {"main": {"listen": "192.0.2.7", "allowed_networks": ["192.0.2.0/24"]}}
    shown = rigup("key", "box", "--inventory", inventory(sshd, **endpoints), cwd=sshd.folder)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout == "\\x1b]0;owned\\x07key\n"
    stand_in(sshd, "cat", f"printf '{OSC}' >&2; exit 1")
    shown = rigup("key", "box", "--inventory", inventory(sshd, **endpoints), cwd=sshd.folder)
    assert shown.returncode == 1
    assert is_harmless(shown.stderr)


def test_a_deploy_shows_what_a_command_printed_as_text(sshd: Sshd) -> None:
    evil = sshd.folder / "evil"
    evil.write_bytes("".join(each for each in EVIL.values() if each != "\ud800").encode() + b"\xff\n")
    (sshd.folder / "deploy.py").write_text(
        f"from pyinfra.operations import server\nserver.shell(commands=['cat {evil} >&2; cat {evil}; exit 1'])\n"
    )
    for more in ([], ["-v"]):
        run = sshd.pyinfra(sshd.lab(), "deploy.py", "-y", *more)
        assert "owned" in run.stderr
        assert is_harmless(run.stderr)
