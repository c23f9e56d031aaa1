"""The ``@rig`` connector: pyinfra's ssh connector with fewer round trips.

What differs from ``@ssh``:

- The connection is made as by all other commands (``rigup.ssh.connect``): ssh's own configuration counts where
  ``ssh_hostname``, ``ssh_port``, ``ssh_user``, ``ssh_key`` and ``ssh_known_hosts_file`` are not set. It sends at once
  (no Nagle), is kept alive, and detects a dead host within a minute. Other ``ssh_*`` data about connections is refused.
- Facts come in one round trip. The names and arguments of the last run's facts are stored per host (no output and no
  command), all are read together when the host is connected, and facts are answered from the results until the first
  change, upload or command that is not a fact. After that every fact is read live. Only facts of rigup and pyinfra are
  read ahead.
- A lost connection is reestablished once per command. A command that may have run is not repeated unless it is a fact.

``RIGUP_STATS=1`` prints the remote executions per host at the end; ``RIGUP_PREFETCH=off`` reads every fact live;
``RIGUP_CACHE`` is the directory of the stored names (default ``.rigup/facts``).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import IO, Any

import gevent
import paramiko
from paramiko.channel import ChannelStdinFile
from pyinfra import logger
from pyinfra.api.command import StringCommand
from pyinfra.api.exceptions import ConnectError
from pyinfra.api.facts import FactBase
from pyinfra.api.host import Host
from pyinfra.api.output import echo
from pyinfra.api.state import State
from pyinfra.api.util import get_file_io
from pyinfra.connectors.ssh import FileTransferClient, SSHConnector
from pyinfra.connectors.sshuserclient import client as user_client
from pyinfra.connectors.util import CommandOutput, OutputLine, clear_askpass_cache, remove_any_sudo_askpass_file

from rigup.ssh import environment, host_keys
from rigup.ssh.batch import Command
from rigup.ssh.connect import connect
from rigup.ssh.fact_calls import NOT_READ_AHEAD, call_of, command_of
from rigup.ssh.login import login_of_data
from rigup.ssh.pyinfra_ssh import OPEN_S, Lines, start
from rigup.ssh.read_ahead import ReadAhead
from rigup.ssh.transport import BROKEN, MAX_BYTES, BadAnswer, NoConnection, reason
from rigup.text import printable

STALE_AFTER_S = 30
"""Seconds after which results that were read ahead are read again."""

FACT_S = 600
"""Seconds that a host may take for one fact."""

OPERATION_S = 6 * 3600
"""Seconds that a host may take for one command of an operation: pulling an image over a slow line takes hours."""

# Arguments that may differ from their default for a command to be read ahead; all others change what it means.
_HARMLESS = {
    "_sudo",
    "_shell_executable",
    "_retries",
    "_retry_delay",
    "_retry_until",
    "_temp_dir",
    "_success_exit_codes",
}

# For `@ssh`: pyinfra does not create a known_hosts file, would ignore all of it for one line that cannot be read, and
# would accept any key of a host that it has just added when it connects again in the same run.
user_client.get_host_keys = functools.cache(host_keys.load)
user_client.append_hostkey = lambda client, name, key: host_keys.pin(
    client.get_host_keys(), client._host_keys_filename, name, key
)

_SSH_DATA = {
    "ssh_hostname",
    "ssh_port",
    "ssh_user",
    "ssh_key",
    "ssh_known_hosts_file",
    "ssh_file_transfer_protocol",
}

# The name and arguments of the fact that is read; an empty one is a fact that is not remembered.
_in_fact: ContextVar[dict[str, Any] | None] = ContextVar("in_fact", default=None)


class ConnectionLostError(paramiko.SSHException):
    """The connection broke while a command ran, which may have succeeded, or could not be reestablished.

    An SSHException, because pyinfra takes that as a failure of one host alone.
    """


class UnusableAnswer(paramiko.SSHException):
    """A host's answer was refused. An SSHException, because pyinfra takes that as a failure of one host alone."""


class _Client:
    """What pyinfra's connector needs of a client."""

    def __init__(self, transport: paramiko.Transport, exec_command: Callable[..., Any]) -> None:
        self._transport, self.exec_command = transport, exec_command

    def get_transport(self) -> paramiko.Transport:
        return self._transport

    def close(self) -> None:
        self._transport.close()


