"""testinfra over rigup's inventory: ``rig://NAME`` is the inventory's host of that name, reached as the deploy does.

A check asks for little and there are many, so what costs is the waiting. This backend sends at once (no Nagle), runs
each command once per session, and asks at the first command for all those that the last audit of this host asked for,
in one round trip: an audit only reads, so the answers hold until it ends.

``register()`` makes the backend known to testinfra; ``RIGUP_PREFETCH=off`` asks for every command by itself;
``RIGUP_STATS=1`` prints the remote executions per host at the end.
"""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import paramiko
import testinfra.backend  # type: ignore[import-untyped]
from testinfra.backend.base import BaseBackend, CommandResult  # type: ignore[import-untyped]

from rigup.config.inventory import Host, Inventory, find_inventory, load_inventory
from rigup.ssh import batch, client
from rigup.ssh.batch import Answer, Ask
from rigup.ssh.transport import Memory, memory_file

NAME = "rig"


@cache
def inventory() -> Inventory:
    """The inventory that the deploy uses: `RIGUP_INVENTORY`, else `inventory/lab.yaml`, else the lab's."""
    return load_inventory(find_inventory(Path("inventory")))


def register() -> None:
    """Make ``rig://NAME`` known to testinfra."""
    testinfra.backend.BACKENDS[NAME] = f"{__name__}.RigBackend"


class Wire:
    """One host's connection, what it has answered, and what the last audit asked."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.executions = 0
        self._answers: dict[Ask, Answer] = {}
        self._memory = Memory.load(memory_file(host.name, ".audit"))
        self._lock = threading.Lock()
        self._client: paramiko.SSHClient | None = None
        self._read_ahead = os.environ.get("RIGUP_PREFETCH") != "off"

    def answer(self, ask: Ask) -> Answer:
        """What the host answers; asked once. A lost connection is made again once: an audit only reads.

        Raises Unreachable where the host cannot be reached.
        """
        return self._asked(replace(ask, sudo=False) if ask.sudo and not self.may_sudo else ask)

    def _asked(self, ask: Ask) -> Answer:
        with self._lock:
            self._memory.asked(ask)
            if self._read_ahead:
                self._read_ahead = False
                self._prefetch()
            if ask not in self._answers:
                self._answers[ask] = self._ask_patiently(ask)
            return self._answers[ask]

    @cached_property
    def may_sudo(self) -> bool:
        """Whether this login becomes root without a password; one that may not sees what it can."""
        return self._asked(Ask("true", sudo=True)).code == 0

    def close(self) -> None:
        """Remember what was asked, and hang up."""
        self._memory.save()
        if self._client is not None:
            self._client.close()
            self._client = None
            if os.environ.get("RIGUP_STATS"):
                print(f"[{self.host.name}] remote executions: {self.executions}", file=sys.stderr)

    def _prefetch(self) -> None:
        asks = self._memory.foreseen()
        if asks:
            self.executions += 1
            done = batch.run(self._transport(), asks)
            self._memory.too_slow(done.refused)
            self._answers.update(done.answers)

    def _ask_patiently(self, ask: Ask) -> Answer:
        for last in (False, True):
            try:
                return self._ask(ask)
            except (paramiko.SSHException, OSError, EOFError) as error:
                if last:
                    raise client.Unreachable(
                        self.host, f"the connection broke: {error or type(error).__name__}"
                    ) from error
                if self._client is not None:
                    self._client.close()
                    self._client = None
        raise AssertionError("unreachable")

    def _ask(self, ask: Ask) -> Answer:
        transport = self._transport()
        self.executions += 1
        return client.execute(transport, ask)

    def _transport(self) -> paramiko.Transport:
        if self._client is None:
            self._client = client.connect(self.host)
        transport = self._client.get_transport()
        if transport is None:
            raise EOFError("the connection is gone")
        return transport


@cache
def wire(name: str) -> Wire:
    """The one wire to a host, shared by everything in this process."""
    return Wire(inventory().host(name))


def close_all() -> None:
    """Hang up everywhere; what was asked is remembered for the next audit."""
    for name in inventory().hosts:
        wire(name).close()
    wire.cache_clear()


class RigBackend(BaseBackend):  # type: ignore[misc]
    """Commands on a host of the inventory, as root: by sudo where the deploy uses it."""

    NAME = NAME

    def __init__(self, hostname: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(hostname, sudo=inventory().host(hostname).sudo)

    @classmethod
    def get_hosts(cls, host: str, **kwargs: Any) -> list[str]:
        """``rig://all`` is every host."""
        return list(inventory().hosts) if host in ("all", None) else [inventory().host(host).name]

    def get_encoding(self) -> str:
        """Always UTF-8: testinfra would ask the host's Python, which a bare host lacks."""
        return "utf-8"

    def decode(self, data: bytes) -> str:
        return data.decode("utf-8", errors="replace")

    def run(self, command: str, *args: str, **kwargs: Any) -> CommandResult:
        """Run it, or give the answer that it gave before in this session."""
        quoted = self.quote(command, *args)
        answer = wire(self.hostname).answer(Ask(quoted, self.sudo))
        return self.result(answer.code, quoted.encode(), answer.stdout, answer.stderr)
