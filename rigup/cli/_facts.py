"""Read facts from commands, without a pyinfra run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pyinfra.api.command import StringCommand
from pyinfra.api.facts import FactBase

from rigup.ssh.batch import Command, Result
from rigup.ssh.client import Client

T = TypeVar("T")


class Facts:
    """Facts that are read in one round trip."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._commands: list[Command] = []
        self._results: Mapping[Command, Result] = {}

    def add(self, fact: FactBase[T], **arguments: Any) -> Callable[[], T]:
        """Add a fact. Returns a function that returns its value once `read` was called."""
        text = fact.command(**arguments)
        command = Command(text.get_raw_value() if isinstance(text, StringCommand) else str(text), self._client.sudo)
        self._commands.append(command)

        def value() -> T:
            result = self._results.get(command)
            lines = result.stdout.decode(errors="replace").splitlines() if result else []
            # As pyinfra: a fact that printed nothing has its default.
            return fact.process(lines) if any(line.strip() for line in lines) else fact.default()

        return value

    def read(self, *, slow: bool = True) -> list[str]:
        """Read all facts. Raises Unreachable.

        With `slow` False, facts that take longer than a batch allows have their default. Returns their commands.
        """
        self._results = self._client.run_all(self._commands, slow=slow)
        return [each.command for each in self._commands if each not in self._results]