class RigConnector(SSHConnector):
    """Connect over ssh, read facts in one round trip, and reconnect when the connection breaks."""

    def __init__(self, state: State, host: Host) -> None:
        super().__init__(state, host)
        self.executions = 0
        self._results: ReadAhead | None = None
        self._transfer: FileTransferClient | None = None
        self._channel: paramiko.Channel | None = None
        self._streams: list[Lines] = []
        self._is_disconnected = False
        self.before_change: Callable[[], None] | None = None
        """Called once, before the first command that is not a fact."""
        self.after_reconnect: Callable[[], None] = lambda: None

    @staticmethod
    def make_names_data(name: str) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
        """Resolve ``@rig/NAME`` to the host NAME, in data and in reports."""
        yield name, {"ssh_hostname": name}, []

    # Connection

    def connect(self) -> None:
        """Connect and, the first time in a run, send what the last run read."""
        self._is_disconnected = False
        self._connect()
        if self._results is None:
            self._watch_facts()
            self._results = ReadAhead(self.host.name, decode=command_of)
            # Not in a greenlet: while the deploy is being read, no other greenlet runs.
            self.executions += self._results.start(self._transport())

    def _connect(self) -> None:
        if unknown := [key for key in self.data_meta if key not in _SSH_DATA and self.host.data.get(key) is not None]:
            raise ConnectError(
                f"{', '.join(unknown)}: not supported here; use ssh's configuration, or RIGUP_CONNECTOR=ssh"
            )
        try:
            login = login_of_data(self.host.name, self.host.data)
            transport = connect(login, bool(self.host.data.get("_sudo")), self._say, may_ask=True)
        except NoConnection as error:
            raise ConnectError(printable(str(error))) from None
        self.client = _Client(transport, self._exec_command)  # type: ignore[assignment]
        self._transfer = None
        transport.make_room = self._make_room

    def _make_room(self) -> None:
        """End what keeps a session open that sshd allows only once: the batch of facts, and the file transfer."""
        try:
            if self._results is not None:
                self._results.receive()
        except BadAnswer as error:
            raise UnusableAnswer(f"{self.host.name}: {error}") from error
        if isinstance(self._transfer, paramiko.SFTPClient):
            self._transfer.close()
        self._transfer = None

    def _say(self, said: str) -> None:
        logger.warning("%s%s", self.host.print_prefix, printable(said))

    def disconnect(self) -> None:
        """Store the commands of this run's facts, and close the connection."""
        transport = self.client.get_transport() if self.client is not None else None
        if transport is not None and transport.is_active():
            # pyinfra does this after disconnecting, when it is too late.
            remove_any_sudo_askpass_file(self.host)
            if os.environ.get("RIGUP_STATS"):
                echo(f"{self.host.print_prefix}remote executions: {self.executions}", err=True)
        clear_askpass_cache(self.host)
        if self._results is not None:
            self._results.save()
        self._is_disconnected = True
        if self.client is not None:
            self.client.close()
        self._forget_results()
        self._transfer = None

    def _transport(self) -> paramiko.Transport:
        transport = self.client.get_transport() if self.client is not None else None
        if transport is None:
            raise ConnectionLostError(f"{self.host.name} is not connected")
        return transport

    def _is_alive(self) -> bool:
        """Return whether the connection works; if paramiko believes so, the host is asked."""
        try:
            self._transport().open_session(timeout=OPEN_S).close()
        except paramiko.ChannelException:
            return True
        except BROKEN:
            return False
        return True

    def _reconnect(self, why: str) -> None:
        """Connect again, and forget all results: the host may have been rebooted or replaced."""
        if self._is_disconnected:
            raise ConnectionLostError(f"{self.host.name} was disconnected on purpose")
        self._forget_results()
        self._channel = self._transfer = None
        logger.warning("%sConnection lost (%s), connecting again", self.host.print_prefix, why)
        if self.client is not None:
            self.client.close()
        try:
            self._connect()
        except ConnectError as error:
            raise ConnectionLostError(
                f"connection lost ({why}), and {self.host.name} cannot be reached: {error}"
            ) from error
        self.after_reconnect()

    # Commands

    def _exec_command(self, command: str, get_pty: bool = False) -> tuple[ChannelStdinFile, Lines, Lines]:
        """Paramiko's ``exec_command`` in two parts: if the channel cannot be opened, nothing has been sent yet."""
        try:
            channel = self._transport().open_session(timeout=OPEN_S)
        except paramiko.ChannelException:
            raise
        except BROKEN as error:
            self._reconnect(reason(error))
            channel = self._transport().open_session(timeout=OPEN_S)
        self._channel = channel
        self.executions += 1
        stdin, stdout, stderr = start(channel, command, get_pty)
        self._streams = [stdout, stderr]
        return stdin, stdout, stderr

    def run_shell_command(
        self, command: StringCommand, print_output: bool = False, print_input: bool = False, **arguments: Any
    ) -> tuple[bool, CommandOutput]:
        """Run a command, or return the result that was read ahead if it is a fact and nothing has changed.

        Raises ConnectionLostError if the connection broke while a command ran, which may have succeeded, and
        UnusableAnswer if the host answers too much, too late, or with malformed frames.
        """
        is_fact = _in_fact.get() is not None
        if not is_fact:
            self._note_change()
        elif result := self._known_result(command, arguments):
            if print_input:
                echo(f"{self.host.print_prefix}>>> {command} (read ahead)", err=True)
            for line in result[1] if print_output else ():
                echo(f"{self.host.print_prefix}{line.line}", err=True)
            return result
        inherited = super().run_shell_command
        limit = FACT_S if is_fact else OPERATION_S

        def run() -> tuple[bool, CommandOutput]:
            try:
                with gevent.Timeout(limit) as late:
                    return inherited(command, print_output, print_input, **arguments)
            except gevent.Timeout as timeout:
                if timeout is not late:
                    raise
                if self._channel is not None:
                    # Ends the greenlets that read it.
                    self._channel.close()
                raise UnusableAnswer(f"{self.host.name}: a command did not end within {limit} s") from None

        outcome = self._attempt(run)
        if isinstance(outcome, str) and is_fact:
            self._reconnect(outcome)
            outcome = self._attempt(run)
        if not isinstance(outcome, str):
            return outcome
        if is_fact:
            raise ConnectionLostError(f"connection lost again ({outcome}) while a fact was read from {self.host.name}")
        raise ConnectionLostError(
            f"connection lost ({outcome}) while a command ran on {self.host.name}; it may have run, so it is not run "
            "again. Run the deploy again: it continues from there."
        )

    def _attempt(self, run: Callable[[], tuple[bool, CommandOutput]]) -> tuple[bool, CommandOutput] | str:
        """Run it; return its result, or why the connection broke."""
        try:
            self._channel = None
            self._streams = []
            # After a failed reconnection there is a client without a transport.
            self._transport()
            succeeded, output = run()
        except (ConnectionLostError, TimeoutError, UnusableAnswer):
            raise
        except BROKEN as error:
            if self._is_alive():
                raise
            return reason(error)
        if any(stream.is_too_long for stream in self._streams):
            raise UnusableAnswer(f"{self.host.name}: a command printed more than {MAX_BYTES} bytes")
        if not succeeded and self._is_cut_off():
            return "it broke while the command ran"
        if self._streams and not self._streams[0].is_opened:
            raise UnusableAnswer(f"{self.host.name}: {environment.not_run(output.stdout.strip() or output.stderr)}")
        return succeeded, output

    def _is_cut_off(self) -> bool:
        """Return whether the last command failed because the connection broke: it has no exit code.

        The same is true of a command that a signal ended, so the host is asked.
        """
        return self._channel is not None and self._channel.exit_status == -1 and not self._is_alive()

    # Facts

    def _watch_facts(self) -> None:
        """Tell commands of facts from all others: pyinfra does not pass that on."""
        get_fact = self.host.get_fact

        def watched(name_or_cls: Any, *args: Any, **kwargs: Any) -> Any:
            call: dict[str, Any] | None = {}
            if isinstance(name_or_cls, type) and issubclass(name_or_cls, FactBase):
                runs_anything = issubclass(name_or_cls, NOT_READ_AHEAD)
                call = None if runs_anything else call_of(name_or_cls, args, kwargs) or {}
            token = _in_fact.set(call)
            try:
                return get_fact(name_or_cls, *args, **kwargs)
            finally:
                _in_fact.reset(token)

        self.host.get_fact = watched  # type: ignore[method-assign]

    def _readable_ahead(self, command: StringCommand, arguments: dict[str, Any]) -> Command | None:
        """Return the command to send ahead; None if its result depends on more than the command."""
        if any(value for name, value in arguments.items() if name not in _HARMLESS):
            return None
        sudo = bool(arguments.get("_sudo"))
        if sudo and self.host.connector_data.get("prompted_sudo_password"):
            return None
        shell = arguments.get("_shell_executable", "sh")
        if not isinstance(shell, str):
            return None
        raw = command.get_raw_value() if isinstance(command, StringCommand) else str(command)
        return Command(raw, sudo, shell)

    def _known_result(self, command: StringCommand, arguments: dict[str, Any]) -> tuple[bool, CommandOutput] | None:
        """Return the result that was read ahead, in pyinfra's form; None if there is none."""
        ahead, key = self._results, self._readable_ahead(command, arguments)
        if ahead is None or key is None:
            return None
        call = _in_fact.get() or {}
        if _stands_for(call, key.command):
            ahead.note_use(key, call)
        try:
            if ahead.is_older_than(STALE_AFTER_S):
                # Someone read the plan, or other hosts took their time: read all again, still in one round trip.
                ahead.clear()
                self.executions += ahead.start(self._transport())
            result = ahead.result(key)
        except BadAnswer as error:
            raise UnusableAnswer(f"{self.host.name}: {error}") from error
        if result is None:
            return None
        stdout, stderr = result.stdout.decode(errors="replace"), result.stderr.decode(errors="replace")
        succeeded = result.code in (arguments.get("_success_exit_codes") or [0])
        return succeeded, CommandOutput(_lines("stdout", stdout) + _lines("stderr", stderr))

    def _note_change(self) -> None:
        """Read facts live from here on: something changes on the host."""
        self._forget_results()
        if before := self.before_change:
            self.before_change = None
            before()

    def _forget_results(self) -> None:
        if self._results is not None:
            self._results.clear()

    # Files

    def rsync(self, *arguments: Any, **named: Any) -> Any:
        """Run pyinfra's rsync, which opens a connection of its own."""
        self._note_change()
        return super().rsync(*arguments, **named)

    def _put_file(self, filename_or_io: str | IO[Any], remote_location: str) -> None:
        """Upload; after a lost connection once more from the beginning, which overwrites an incomplete file."""
        self._note_change()

        def put() -> None:
            with get_file_io(filename_or_io) as file:
                self._file_transfer().putfo(file, remote_location)

        self._transfer_twice(put)

    def _get_file(self, remote_filename: str, filename_or_io: str | IO[Any]) -> None:
        def get() -> None:
            with get_file_io(filename_or_io, "wb") as file:
                self._file_transfer().getfo(remote_filename, file)

        self._transfer_twice(get)

    def _file_transfer(self) -> FileTransferClient:
        if self._transfer is None:
            # Bypasses pyinfra's cache of these clients, which outlives the connection.
            self._transfer = SSHConnector.get_file_transfer_connection.__wrapped__(self)
        if self._transfer is None:
            raise ConnectionLostError(f"{self.host.name} accepts no file transfer")
        return self._transfer

    def _transfer_twice(self, transfer: Callable[[], None]) -> None:
        """Transfer a file, and once more if the connection or the file transfer client broke."""
        self.executions += 1
        try:
            transfer()
        except BROKEN as error:
            if not self._is_alive():
                self._reconnect(reason(error))
            elif isinstance(error, OSError):
                raise
            self._transfer = None
            try:
                transfer()
            except EOFError as second:
                raise ConnectionLostError(
                    f"connection lost again during a file transfer with {self.host.name}"
                ) from second


def _stands_for(call: dict[str, Any], command: str) -> bool:
    """Return whether the command can be made from the call again."""
    try:
        return command_of(call) == command
    except ValueError:
        return False


def _lines(name: str, text: str) -> list[OutputLine]:
    if not text:
        return []
    return [OutputLine(name, line) for line in text.removesuffix("\n").split("\n")]
