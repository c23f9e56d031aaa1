"""Operations through pyinfra's own front door: one operation on one host, and what came of it.

The host is this machine (`on_this_machine`), or one that plays a part (`Actor`): it answers commands from a script in
which the answers to a command come one after the other, the last one for ever. Its time passes only where it is
waited for.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from pyinfra.api.config import Config
from pyinfra.api.connect import connect_all
from pyinfra.api.deploy import add_deploy
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory
from pyinfra.api.operation import OperationMeta, add_op
from pyinfra.api.operations import run_ops
from pyinfra.api.state import State, StateStage
from pyinfra.connectors.fake import FakeConnector
from pyinfra.connectors.util import CommandOutput, OutputLine

from rigup.operations import _wait


@dataclass
class Said:
    """One answer of a scripted host; `breaks` is a connection that goes away instead."""

    lines: Sequence[str] = ()
    errors: Sequence[str] = ()
    ok: bool = True
    breaks: bool = False


Replies = Callable[[str], Said]
"""Answers a command by what it says."""


@dataclass
class Outcome:
    """What an operation came to: whether it foresaw a change, made one, failed; what it told, what it ran."""

    foreseen: bool
    changed: bool
    failed: bool
    told: str
    commands: list[str] = field(default_factory=list)

    def ran(self, part: str) -> int:
        """How many commands contain `part`."""
        return sum(part in command for command in self.commands)


class Ear(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(re.sub(r"\x1b\[[0-9;]*m", "", record.getMessage()))


def _perform(hosts: Inventory, add: Callable[[State], OperationMeta | None]) -> tuple[Outcome, Host]:
    """Add an operation, or several without their meta, and run them."""
    state = State(hosts, Config())
    state.current_stage = StateStage.Connect
    state.print_noop_info = True
    connect_all(state)
    (host,) = hosts
    ear, logger = Ear(), logging.getLogger("pyinfra")
    logger.addHandler(ear)
    level = logger.level
    logger.setLevel(logging.INFO)
    failed = False
    try:
        state.current_stage = StateStage.Prepare
        meta = add(state)
        foreseen = meta is not None and meta.will_change
        state.current_stage = StateStage.Execute
        try:
            run_ops(state)
        except PyinfraError:
            failed = True
    finally:
        logger.removeHandler(ear)
        logger.setLevel(level)
    changed = meta is not None and meta.did_change()
    return Outcome(foreseen, changed, failed, "\n".join(ear.heard)), host


def on_this_machine(operation: Callable[..., Any], **arguments: Any) -> Outcome:
    """Run one operation here, for real: for those that touch only what their arguments name."""
    outcome, _ = _perform(Inventory((["@local"], {})), _adds(operation, arguments))
    return outcome


def _adds(operation: Callable[..., Any], arguments: dict[str, Any]) -> Callable[[State], OperationMeta]:
    """What adds one operation on one host, and returns its meta."""

    def add(state: State) -> OperationMeta:
        (meta,) = add_op(state, operation, **arguments).values()
        return meta

    return add


class ActorConnector(FakeConnector):
    """A host that plays its part."""

    def run_shell_command(
        self, command: Any, print_output: bool = False, print_input: bool = False, **arguments: Any
    ) -> tuple[bool, CommandOutput]:
        text = command if isinstance(command, str) else command.get_raw_value()
        given = "".join(f"{name}={value} " for name, value in (arguments.get("_env") or {}).items())
        self.executed_commands.append(given + text)
        for part, answers in self.host.data.script:
            if part in text:
                said = answers.pop(0) if len(answers) > 1 else answers[0]
                if callable(said):
                    said = said(text)
                if said.breaks:
                    raise OSError("Socket is closed")
                lines = [OutputLine("stdout", line) for line in said.lines]
                lines += [OutputLine("stderr", line) for line in said.errors]
                return said.ok, CommandOutput(lines)
        return True, CommandOutput([])


class ActorsTime:
    """The standard library's, as far as it is used while waiting for a host."""

    def __init__(self) -> None:
        self._now = 0.0

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds


class Actor:
    """A host whose script says what it answers to commands that contain a text; to all others it says nothing."""

    def __init__(self) -> None:
        self.script: list[tuple[str, list[Said | Replies]]] = []

    def answers(self, part: str, *answers: Said | Replies | Sequence[str]) -> Actor:
        """To commands with `part` in them these answers come one after the other, the last one for ever."""
        given = [answer if isinstance(answer, Said) or callable(answer) else Said(answer) for answer in answers]
        self.script.append((part, given))
        return self

    def does(self, operation: Callable[..., Any], **arguments: Any) -> Outcome:
        """Run one operation on this host: it is prepared and then executed, so that facts are read twice."""
        return self._outcome(_adds(operation, arguments))

    def walks(self, step: Callable[[Any], Any], context: Any) -> Outcome:
        """Run a step of the road on this host, all its operations."""

        def add(state: State) -> None:
            add_deploy(state, step, context)

        return self._outcome(add)

    def _outcome(self, add: Callable[[State], OperationMeta | None]) -> Outcome:
        inventory = Inventory((["@fake/rig1"], {"script": self.script, "fake_delay": 0, "fake_delay_jitter": 0}))
        (host,) = inventory
        host.connector_cls = ActorConnector
        with patch.object(_wait, "time", ActorsTime()):
            outcome, host = _perform(inventory, add)
        outcome.commands = list(host.connector.executed_commands)
        return outcome
