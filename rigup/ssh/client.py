"""One connection to a host of the inventory, for everything except deploys, which use `rigup.ssh.connector`."""

from __future__ import annotations

import os
import secrets
import shlex
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Self

import paramiko

from rigup.config.inventory import Host
from rigup.errors import RigupError
from rigup.ssh import batch, environment, host_keys
from rigup.ssh.batch import Command, Result
from rigup.ssh.transport import BROKEN, MAX_BYTES, BadAnswer, reason, receive_all, silence_paramiko, tune

CONNECT_S = 15

COMMAND_S = 600
"""Seconds that a command may take."""


class Unreachable(RigupError):
    """A host does not accept a connection or commands; `why` leaves out the host's name."""

    def __init__(self, host: Host, why: str) -> None:
        self.why = why
        super().__init__(f"{host.name}: {why}")


class Client:
    """A connection to a host. Raises Unreachable if it cannot be made, and if it breaks later."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._ssh = _connect(host)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._ssh.close()

    @property
    def transport(self) -> paramiko.Transport:
        """The open transport. Raises Unreachable if the connection was closed."""
        transport = self._ssh.get_transport()
        if transport is None:
            raise Unreachable(self._host, "the connection was closed")
        return transport

    def run(self, command: Command, limit_s: float = COMMAND_S) -> Result:
        """Run one command, for at most `limit_s` seconds. Raises Unreachable."""
        try:
            return _execute(self.transport, command, limit_s)
        except BadAnswer as error:
            raise Unreachable(self._host, str(error)) from error
        except BROKEN as error:
            raise Unreachable(self._host, f"the connection broke: {reason(error)}") from error

    def run_all(self, commands: Iterable[Command]) -> dict[Command, Result]:
        """Run all commands, in one round trip if the host can. Raises Unreachable."""
        commands = list(commands)
        try:
            results = batch.run(self.transport, commands).results
        except BadAnswer as error:
            raise Unreachable(self._host, str(error)) from error
        return results | {command: self.run(command) for command in commands if command not in results}


def run(host: Host, command: Command) -> Result:
    """Run one command over a connection of its own. Raises Unreachable."""
    with Client(host) as client:
        return client.run(command)


class _Pin(paramiko.MissingHostKeyPolicy):
    """As the deploy does: the key of an unknown host is pinned; paramiko refuses a changed one."""

    def __init__(self, known: Path) -> None:
        self._known = known

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        host_keys.pin(client.get_host_keys(), self._known, hostname, key)


def _connect(host: Host) -> paramiko.SSHClient:
    silence_paramiko()
    login = host.connection
    client = paramiko.SSHClient()
    known = host_keys.known_file(login)
    client.set_missing_host_key_policy(_Pin(known))
    for name, keys in host_keys.load([known]).items():
        for kind, key in keys.items():
            client.get_host_keys().add(name, kind, key)
    try:
        client.connect(
            login.address,
            port=login.port,
            username=login.user,
            key_filename=os.path.expanduser(login.key) if login.key else None,
            look_for_keys=login.key is None,
            allow_agent=login.key is None,
            timeout=CONNECT_S,
            banner_timeout=CONNECT_S,
            auth_timeout=CONNECT_S,
        )
    except paramiko.BadHostKeyException as error:
        raise Unreachable(host, host_keys.changed(host.name)) from error
    except BROKEN as error:
        where = f"{login.user}@{login.address}, port {login.port}"
        raise Unreachable(host, f"no connection to {where}: {reason(error)}") from error
    transport = client.get_transport()
    if transport is not None:
        tune(transport)
    return client


def _execute(transport: paramiko.Transport, command: Command, limit_s: float) -> Result:
    deadline = time.monotonic() + limit_s
    with closing(transport.open_session(timeout=CONNECT_S)) as channel:
        channel.settimeout(CONNECT_S)
        mark, words = secrets.token_hex(16), [command.shell, "-c", command.command]
        line = shlex.join(["sudo", "-H", "-n", *environment.CLEAN, *words] if command.sudo else words)
        channel.exec_command(environment.login_line(line, mark))
        channel.shutdown_write()
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
