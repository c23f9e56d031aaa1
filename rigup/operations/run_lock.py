"""One run at a time on each host.

A run that changes a host takes its lock first. The lock names its holder, ends with the holder's ssh connection, and
outlasts the reboots of its own run. The program that does this on the host is `run_lock.pl` next to this file.
"""

from __future__ import annotations

import getpass
import re
import secrets
import socket
from dataclasses import dataclass
from functools import partial
from importlib.resources import files

from paramiko import SSHException
from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.exceptions import OperationError
from pyinfra.api.host import Host
from pyinfra.api.operation import operation
from pyinfra.api.state import StateStage
from pyinfra.context import host, state

from rigup import paths
from rigup.operations._host import Commands, check, refusal
from rigup.operations._wait import Clock, say, wait_until
from rigup.ssh.connector import RigConnector
from rigup.text import duration

WAIT_S = 6 * 3600.0
"""How long to wait for another run: longer than the download of a large checkpoint takes."""

RUN = secrets.token_hex(8)
"""Identifies this run."""

_held: set[str] = set()


class LockedError(OperationError, SSHException):
    """Another run holds the lock, or it cannot be taken.

    An SSHException too, because pyinfra takes that as a failure of one host alone wherever a command runs.
    """


@dataclass(frozen=True)
class Holder:
    """The run that holds a lock: who started it where, its process on the host, and for how many seconds it runs."""

    run: str
    user: str
    machine: str
    pid: int
    seconds: int

    def __str__(self) -> str:
        return f"{self.user} on {self.machine}, started {duration(self.seconds)} ago"


@operation()
def held(wait: bool) -> Commands:
    """Take the host's lock for this run, at the latest before the first change.

    + wait: whether to wait while another run holds it; if not, that is an error
    """
    host.noop("only one run changes a host at a time")
    if state.current_stage is not StateStage.Execute:
        return
    if isinstance(host.connector, RigConnector) and not wait:
        # A run that changes nothing does not have to ask the host.
        host.connector.before_change = partial(_take_or_wait, host, wait)
        return
    try:
        _take_or_wait(host, wait)
    except LockedError as error:
        yield refusal(str(error))


def outlast(host: Host, seconds: float) -> None:
    """Keep the lock while the host reboots, for at most `seconds`."""
    if host.name in _held:
        command = lock_command("outlast", RUN, "-", "-", str(int(seconds)))
        check(host, command, failing=f"could not lock {host.name} for its reboot")


def hold_again(host: Host) -> None:
    """Hold the lock with the present connection. Raises LockedError if another run took it in the meantime."""
    if host.name in _held and (holder := _take(host)):
        raise LockedError(f"another run took over {host.name} while it was not connected: {holder}")


def lock_command(*arguments: str) -> StringCommand:
    """Return the command that does something with the lock; `run_lock.pl` says what."""
    program = files("rigup.operations").joinpath("run_lock.pl").read_text()
    words = (program, paths.RUN_LOCK, paths.RUN_LOCK_COPY, *arguments)
    return StringCommand("perl -e", *map(QuoteString, words))


def parse_holder(lines: list[str]) -> Holder | None:
    """Parse the answer of the program: the other run that holds the lock, if one does. Raises ValueError."""
    match " ".join(lines).split():
        case ["taken"]:
            return None
        case ["held", run, user, machine, pid, seconds]:
            return Holder(run, user, machine, int(pid), int(seconds))
    raise ValueError(f"unexpected answer {' '.join(lines)!r}")


def _take_or_wait(host: Host, wait: bool) -> None:
    holder = _take(host)
    if holder and wait:
        say(host, f"waiting for another run: {holder}")
        free = wait_until(host, Clock(WAIT_S), lambda: _take(host) is None or None, lambda: f"still waiting: {holder}")
        holder = None if free else holder
    if holder:
        raise LockedError(
            f"another run is changing {host.name}: {holder}. Wait until it ends, or run again with `--data lock=wait`. "
            f"If that machine is gone, end its connection: `kill {holder.pid}` on {host.name}."
        )
    _held.add(host.name)
    if isinstance(host.connector, RigConnector):
        host.connector.after_reconnect = partial(hold_again, host)


def _take(host: Host) -> Holder | None:
    """Take the lock; return the other run that holds it, if one does."""
    who = [re.sub(r"[^\w.@-]", "_", name) or "-" for name in (getpass.getuser(), socket.gethostname())]
    failing = f"could not lock {host.name} for this run"
    try:
        return parse_holder(list(check(host, lock_command("take", RUN, *who), failing=failing).lines))
    except OperationError as error:
        raise LockedError(str(error)) from error
    except ValueError as error:
        raise LockedError(f"{failing}: {error}") from error
