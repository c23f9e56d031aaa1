"""What connector and audit share besides the batch: a tuned connection, and the memory of commands."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path

import paramiko

from rigup.ssh.batch import Ask

KEEPALIVE_S = 15
"""Seconds between keepalive messages: below the idle limits of NAT gateways and firewalls, which start at 60 s."""

DEAD_AFTER_MS = 45_000
"""Milliseconds without an acknowledgement after which the kernel gives a connection up (its default is 15 minutes)."""

FORGOTTEN_AFTER = 5
"""Runs in a row that did not ask for a command, after which it is forgotten."""

LEFT_OUT_FOR = 5
"""Runs for which a command that was too slow for a batch is left out of it: the host may have been busy that day."""


def tune(transport: paramiko.Transport) -> None:
    """Send at once (paramiko leaves Nagle's algorithm on: 40 ms per command), keep alive, notice a dead peer."""
    transport.set_keepalive(KEEPALIVE_S)
    # A proxied connection has a channel or a process here, with no socket options.
    if isinstance(transport.sock, socket.socket):
        transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_AFTER_MS)


def silence_paramiko() -> None:
    """Keep paramiko's own log off the terminal: it prints tracebacks while a host boots. What matters is raised."""
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)


def memory_file(host: str, kind: str) -> Path:
    """Where the commands asked of a host are remembered: below RIGUP_CACHE, or else ``.rigup/facts``."""
    folder = Path(os.environ.get("RIGUP_CACHE") or ".rigup/facts")
    safe = re.sub(r"[^A-Za-z0-9._-]", lambda m: f"%{ord(m[0]):x}", host)
    return folder / f"{safe}{kind}.json"


class Memory:
    """The commands a run asked of a host, for the next run to ask at once. Commands alone, never what they answered.

    That is why it outlives the host: one that was replaced under the same name is asked anew like any other.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._unasked: dict[Ask, int] = {}
        self._left_out: dict[Ask, int] = {}
        self._asked: dict[Ask, None] = {}

    @classmethod
    def load(cls, path: Path) -> Memory:
        """The memory in `path`; an empty one where there is none or it cannot be read."""
        memory = cls(path)
        try:
            for entry in json.loads(path.read_text())["commands"]:
                ask = Ask(str(entry["command"]), bool(entry["sudo"]), str(entry["shell"]))
                memory._unasked[ask] = int(entry["unasked"])
                if left_out := int(entry["left_out"]):
                    memory._left_out[ask] = left_out
        except (OSError, ValueError, KeyError, TypeError):
            memory._unasked.clear()
            memory._left_out.clear()
        return memory

    def foreseen(self) -> Sequence[Ask]:
        """What is worth asking at once, in the order in which it was asked for. Not what was too slow of late."""
        return [ask for ask in self._unasked if ask not in self._left_out]

    def asked(self, ask: Ask) -> None:
        """Note that this run has asked for it."""
        self._asked[ask] = None

    def too_slow(self, asks: Iterable[Ask]) -> None:
        """Note what the next batches shall not hold."""
        self._left_out.update(dict.fromkeys(asks, LEFT_OUT_FOR + 1))

    def save(self) -> None:
        """Write the file anew, readable to its owner alone. Nothing is written where nothing was asked."""
        if not self._asked:
            return
        unasked = dict.fromkeys(self._asked, 0)
        for ask, runs in self._unasked.items():
            if ask not in unasked and runs + 1 < FORGOTTEN_AFTER:
                unasked[ask] = runs + 1
        entries = [
            {
                "command": ask.command,
                "sudo": ask.sudo,
                "shell": ask.shell,
                "unasked": runs,
                "left_out": max(0, self._left_out.get(ask, 0) - 1),
            }
            for ask, runs in unasked.items()
        ]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump({"commands": entries}, file, indent=0)
        beside.replace(self.path)
