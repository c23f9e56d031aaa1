"""testinfra over rigup's inventory: ``rig://NAME`` is the inventory's host of that name, reached as deploys do.

The checks of an audit run many small commands, so most of the time would be spent waiting. This backend runs each
command once per session and, at the first command, sends all commands of this host's last audit in one round trip. An
audit only reads, so the results are valid until it ends.

``register()`` adds the backend to testinfra. ``RIGUP_PREFETCH=off`` runs every command on its own; ``RIGUP_STATS=1``
prints the remote executions per host at the end.
"""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import testinfra.backend
from testinfra.backend.base import BaseBackend, CommandResult

from rigup.config.inventory import Host, Inventory, find_inventory, load_inventory
from rigup.ssh.batch import Command, Result
from rigup.ssh.client import COMMAND_S, Client, Unreachable
from rigup.ssh.login import uses_sudo
from rigup.ssh.read_ahead import ReadAhead
from rigup.ssh.transport import BadAnswer
from rigup.text import printable

__all__ = ["COMMAND_S", "DEEP_S", "NAME", "RigBackend", "Session", "close_all", "inventory", "register", "session"]

NAME = "rig"

DEEP_S = 6 * 3600
"""Seconds that a command may take that reads all of the model store."""


@cache
def inventory() -> Inventory:
    """Read the inventory that deploys use: `RIGUP_INVENTORY`, else `inventory/lab.yaml`, else the lab's."""
    return load_inventory(find_inventory(Path("inventory")))


def register() -> None:
    """Add ``rig://NAME`` to testinfra."""
    testinfra.backend.BACKENDS[NAME] = f"{__name__}.RigBackend"


class Session:
    """One host's connection and the results of its commands."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.executions = 0
        self.limit_s: float = COMMAND_S
        self._results = ReadAhead(host.name, ".audit")
        self._is_started = False
        self._lock = threading.Lock()
        self._client: Client | None = None

    def run(self, command: Command) -> Result:
        """Run a command, or return the result that it had before. Raises Unreachable.

        Without sudo if this login may not use it. A lost connection is reestablished once: an audit only reads.
        """
        return self._run(replace(command, sudo=False) if command.sudo and not self.may_sudo else command)

    @cached_property
    def may_sudo(self) -> bool:
        """Whether this login becomes root without a password."""
        return self._run(Command("true", sudo=True)).code == 0

    def _run(self, command: Command) -> Result:
        with self._lock:
            self._results.note_use(command, command.command)
            if not self._is_started:
                self._is_started = True
                self.executions += self._results.start(self._connected().transport)
            try:
                result = self._results.result(command)
            except BadAnswer as error:
                raise Unreachable(self.host, str(error)) from error
            if result is None:
                result = self._run_live(command)
                self._results.keep(command, result)
            return result

    def _run_live(self, command: Command) -> Result:
        self.executions += 1
        try:
            return self._connected().run(command, self.limit_s)
        except Unreachable as error:
            if self._client is None or isinstance(error.__cause__, BadAnswer):
                raise
            self._client.close()
            self._client = None
            self.executions += 1
            return self._connected().run(command, self.limit_s)

    def _connected(self) -> Client:
        if self._client is None:
            # Without sudo, the checks that need it are not run.
            self._client = Client(self.host, sudo=False)
        return self._client

    def close(self) -> None:
        """Store the commands of this session and close the connection."""
        self._results.save()
        if self._client is not None:
            self._client.close()
            self._client = None
            if os.environ.get("RIGUP_STATS"):
                print(printable(f"[{self.host.name}] remote executions: {self.executions}"), file=sys.stderr)


@cache
def session(name: str) -> Session:
    """Return the one session of a host in this process."""
    return Session(inventory().host(name))


def close_all() -> None:
    """Close all sessions; their commands are stored for the next audit."""
    for name in inventory().hosts:
        session(name).close()
    session.cache_clear()


class RigBackend(BaseBackend):  # type: ignore[misc]
    """Commands on a host of the inventory, as root: through sudo where deploys use it."""

    NAME = NAME

    def __init__(self, hostname: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(hostname, sudo=uses_sudo(inventory().host(hostname)))

    @classmethod
    def get_hosts(cls, host: str, **kwargs: Any) -> list[str]:
        """Return all hosts for ``rig://all``."""
        return list(inventory().hosts) if host in ("all", None) else [inventory().host(host).name]

    def get_encoding(self) -> str:
        """Return UTF-8 always: testinfra would ask the host's Python, which a bare host lacks."""
        return "utf-8"

    def decode(self, data: bytes) -> str:
        return data.decode("utf-8", errors="replace")

    def run(self, command: str, *args: str, **kwargs: Any) -> CommandResult:
        """Run a command, or return the result that it had before in this session."""
        quoted = self.quote(command, *args)
        result = session(self.hostname).run(Command(quoted, self.sudo))
        return self.result(result.code, quoted.encode(), result.stdout, result.stderr)
