"""How pyinfra's ssh connectors, `@rig` and its own, run a command: in the fixed environment, and bounded in output.

Importing this changes pyinfra, which has no setting for either.
"""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Callable, Iterator
from typing import Any

import paramiko
from paramiko.channel import ChannelStdinFile
from pyinfra.api.command import StringCommand
from pyinfra.api.host import Host
from pyinfra.api.state import State
from pyinfra.connectors import ssh
from pyinfra.connectors.sshuserclient.client import SSHClient
from pyinfra.connectors.util import make_unix_command_for_host

from rigup.ssh import environment
from rigup.ssh.transport import MAX_BYTES

OPEN_S = 60
"""Seconds that a host may take to accept a command on an open connection."""

LINE_BYTES = 64
"""Bytes of memory that pyinfra needs for a line in addition to its text."""

_OTHER_USER = ("_sudo", "_su_user", "_doas", "_dzdo")


class Lines:
    """The lines of one stream of a command; above MAX_BYTES the channel is closed and `is_too_long` is set.

    What a login printed before the command is left out. If there is nothing else, the command did not run: these are
    the lines then, and `is_opened` is False. An exception would be lost: pyinfra reads in a greenlet of its own.
    """

    def __init__(self, channel: paramiko.Channel, receive: Callable[[int], bytes], opening: bytes) -> None:
        self.channel, self._receive, self._opening = channel, receive, opening
        self.is_too_long = self.is_opened = False

    def __iter__(self) -> Iterator[str]:
        left, before, unfinished = MAX_BYTES, bytearray(), list[bytes]()
        while chunk := self._receive(1 << 16):
            lines = chunk.split(b"\n")
            left -= len(chunk) + LINE_BYTES * (len(lines) - 1)
            if left < 0:
                self.is_too_long = True
                self.channel.close()
                return
            if not self.is_opened:
                searched = max(0, len(before) - len(self._opening))
                before += chunk
                if (at := before.find(self._opening, searched)) < 0:
                    continue
                self.is_opened = True
                lines = bytes(before[at + len(self._opening) :]).split(b"\n")
            for line in lines[:-1]:
                yield b"".join((*unfinished, line)).decode(errors="replace")
                unfinished.clear()
            unfinished.append(lines[-1])
        if not self.is_opened:
            yield from before.decode(errors="replace").splitlines()
        elif last := b"".join(unfinished):
            yield last.decode(errors="replace")


def start(channel: paramiko.Channel, command: str, get_pty: bool) -> tuple[ChannelStdinFile, Lines, Lines]:
    """Start a command in the fixed environment; return its standard input, output and error."""
    if get_pty:
        channel.get_pty()
    mark = secrets.token_hex(16)
    channel.exec_command(environment.login_line(command, mark))
    stdout = Lines(channel, channel.recv, environment.opening(mark, 1))
    return channel.makefile_stdin("wb"), stdout, Lines(channel, channel.recv_stderr, environment.opening(mark, 2))


class _Client(SSHClient):
    """pyinfra's ssh client, whose commands run in the fixed environment."""

    def exec_command(self, command: str, get_pty: bool = False, **_: Any) -> tuple[ChannelStdinFile, Lines, Lines]:  # type: ignore[override]
        transport = self.get_transport()
        assert transport is not None, "not connected"
        return start(transport.open_session(timeout=OPEN_S), command, get_pty)


def _make_clean_command(state: State, host: Host, command: StringCommand, **arguments: Any) -> StringCommand:
    """Return the command line for a command, with the fixed environment after sudo and su too."""
    if any(arguments.get(name) for name in _OTHER_USER):
        shell = arguments.get("_shell_executable") or "sh"
        arguments["_shell_executable"] = shlex.join([*environment.CLEAN, shell])
    return make_unix_command_for_host(state, host, command, **arguments)


ssh.SSHClient = _Client  # type: ignore[attr-defined]
ssh.make_unix_command_for_host = _make_clean_command  # type: ignore[attr-defined]
