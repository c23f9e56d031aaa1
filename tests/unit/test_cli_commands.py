"""What every command has in common: JSON with documented keys, tables that fit, hosts that are named, similar names.

The commands are those of the parser, so that a new one is covered, or refused here until it is.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from rigup.audit.outcome import Outcome
from rigup.cli import main
from rigup.cli._parser import Parser
from rigup.cli._table import Table
from rigup.cli._terminal import SafeConsole
from rigup.facts.nvidia import GpuUseValue
from rigup.facts.store import Stored
from tests.unit.loopback import serving
from tests.unit.loopback_sshd import ROOT, programs_first, running_sshd
from tests.unit.published_checkpoints import CHECKPOINTS, publish
from tests.unit.small_world import world
from tools import docs

COMMANDS = {name: parser for name, parser in docs.commands().items() if isinstance(parser, Parser)}
WITH_JSON = sorted(name for name, parser in COMMANDS.items() if parser.json_keys)
NO_DATA = {
    "rigup accept": "asks a question",
    "rigup completion": "prints a program",
    "rigup connect": "prints what a client reads",
    "rigup deploy": "becomes pyinfra",
    "rigup init": "makes a directory",
    "rigup logs": "prints what the engine wrote",
    "rigup models rm": "removes something",
    "rigup rebuild": "becomes pyinfra",
}
KEY = "a-planted-key"
COUNT = itertools.count()
DEPLOY = """
from pyinfra.operations import files
files.line(name="Write a line", path="PLACE/motto", line="one")
"""
EVENTS = [
    {"event": "begin", "at": "2026-11-23T20:00:00+00:00", "hosts": ["box"], "inventory": None, "then": ""},
    {"event": "operation", "at": "2026-11-23T20:00:01+00:00", "host": "box", "step": "base",
     "operation": "Write a line",
     "result": "failed", "error": "no", "seconds": 1.0},
    {"event": "end", "at": "2026-11-23T20:00:09+00:00", "seconds": 9.0},
]  # fmt: skip
LOG = "RuntimeError: Engine core initialization failed. See root cause above.\n"


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@dataclass
class World:
    """A directory with a deploy, a run, a log and an inventory, whose host is this machine."""

    folder: Path
    inventory: str

    # What each command needs beside its name.
    @property
    def words(self) -> dict[str, list[str]]:
        return {
            "rigup audit": ["--step=base"],
            "rigup check": ["vllm-fp8-8gpu-mtp2", "--gpus=4"],
            "rigup diagnose": [str(self.folder / "log")],
            "rigup key": ["box"],
            "rigup lock": ["--distro=debian13"],
            "rigup new-recipe": ["Qwen/Qwen3-32B", f"--as=draft-{next(COUNT)}"],
            "rigup report": ["--runs", str(self.folder / "runs")],
            "rigup topology": ["box"],
            "rigup show": ["vllm-nvfp4-cu130", "box"],
            "rigup update": ["--distro=debian13"],
        }

    def run(self, command: str, *more: str, out: io.StringIO) -> int:
        words = [*command.split()[1:], *self.words.get(command, []), *more]
        environment = {"RIGUP_INVENTORY": self.inventory, "COLUMNS": "80", "TERM": "xterm"}
        place = ROOT if command == "rigup audit" else self.folder
        with chdir(place), patch.dict(os.environ, environment), redirect_stdout(out), redirect_stderr(io.StringIO()):
            return main.main(words)

    def said(self, command: str, *more: str) -> str:
        out = io.StringIO()
        self.run(command, *more, out=out)
        return out.getvalue()


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    programs = folder / "programs"
    programs.mkdir()
    (programs / "cat").write_text(f'#!/bin/sh\ncase "$*" in */main/key*) echo {KEY};; *) exec /bin/cat "$@";; esac\n')
    (programs / "cat").chmod(0o755)
    (folder / "inventory").mkdir()
    shutil.copy(ROOT / "inventory/lab.py", folder / "inventory/lab.py")
    (folder / "deploy.py").write_text(DEPLOY.replace("PLACE", str(folder)))
    (folder / "runs/2026-11-23T20-00-00").mkdir(parents=True)
    lines = "".join(json.dumps(event) + "\n" for event in EVENTS)
    (folder / "runs/2026-11-23T20-00-00/events.jsonl").write_text(lines)
    (folder / "log").write_text(LOG)
    public = {"listen": "192.0.2.7", "allowed_networks": ["192.0.2.0/24"]}
    with serving() as site, running_sshd(folder, programs_first(programs)) as server:
        server.lab(**world(site), endpoints={"main": public})
        publish(site, CHECKPOINTS["Qwen/Qwen3-32B"])
        yield World(folder, server.environment["RIGUP_INVENTORY"])


def test_every_command_that_prints_data_has_json() -> None:
    assert set(COMMANDS) == {*WITH_JSON, *NO_DATA}


# Needs a host that serves: tests/unit/test_cli_bench.py.
ELSEWHERE = {"rigup bench"}
# With other options, a report is a list of runs.
ABSENT = {"rigup report": {"runs"}, "rigup status": {"systems"}}


@pytest.mark.parametrize("name", sorted({*WITH_JSON} - ELSEWHERE))
def test_json_is_one_object_whose_keys_are_documented(there: World, name: str) -> None:
    text = there.said(name, "--json")
    check_documented(name, json.loads(text))
    assert (KEY in text) == (name == "rigup key")


def check_documented(name: str, found: dict[str, Any]) -> None:
    """Check that the help of a command names all keys of what it printed, and no others."""
    keys = COMMANDS[name].json_keys
    assert set(found) == set(keys) - ABSENT.get(name, set())
    for key, value in found.items():
        by_name = keys[key].startswith("by name: ")
        for each in value.values() if by_name else [value]:
            undocumented = inner_keys(each) - set(re.findall(r"\w+", keys[key]))
            assert not undocumented, f"{key}: {undocumented}"


def inner_keys(value: Any) -> set[str]:
    """All keys in a value; those of `findings` are ids."""
    if isinstance(value, dict):
        return {*value}.union(*(inner_keys(each) for key, each in value.items() if key != "findings"))
    return set().union(*(inner_keys(each) for each in value)) if isinstance(value, list) else set()


@pytest.mark.parametrize(
    ("name", "key", "shape"),
    [("rigup models", "hosts", Stored), ("rigup audit", "checks", Outcome), ("rigup status", "hosts", GpuUseValue)],
)
def test_what_the_host_here_does_not_have_is_documented_too(name: str, key: str, shape: type) -> None:
    assert {field.name for field in fields(shape)} <= set(re.findall(r"\w+", COMMANDS[name].json_keys[key]))


def test_the_list_of_runs_is_json_too(there: World) -> None:
    found = json.loads(there.said("rigup report", "--list", "--json"))
    run = {"run": "2026-11-23T20-00-00", "started": "2026-11-23T20:00:00+00:00", "ended": "2026-11-23T20:00:09+00:00"}
    assert found == {"runs": [{**run, "seconds": 9.0, "result": "failed"}]}


# Tables

TABLES = {
    "rigup audit": ["--table"],
    "rigup doctor": [],
    "rigup models": [],
    "rigup recipes": ["--all"],
    "rigup report": ["--list"],
    "rigup settings": [],
    "rigup status": ["--system"],
    "rigup version": [],
}
FORMS = [*TABLES.items(), ("rigup recipes", ["--for=agents"]), ("rigup recipes", ["sglang-nvfp4-b12x-nomtp"])]


def test_every_command_that_prints_a_table_is_tested() -> None:
    modules = [path for path in (ROOT / "rigup/cli").glob("[a-z]*.py") if "rigup.cli._table" in path.read_text()]
    assert {f"rigup {path.stem}" for path in modules} == set(TABLES) | ELSEWHERE


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.mark.parametrize(("name", "more"), FORMS, ids=lambda each: each if isinstance(each, str) else "".join(each))
def test_tables_fit_80_columns_without_splitting_a_word_and_are_plain_rows_in_a_pipe(
    there: World, name: str, more: list[str]
) -> None:
    piped = there.said(name, *more)
    assert piped == plain(piped) and not re.search("[\u2500-\u257f]", piped)
    terminal = Terminal()
    there.run(name, *more, out=terminal)
    shown = plain(terminal.getvalue())
    assert not re.search("[\u2500-\u257f]", shown)
    # Figures, such as the free space of a disk, change between two runs.
    words, words_shown = ({re.sub(r"\d+", "0", word) for word in text.split()} for text in (piped, shown))
    assert words <= words_shown
    # A path may be longer than any line, and a command is not part of the table.
    check_width("\n".join(line for line in shown.splitlines() if "Next: " not in line))


def check_width(shown: str) -> None:
    """Check that no line is too long for 80 columns, unless it has hardly two words."""
    lines = [line.rstrip() for line in shown.splitlines()]
    assert [line for line in lines if len(line) > 80 and len(line.split()) > 2] == []


WORDS = [("box", "nvidia/Qwen3.5-397B-A17B-NVFP4", "360 of 382 GiB on 4 GPUs"), ("rig2", "x", "serving, on trial")]


@pytest.mark.parametrize("width", range(20, 100))
def test_a_table_keeps_its_words_at_any_width(width: int) -> None:
    out = Terminal()
    table = Table("host", "checkpoint", "how full the memory is", rows=WORDS)
    SafeConsole(file=out, width=width).print(table, crop=False)
    shown = plain(out.getvalue())
    assert {word for row in WORDS for cell in row for word in cell.split()} <= set(shown.split())
    longest = max(len(word) for row in WORDS for cell in row for word in cell.split())
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= max(
        width, longest + len("how full the memory is") + 2
    )


def test_rows_of_a_pipe_are_lines_whatever_the_cells_contain() -> None:
    out = io.StringIO()
    SafeConsole(file=out).print(Table("a", "b", rows=[("one\ntwo", "\x1b[2J" + "long " * 100), ("x", "")]))
    assert out.getvalue().splitlines() == ["a        b", "one two  \\x1b[2J" + ("long " * 100).strip(), "x"]


# Names

HOSTS = sorted(
    name
    for name, parser in COMMANDS.items()
    if any(str(action.metavar).startswith("HOST") for action in parser._actions)
)
BEFORE = {"rigup show": ["vllm-nvfp4-cu130"]}
AFTER = {"rigup models rm": ["org/name"], "rigup connect": ["--to=curl"]}


def test_commands_about_hosts_take_them_as_arguments() -> None:
    assert {"rigup plan", "rigup audit", "rigup status", "rigup key", "rigup logs", "rigup accept"} <= set(HOSTS)
    # The hosts of `init` are in no inventory yet.
    for parser in (parser for name, parser in COMMANDS.items() if name != "rigup init"):
        assert not {"--host", "--hosts", "--limit", "--endpoint"} & set(parser._option_string_actions)


@pytest.mark.parametrize("name", HOSTS)
def test_an_unknown_host_is_refused_with_similar_names(
    there: World, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RIGUP_INVENTORY", there.inventory)
    monkeypatch.chdir(ROOT)
    assert main.main([*name.split()[1:], *BEFORE.get(name, []), "boxx", *AFTER.get(name, [])]) == 1
    said = capsys.readouterr()
    assert (said.out, "no host is named 'boxx': did you mean box?" in said.err) == ("", True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stauts"], "rigup: argument COMMAND: unknown value 'stauts': did you mean `status`?"),
        (["plan", "--jsn"], "rigup plan: unknown option --jsn: did you mean `--json`?"),
        (["plan", "--limit", "box"], "rigup plan: unknown option --limit"),
        (["recipes", "--engine=vlm"], "argument --engine: unknown value 'vlm': did you mean `vllm`?"),
        (["show", "x", "--as", "yaml"], "unknown value 'yaml': known are compose, docker, kubernetes, shell, systemd"),
    ],
)
def test_wrong_words_are_answered_with_similar_ones(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(words)
    assert ended.value.code == 1
    assert message in capsys.readouterr().err
