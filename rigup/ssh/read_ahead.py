"""Results of the commands that a run will probably need, read in one round trip before they are asked for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import paramiko

from rigup.ssh import batch
from rigup.ssh.batch import Batch, Command, Result
from rigup.ssh.memory import Memory, memory_file, sealing_key


class ReadAhead:
    """The results of one host, by command, and the memory of which commands to send.

    `kind` tells the memories of deploys and audits apart; `decode` is as for `Memory.load`.
    ``RIGUP_PREFETCH=off`` sends nothing ahead.
    """

    def __init__(self, host: str, kind: str = "", decode: Callable[[Any], str] = str) -> None:
        # What audits remember are commands; deploys remember names.
        self._memory = Memory.load(memory_file(host, kind), decode, sealing_key() if kind else b"")
        self._is_on = os.environ.get("RIGUP_PREFETCH") != "off"
        self._pending: Callable[[], Batch] | None = None
        self._abandoned: list[Callable[[], Batch]] = []
        self._sent_at = 0.0
        self._results: dict[Command, Result] = {}

    def start(self, transport: paramiko.Transport) -> bool:
        """Send the expected commands; the host works on them while other things happen here.

        Returns whether there were any.
        """
        commands = self._memory.expected() if self._is_on else ()
        if not commands:
            return False
        self._sent_at = time.monotonic()
        self._pending = batch.send(transport, commands)
        return True

    def note_use(self, command: Command, source: Any) -> None:
        """Record that this run needed the command, which `source` stands for."""
        self._memory.note_use(command, source)

    def result(self, command: Command) -> Result | None:
        """Return the result of a command, or None if it is not known. Waits for results that are on their way."""
        self.receive()
        return self._results.get(command)

    def keep(self, command: Command, result: Result) -> None:
        """Keep the result of a command that was run on its own."""
        self._results[command] = result

    def is_older_than(self, seconds: float) -> bool:
        """Return whether there are results, and they were asked for more than `seconds` ago."""
        self.receive()
        return bool(self._results) and time.monotonic() - self._sent_at > seconds

    def clear(self) -> None:
        """Drop all results: something has changed on the host."""
        if self._pending is not None:
            # Its channel stays open, so that the program on the host ends as usual.
            self._abandoned.append(self._pending)
            self._pending = None
        self._results.clear()

    def save(self) -> None:
        """Store the commands that this run needed, for the next one."""
        self._memory.save()

    def receive(self) -> None:
        """Wait for the results that are on their way."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            done = pending()
            self._memory.note_slow(done.refused)
            self._results.update(done.results)
