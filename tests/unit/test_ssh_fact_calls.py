"""Facts that are remembered by name and arguments: all of rigup's, and none of their arguments is a command."""

from __future__ import annotations

import inspect
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pyinfra.api.command import StringCommand
from pyinfra.api.facts import FactBase
from pyinfra.facts import deb, files, server

from rigup.ssh.fact_calls import call_of, command_of
from tests.unit.test_facts_hostile_output import FACTS
from tests.unit.waiting import HANG_S


def arguments_of(fact: type[FactBase[Any]], text: str) -> dict[str, Any]:
    """Every argument, with this text wherever it can hold text."""
    values = {"str": text, "int": 1, "Sequence[str]": [text]}
    return {name: values[str(each.annotation)] for name, each in inspect.signature(fact().command).parameters.items()}


def text_of(fact: type[FactBase[Any]], arguments: dict[str, Any]) -> str:
    command: Any = fact().command(**arguments) if callable(fact.command) else fact.command
    return str(command.get_raw_value() if isinstance(command, StringCommand) else command)


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.__name__)
def test_every_fact_can_be_remembered(fact: type[FactBase[Any]]) -> None:
    for arguments in (arguments_of(fact, "it's a 'path'"), arguments_of(fact, "/plain")):
        call = call_of(fact, (), {**arguments, "_sudo": True})
        assert call is not None and command_of(call) == text_of(fact, arguments)
        by_position = call_of(fact, tuple(map(lambda value: value, arguments.values())), {})
        assert by_position == call


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.__name__)
def test_no_argument_of_a_fact_is_a_command(fact: type[FactBase[Any]], tmp_path: Path) -> None:
    for text in (
        "x; touch mark",
        "x'; touch mark; '",
        'x"; touch mark; "',
        "$(touch mark)",
        "x\ntouch mark\n",
        "`touch mark`",
    ):
        command = text_of(fact, arguments_of(fact, text))
        if text not in command and not inspect.signature(fact().command).parameters:
            return
        subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, timeout=HANG_S)
        assert not (tmp_path / "mark").exists(), command


PYINFRA = [
    (files.File, {"path": "/etc/passwd"}),
    (files.File, {"path": "/a b/it's"}),
    (files.FindInFile, {"path": "/x", "pattern": "^.*one 'line'$"}),
    (files.Sha256File, {"path": "/x"}),
    (server.Which, {"command": "update-grub"}),
    (server.Sysctl, {"keys": ["net.ipv4.ip_forward"]}),
    (server.Kernel, {}),
    (deb.DebPackages, {}),
]


@pytest.mark.parametrize(("fact", "arguments"), PYINFRA)
def test_facts_of_pyinfra_can_be_remembered(fact: type[FactBase[Any]], arguments: dict[str, Any]) -> None:
    call = call_of(fact, (), arguments)
    assert call is not None
    assert text_of(fact, arguments) in command_of(call)


@pytest.mark.parametrize(
    "call",
    [
        {"fact": "rigup.facts.store.StoredModels", "arguments": {"store": "-delete"}},
        {"fact": "pyinfra.facts.files.FindInFile", "arguments": {"path": "/x $(touch y)", "pattern": "x"}},
        {"fact": "pyinfra.facts.server.Which", "arguments": {"command": "-x"}},
        {"fact": "pyinfra.facts.server.Command", "arguments": {"command": "true"}},
        {"fact": "pyinfra.facts.files.File", "arguments": {"path": 5}},
        {"fact": "pyinfra.facts.files.File", "arguments": 5},
        {"fact": "pyinfra.facts.files.os.system", "arguments": {"command": "true"}},
        {"fact": "rigup.facts.store.replace", "arguments": {}},
        {"fact": "rigup.facts..store.X", "arguments": {}},
        {"fact": "subprocess.run", "arguments": {}},
        {"fact": 5},
        {},
        [],
        "id",
        None,
    ],
)
def test_nothing_else_stands_for_a_command(call: Any) -> None:
    with pytest.raises(ValueError, match="names no fact"):
        command_of(call)
