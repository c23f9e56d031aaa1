"""One run at a time on each host.

A run that changes a host takes its lock first. The lock names its holder, ends with the holder's ssh connection, and
outlasts the reboots of its own run.
"""

from __future__ import annotations

import getpass
import re
import secrets
import socket
from contextlib import nullcontext
from functools import partial

from pyinfra.api.exceptions import OperationError
from pyinfra.api.host import Host
from pyinfra.api.operation import operation
from pyinfra.api.state import StateStage
from pyinfra.context import host, state

from rigup.facts.run_lock import RunLockValue, lock_command, parse_run_lock
from rigup.operations._host import Commands, check, refusal
from rigup.operations._wait import Clock, say, wait_until

__all__ = ["held", "hold_again", "outlast"]

WAIT_S = 6 * 3600.0
"""How long to wait for another run: longer than the download of a large checkpoint takes."""

RUN = secrets.token_hex(8)
"""Identifies this run."""

_held: set[str] = set()


@operation()
def held(last: str, wait: bool) -> Commands:
    """Take the host's lock for this run.

    + last: the run that had taken it last when this run's facts were read
    + wait: whether to wait while another run holds it; if not, that is an error
    """
    host.noop("only one run changes a host at a time")
    if state.current_stage is not StateStage.Execute:
        return
    try:
        _take_or_wait(host, last, wait)
    except OperationError as error:
        yield refusal(str(error))


def _take_or_wait(host: Host, last: str, wait: bool) -> None:
    # The stock connector reads nothing ahead that could be kept.
    with getattr(host.connector, "keep_results", nullcontext)():
        before = _take(host)
    if before.held and wait:
        say(host, f"waiting for another run: {before.holder}")
    if before.held or before.run != last:
        # Another run was here since the facts were read. This command makes the connector read them again.
        free = wait_until(
            host,
            Clock(WAIT_S if wait else 0),
            lambda: None if (now := _take(host)).held else now,
            lambda: f"still waiting for {before.holder}",
        )
        if free is None:
            raise OperationError(
                f"another run is changing {host.name}: {before.holder}. Wait until it ends, or run again with "
                f"`--data lock=wait`. If that machine is gone, end its connection: `kill {before.pid}` on {host.name}."
            )
    _held.add(host.name)
    if hasattr(host.connector, "after_reconnect"):
        host.connector.after_reconnect = partial(hold_again, host)


def _take(host: Host) -> RunLockValue:
    """Take the lock unless another run holds it; return how it was before."""
    who = [re.sub(r"[^\w.@-]", "_", name) or "_" for name in (getpass.getuser(), socket.gethostname())]
    result = check(host, lock_command("take", RUN, *who), failing=f"could not lock {host.name} for this run")
    try:
        before = parse_run_lock(list(result.lines))
    except ValueError as error:
        raise OperationError(f"could not lock {host.name} for this run: {error}") from error
    return before if before.run != RUN else RunLockValue(RUN)


def outlast(host: Host, seconds: float) -> None:
    """Keep the lock while the host reboots, for at most `seconds`."""
    if host.name in _held:
        command = lock_command("outlast", RUN, "_", "_", str(int(seconds)))
        check(host, command, failing=f"could not lock {host.name} for its reboot")


def hold_again(host: Host) -> None:
    """Hold the lock with the present connection. Raises OperationError if another run took it in the meantime."""
    if host.name in _held and (now := _take(host)).held:
        raise OperationError(f"another run took over {host.name} while it was not connected: {now.holder}")
