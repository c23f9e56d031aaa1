"""One connection to a host of the inventory, for everything except deploys, which use `rigup.ssh.connector`."""

from __future__ import annotations

import secrets
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Self

import paramiko

from rigup.config.inventory import Host
from rigup.errors import RigupError
from rigup.ssh import batch, environment
from rigup.ssh.batch import Command, Result
from rigup.ssh.connect import connect
from rigup.ssh.login import login_of, uses_sudo
from rigup.ssh.transport import BROKEN, CONNECT_S, MAX_BYTES, BadAnswer, NoConnection, Transport, reason, receive_all
from rigup.text import printable

COMMAND_S = 600
"""Seconds that a command may take."""


class Unreachable(RigupError):
    """A host does not accept a connection or commands; `why` leaves out the host's name."""

    def __init__(self, host: Host, why: str, remedy: str = "") -> None:
        self.why = f"{why}: {remedy}" if remedy else why
        super().__init__(f"{host.name}: {why}", remedy)


class Client:
    """A connection to a host. Raises Unreachable if it cannot be made, and if it breaks later.

    `sudo` is whether commands need it; where they do, a host on which it does not work is unreachable.
    """

    def __init__(self, host: Host, sudo: bool | None = None) -> None:
        self._host = host
        try:
            self.sudo = uses_sudo(host) if sudo is None else sudo
            self._transport = connect(login_of(host), self.sudo, lambda said: _warn(host, said))
        except NoConnection as error:
            raise Unreachable(host, error.message, error.remedy) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._transport.close()

    @property
    def transport(self) -> Transport:
        """The open transport. Raises Unreachable if the connection was closed."""
        if not self._transport.is_active():
            raise Unreachable(self._host, "the connection was closed")
        return self._transport

    def run(self, command: Command, limit_s: float = COMMAND_S) -> Result:
        """Run one command, for at most `limit_s` seconds. Raises Unreachable."""
        try:
            return _execute(self.transport, command, limit_s)
        except BadAnswer as error:
            raise Unreachable(self._host, str(error)) from error
        except BROKEN as error:
            raise Unreachable(self._host, f"the connection broke: {reason(error)}") from error

    def stream(self, command: Command, write: Callable[[bytes], object]) -> Result:
        """Run one command for as long as it takes; `write` gets its output as it arrives. Raises Unreachable.

        The result has the exit code and standard error, and no output.
        """
        try:
            return _stream(self.transport, command, write)
        except BadAnswer as error:
            raise Unreachable(self._host, str(error)) from error
        except BROKEN as error:
            raise Unreachable(self._host, f"the connection broke: {reason(error)}") from error

    def run_all(self, commands: Iterable[Command], *, slow: bool = True) -> dict[Command, Result]:
        """Run all commands, in one round trip if the host can. Raises Unreachable.

        With `slow` False the results leave out commands that take longer than a batch allows.
        """
        commands = list(commands)
        try:
            answers = batch.run(self.transport, commands)
        except BadAnswer as error:
            raise Unreachable(self._host, str(error)) from error
        left = [each for each in commands if each not in answers.results and (slow or each not in answers.refused)]
        return answers.results | {command: self.run(command) for command in left}


def run(host: Host, command: str) -> Result:
    """Run one command over a connection of its own, as operations do: with sudo or not. Raises Unreachable."""
    with Client(host) as client:
        return client.run(Command(command, client.sudo))


def _warn(host: Host, said: str) -> None:
    print(printable(f"{host.name}: {said}"), file=sys.stderr, flush=True)


def _start(channel: paramiko.Channel, command: Command) -> str:
    """Start a command on a channel. Returns the mark that opens both streams of its output."""
    channel.settimeout(CONNECT_S)
    mark, words = secrets.token_hex(16), [command.shell, "-c", command.command]
    line = shlex.join(["sudo", "-H", "-n", *environment.CLEAN, *words] if command.sudo else words)
    channel.exec_command(environment.login_line(line, mark))
    channel.shutdown_write()
    return mark


def _stream(transport: paramiko.Transport, command: Command, write: Callable[[bytes], object]) -> Result:
    with closing(transport.open_session(timeout=CONNECT_S)) as channel:
        mark = _start(channel, command)
        channel.settimeout(None)
        before, ran, stderr = b"", b"", bytearray()
        while chunk := channel.recv(1 << 16):
            if not ran:
                before, ran, chunk = (before + chunk).partition(environment.opening(mark, 1))
                if len(before) > MAX_BYTES:
                    raise BadAnswer(f"it sent more than {MAX_BYTES} bytes before a command ran")
            if chunk:
                write(chunk)
        receive_all(channel, channel.recv_stderr, stderr, time.monotonic() + COMMAND_S, MAX_BYTES)
        code = channel.recv_exit_status()
        if code == -1 and not transport.is_active():
            raise EOFError("while a command ran")
        if not ran:
            raise BadAnswer(environment.not_run((before.strip() or bytes(stderr)).decode(errors="replace")))
        return Result(code, b"", bytes(stderr.partition(environment.opening(mark, 2))[2]))


def _execute(transport: paramiko.Transport, command: Command, limit_s: float) -> Result:
    deadline = time.monotonic() + limit_s
    with closing(transport.open_session(timeout=CONNECT_S)) as channel:
        mark = _start(channel, command)
        # Both streams at once: one that nobody reads fills its window, and the command waits forever.
        stdout, stderr, faults = bytearray(), bytearray(), list[BaseException]()

        def read(receive: Callable[[int], bytes], into: bytearray) -> None:
            try:
                receive_all(channel, receive, into, deadline, MAX_BYTES)
            except (BadAnswer, *BROKEN) as error:
                faults.append(error)
                channel.close()

        reader = threading.Thread(target=read, args=(channel.recv_stderr, stderr), daemon=True)
        reader.start()
        read(channel.recv, stdout)
        reader.join()
        if not faults and not channel.status_event.wait(max(0.0, deadline - time.monotonic())):
            faults.append(TimeoutError())
        if faults:
            if isinstance(faults[0], TimeoutError):
                raise BadAnswer(f"a command did not end within {limit_s:.0f} s") from faults[0]
            raise faults[0]
        code = channel.recv_exit_status()
        if code == -1 and not transport.is_active():
            raise EOFError("while a command ran")
        before, ran, output = stdout.partition(environment.opening(mark, 1))
        if not ran:
            raise BadAnswer(environment.not_run((before.strip() or stderr).decode(errors="replace")))
        return Result(code, bytes(output), bytes(stderr.partition(environment.opening(mark, 2))[2]))
