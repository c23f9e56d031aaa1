"""The ``@rig`` connector: pyinfra's ssh connector with the waiting taken out.

Three things differ from ``@ssh``; everything else, all ``ssh_*`` data included, is the same:

- The connection sends at once (no Nagle), is kept alive, and a peer that vanished is noticed within a minute.
- Facts come in one round trip. The commands that the last run's facts asked for are kept per host (commands only,
  never what they answered), run together when the host is connected, and facts are answered from that until the
  first change, upload or command that is not a fact. After that every fact is read live.
- A lost connection is made again, once per command. A command that may have run is not run twice, except a fact.

``RIGUP_STATS=1`` prints the remote executions per host at the end; ``RIGUP_PREFETCH=off`` reads every fact live;
``RIGUP_CACHE`` says where the commands are kept (default ``.rigup/facts``).
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Collection, Iterator
from contextvars import ContextVar
from typing import IO, Any

import gevent
import paramiko
from paramiko.channel import ChannelFile, ChannelStderrFile, ChannelStdinFile
from pyinfra import logger
from pyinfra.api.command import StringCommand
from pyinfra.api.exceptions import ConnectError
from pyinfra.api.host import Host
from pyinfra.api.output import echo
from pyinfra.api.state import State
from pyinfra.api.util import get_file_io
from pyinfra.connectors.ssh import FileTransferClient, SSHConnector
from pyinfra.connectors.util import CommandOutput, OutputLine, clear_askpass_cache, remove_any_sudo_askpass_file
from pyinfra.facts.server import Command

from rigup.ssh import batch, host_keys
from rigup.ssh.batch import Answer, Ask, Batch
from rigup.ssh.transport import Memory, memory_file, silence_paramiko, tune

STALE_AFTER_S = 30
"""Seconds after which a prefetched answer is not believed any more, whether or not this run changed anything."""

OPEN_S = 60
"""Seconds a host may take to accept a command on a connection that stands."""

# Facts that run whatever they are given: asking them ahead of time could change the host.
_NO_READING = (Command,)

# What may differ from the default and still be asked ahead of time; all others change what a command means.
_HARMLESS = {
    "_sudo",
    "_shell_executable",
    "_retries",
    "_retry_delay",
    "_retry_until",
    "_temp_dir",
    "_success_exit_codes",
}

# pyinfra's words for a changed host key, and its advice, which leaves the new key unseen.
_OTHER_KEY = re.compile(r"Host key for .* does not match")
_ADVICE = re.compile(
    r"WARNING: REMOTE HOST IDENT|Someone could be eavesdropping|If this is expected, you|\s+ssh-keygen -R "
)


class _OwnWords(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not _ADVICE.match(record.getMessage())


_OWN_WORDS = _OwnWords()

_in_fact: ContextVar[bool] = ContextVar("in_fact", default=False)


class ConnectionLostError(paramiko.SSHException):
    """The connection broke under a command that may have run, or could not be made again.

    An SSHException, because that is what pyinfra takes for a failure of one host alone.
    """


class RigConnector(SSHConnector):
    """Connect over SSH, with facts in one round trip and a connection that is made again when it breaks."""

    def __init__(self, state: State, host: Host) -> None:
        super().__init__(state, host)
        self.executions = 0
        self._answers: dict[Ask, Answer] = {}
        self._answered_at = 0.0
        self._reading_ahead: Any = None
        self._changes = 0
        self._memory: Memory | None = None
        self._transfer: FileTransferClient | None = None
        self._channel: paramiko.Channel | None = None
        self._left = False

    @staticmethod
    def make_names_data(name: str) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
        """``@rig/NAME`` is the host NAME, in data and in reports."""
        yield name, {"ssh_hostname": name}, []

    # Connecting

    def connect(self) -> None:
        """Connect and, the first time in a run, read at once what the last run read."""
        silence_paramiko()
        logger.addFilter(_OWN_WORDS)
        self._left = False
        try:
            super().connect()
        except ConnectError as error:
            if _OTHER_KEY.search(str(error)):
                raise ConnectError(host_keys.changed(self.host.name)) from None
            raise
        if self._memory is None:
            self._watch_facts()
            self._memory = Memory.load(memory_file(self.host.name, ""))
            if os.environ.get("RIGUP_PREFETCH") != "off":
                self._prefetch(self._memory)

    def _connect(self) -> None:
        super()._connect()
        tune(self._transport())
        self._transfer = None
        self.client.exec_command = self._exec_command  # type: ignore[union-attr, method-assign]

    def disconnect(self) -> None:
        """Remember what was asked, and close the connection."""
        transport = self.client.get_transport() if self.client is not None else None
        if transport is not None and transport.is_active():
            # pyinfra does this after disconnecting, when it is too late.
            remove_any_sudo_askpass_file(self.host)
            if os.environ.get("RIGUP_STATS"):
                echo(f"{self.host.print_prefix}remote executions: {self.executions}", err=True)
        clear_askpass_cache(self.host)
        if self._memory is not None:
            self._memory.save()
        self._left = True
        self._reading_ahead = None
        if self.client is not None:
            self.client.close()
        self._answers.clear()
        self._transfer = None

    def _transport(self) -> paramiko.Transport:
        transport = self.client.get_transport() if self.client is not None else None
        if transport is None:
            raise ConnectionLostError(f"{self.host.name} is not connected")
        return transport

    def _alive(self) -> bool:
        """Whether the connection stands, asked of the host where paramiko thinks so."""
        transport = self.client.get_transport() if self.client is not None else None
        if transport is None or not transport.is_active():
            return False
        try:
            transport.open_session(timeout=OPEN_S).close()
        except paramiko.ChannelException:
            return True
        except (paramiko.SSHException, OSError, EOFError):
            return False
        return True

    def _reconnect(self, why: str) -> None:
        """Connect again; everything that was read before is void: the host may have been rebooted or replaced."""
        if self._left:
            raise ConnectionLostError(f"{self.host.name} was disconnected on purpose")
        self._change()
        self._channel = self._transfer = None
        logger.warning("%sConnection lost (%s), connecting again", self.host.print_prefix, why)
        if self.client is not None:
            self.client.close()
        try:
            super().connect()
        except ConnectError as error:
            raise ConnectionLostError(
                f"connection lost ({why}), and {self.host.name} cannot be reached: {error}"
            ) from error

    # Commands

    def _exec_command(
        self, command: str, get_pty: bool = False
    ) -> tuple[ChannelStdinFile, ChannelFile, ChannelStderrFile]:
        """Paramiko's ``exec_command`` in two parts: where the channel cannot be opened, nothing has been sent yet."""
        try:
            channel = self._transport().open_session(timeout=OPEN_S)
        except paramiko.ChannelException:
            raise
        except (paramiko.SSHException, OSError, EOFError) as error:
            self._reconnect(str(error) or type(error).__name__)
            channel = self._transport().open_session(timeout=OPEN_S)
        self._channel = channel
        self.executions += 1
        if get_pty:
            channel.get_pty()
        channel.exec_command(command)
        return channel.makefile_stdin("wb"), channel.makefile("r"), channel.makefile_stderr("r")

    def run_shell_command(
        self, command: StringCommand, print_output: bool = False, print_input: bool = False, **arguments: Any
    ) -> tuple[bool, CommandOutput]:
        """Run a command, or answer it from what was read ahead where it is a fact and nothing has changed.

        Raises ConnectionLostError where the connection broke under a command that may have run.
        """
        if not _in_fact.get():
            self._change()
            return self._run(command, False, print_output, print_input, arguments)
        ask = self._foreseeable(command, arguments)
        if ask is None:
            return self._run(command, True, print_output, print_input, arguments)
        if self._memory is not None:
            self._memory.asked(ask)
        result = self._answered(ask, arguments.get("_success_exit_codes") or [0])
        if result is None:
            return self._run(command, True, print_output, print_input, arguments)
        if print_input:
            echo(f"{self.host.print_prefix}>>> {command} (read ahead)", err=True)
        if print_output:
            for line in result[1]:
                echo(f"{self.host.print_prefix}{line.line}", err=True)
        return result

    def _run(
        self,
        command: StringCommand,
        reads: bool,
        print_output: bool,
        print_input: bool,
        arguments: dict[str, Any],
        again: bool = False,
    ) -> tuple[bool, CommandOutput]:
        """Run it over the connection, and say what is known where that breaks."""
        try:
            self._channel = None
            # After a reconnection that failed there is a client, and nothing behind it.
            self._transport()
            status, output = super().run_shell_command(command, print_output, print_input, **arguments)
            if status or not self._cut_off():
                return status, output
            why = "it broke under a command"
        except (ConnectionLostError, TimeoutError):
            raise
        except (paramiko.SSHException, OSError, EOFError) as error:
            if self._alive():
                raise
            why = str(error) or type(error).__name__
        if reads and not again:
            self._reconnect(why)
            return self._run(command, reads, print_output, print_input, arguments, again=True)
        if reads:
            raise ConnectionLostError(f"connection lost again ({why}) while a fact was read from {self.host.name}")
        raise ConnectionLostError(
            f"connection lost ({why}) while a command ran on {self.host.name}; it may have run, so it is not run "
            "again. Run the deploy again: it goes on from what it finds."
        )

    def _cut_off(self) -> bool:
        """Whether the last command failed because the connection broke: its channel has closed without an exit code.

        A command that a signal ended reads the same, so the host is asked.
        """
        return self._channel is not None and self._channel.exit_status == -1 and not self._alive()

    # Facts

    def _watch_facts(self) -> None:
        """Tell commands that facts ask from all others: pyinfra does not pass that on."""
        get_fact = self.host.get_fact

        def watched(name_or_cls: Any, *args: Any, **kwargs: Any) -> Any:
            reading = not (isinstance(name_or_cls, type) and issubclass(name_or_cls, _NO_READING))
            token = _in_fact.set(reading)
            try:
                return get_fact(name_or_cls, *args, **kwargs)
            finally:
                _in_fact.reset(token)

        self.host.get_fact = watched  # type: ignore[method-assign]

    def _foreseeable(self, command: StringCommand, arguments: dict[str, Any]) -> Ask | None:
        """The command as it can be asked ahead of time; None where more than the command decides what it answers."""
        if any(value for name, value in arguments.items() if name not in _HARMLESS):
            return None
        sudo = bool(arguments.get("_sudo"))
        if sudo and self.host.connector_data.get("prompted_sudo_password"):
            return None
        shell = arguments.get("_shell_executable", "sh")
        if not isinstance(shell, str):
            return None
        raw = command.get_raw_value() if isinstance(command, StringCommand) else str(command)
        return Ask(raw, sudo, shell)

    def _prefetch(self, memory: Memory) -> None:
        """Ask for all that is foreseen. The host works on it while the deploy is being read here."""
        asks = memory.foreseen()
        if asks:
            self.executions += 1
            # Here and not in the greenlet: reading the deploy leaves it no time before the first fact.
            answers = batch.send(self._transport(), asks)
            self._reading_ahead = gevent.spawn(lambda: (answers(), time.monotonic()))

    def _collect(self) -> None:
        """Wait for the answers that are under way."""
        under_way, self._reading_ahead = self._reading_ahead, None
        if under_way is None:
            return
        before = self._changes
        done: Batch
        done, self._answered_at = under_way.get()
        if self._changes != before:
            return
        if self._memory is not None:
            self._memory.too_slow(done.refused)
        self._answers = done.answers
        logger.debug("%s%i facts read ahead", self.host.print_prefix, len(done.answers))

    def _answered(self, ask: Ask, success: Collection[int]) -> tuple[bool, CommandOutput] | None:
        self._collect()
        if self._answers and time.monotonic() - self._answered_at > STALE_AFTER_S:
            self._answers.clear()
            if self._memory is not None:
                # Someone thought about the plan, or other hosts took their time: still one round trip.
                self._prefetch(self._memory)
                self._collect()
        answer = self._answers.get(ask)
        if answer is None:
            return None
        stdout, stderr = batch.text(answer.stdout), batch.text(answer.stderr)
        if stdout is None or stderr is None:
            return None
        return answer.code in success, CommandOutput(_lines("stdout", stdout) + _lines("stderr", stderr))

    def _change(self) -> None:
        """From here on, what was read ahead may be wrong: facts are read live."""
        self._changes += 1
        self._reading_ahead = None
        self._answers.clear()

    # Files

    def rsync(self, *arguments: Any, **named: Any) -> Any:
        """Pyinfra's, which runs a program of its own beside this connection."""
        self._change()
        return super().rsync(*arguments, **named)

    def _put_file(self, filename_or_io: str | IO[Any], remote_location: str) -> None:
        """Upload; after a lost connection once more from the beginning, which replaces what was there of it."""
        self._change()

        def put() -> None:
            with get_file_io(filename_or_io) as file:
                self._file_transfer().putfo(file, remote_location)

        self._transferred(put)

    def _get_file(self, remote_filename: str, filename_or_io: str | IO[Any]) -> None:
        def get() -> None:
            with get_file_io(filename_or_io, "wb") as file:
                self._file_transfer().getfo(remote_filename, file)

        self._transferred(get)

    def _file_transfer(self) -> FileTransferClient:
        if self._transfer is None:
            # Past pyinfra's memory of them, which outlives the connection.
            self._transfer = SSHConnector.get_file_transfer_connection.__wrapped__(self)
        if self._transfer is None:
            raise ConnectionLostError(f"{self.host.name} accepts no file transfer")
        return self._transfer

    def _transferred(self, transfer: Callable[[], None]) -> None:
        self.executions += 1
        try:
            transfer()
        except (paramiko.SSHException, OSError, EOFError) as error:
            if self._alive():
                if isinstance(error, OSError):
                    raise
                self._transfer = None
            else:
                self._reconnect(str(error) or type(error).__name__)
            try:
                transfer()
            except EOFError as second:
                raise ConnectionLostError(
                    f"connection lost again during a file transfer with {self.host.name}"
                ) from second


def _lines(name: str, text: str) -> list[OutputLine]:
    if not text:
        return []
    return [OutputLine(name, line) for line in text.removesuffix("\n").split("\n")]
