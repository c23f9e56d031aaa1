"""Watch systemd units from an operation, and run commands as units of their own.

A command that takes longer than a moment (apt, a pull, a start) runs as a unit: it finishes even if the connection
breaks or the deploy is killed, and the next deploy finds it and waits for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from pyinfra.api.command import QuoteString
from pyinfra.api.exceptions import OperationError
from pyinfra.api.host import Host

from rigup.diagnosis.explain import explain
from rigup.facts.dkms import DkmsBuilds
from rigup.facts.network import HostProxies
from rigup.facts.units import UnitState, UnitStateValue
from rigup.operations._host import ConnectionLost, check, read_now, run, try_reconnect
from rigup.operations._wait import Clock, say, wait_until
from rigup.paths import APT_UNIT
from rigup.ssh import environment
from rigup.text import duration

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")
LINE_WIDTH = 140
# More than any unit of ours logs whose lines are shown one by one.
FOLLOWED_LINES = 1000

SHOWN_LINES = 30
# With tracebacks of four workers there is much between the first error and the last line.
DIAGNOSED_LINES = 2000


def show(host: Host, unit: str, inputs: Sequence[str] = ()) -> UnitStateValue:
    """Return the unit's state now."""
    return read_now(host, UnitState, unit, inputs)


def _show_patiently(host: Host, unit: str, clock: Clock) -> UnitStateValue:
    """Return the unit's state, after a reconnect if necessary. Raises `ConnectionLost` when the time is up."""
    while True:
        try:
            return show(host, unit)
        except ConnectionLost:
            say(host, "the connection broke; waiting until the host answers again")
            if not wait_until(host, clock, lambda: try_reconnect(host) or None, lambda: f"no answer yet: {clock}"):
                raise


def wait_while(
    host: Host,
    unit: str,
    running: Callable[[UnitStateValue], bool],
    clock: Clock,
    *,
    progress: Callable[[UnitStateValue], str],
    timed_out: str,
) -> UnitStateValue:
    """Wait as long as `running` holds for the unit's state, and return the first state for which it does not.

    `progress` makes the line that is logged now and then. Raises `UnitFailed`, with `timed_out`, when the time is up.
    """
    state = _show_patiently(host, unit, clock)

    def poll() -> UnitStateValue | None:
        nonlocal state
        state = _show_patiently(host, unit, clock)
        return None if running(state) else state

    if not running(state):
        return state
    clock.pause()
    if (ended := wait_until(host, clock, poll, lambda: progress(state))) is None:
        raise failure(host, unit, state, timed_out)
    return ended


def _last_lines(host: Host, unit: str, invocation: str, count: int) -> list[str]:
    """Return the last `count` lines that the unit logged in that invocation, without colors."""
    selected = f"_SYSTEMD_INVOCATION_ID={invocation}" if invocation else f"_SYSTEMD_UNIT={unit}"
    result = run(host, "journalctl --no-pager --quiet --output=cat --lines", str(count), QuoteString(selected))
    return [CONTROL.sub("", line).rstrip() for line in result.lines if line.strip()]


def latest(host: Host, unit: str, state: UnitStateValue) -> str:
    """Return how far the unit is, cut to a width that fits next to the host's name, to append to a message."""
    builds = read_now(host, DkmsBuilds) if unit == APT_UNIT else []
    line = "; ".join(builds) or "".join(_last_lines(host, unit, state.invocation, 1)[-1:])
    return f"; {line if len(line) <= LINE_WIDTH else f'{line[: LINE_WIDTH - 1]}…'}" if line else ""


def excerpt(host: Host, unit: str, invocation: str, also: Sequence[str] = ()) -> list[str]:
    """Return the end of the unit's log, indented, and the known causes found in it or in the lines `also`."""
    log = _last_lines(host, unit, invocation, DIAGNOSED_LINES)
    return [*(f"    {line}" for line in log[-SHOWN_LINES:] or ["(no output)"]), *explain(log, also)]


class UnitFailed(OperationError):
    """A unit failed, or did not end in time."""


def failure(host: Host, unit: str, state: UnitStateValue, what: str) -> UnitFailed:
    """Return the error for a unit that failed, with the end of its log."""
    # The last lines of a unit may reach the journal after its end was noticed.
    run(host, "journalctl --sync")
    lines = [
        f"{what} on {host.name}: {unit} is {state.active} ({state.sub}, {state.result}). Its last lines:",
        *excerpt(host, unit, state.invocation),
        f"More: journalctl -u {unit}",
    ]
    return UnitFailed("\n".join(lines))


def wait_for_leftover(host: Host, unit: str, what: str, limit_s: float) -> None:
    """Wait until a unit that an earlier, killed deploy started has ended, and clear it, whatever its result."""
    if show(host, unit).load == "not-found":
        return
    clock = Clock(limit_s)
    wait_while(
        host,
        unit,
        lambda state: state.active in ("activating", "deactivating"),
        clock,
        progress=lambda state: f"{what}, started by an earlier deploy, is still running: {clock}",
        timed_out=f"{what}, started by an earlier deploy, did not end",
    )
    _clear(host, unit)


def _clear(host: Host, unit: str) -> None:
    """Forget a transient unit that has ended."""
    run(host, "systemctl stop --", QuoteString(unit), "; systemctl reset-failed --", QuoteString(unit))


def run_as_unit(
    host: Host,
    unit: str,
    argv: Sequence[str],
    *,
    what: str,
    limit_s: float,
    env: Mapping[str, str] | None = None,
    follow: bool = False,
    restart: str = "no",
) -> None:
    """Run `argv` as the transient oneshot `unit` until it ends, with a line of progress now and then.

    With `follow` all lines of its log are shown instead. `restart` is systemd's setting of that name.

    The environment is the fixed one, the proxies and certificates of /etc/environment, and `env`, which must not hold a
    secret.
    Raises `UnitFailed`, with the end of its log, if it fails or does not end within `limit_s`, and another
    `OperationError` if it was interrupted.
    """
    variables = {"HOME": "/root", **read_now(host, HostProxies).environment, **(env or {})}
    check(
        host,
        "systemd-run --quiet --no-block --remain-after-exit --service-type=oneshot --property=UMask=0022",
        QuoteString(f"--property=Restart={restart}"),
        QuoteString(f"--unit={unit}"),
        "--",
        # systemd expands variables in the arguments of a transient unit, too.
        *(QuoteString(word.replace("$", "$$")) for word in (*environment.words(variables), *argv)),
        failing=f"could not start {what} on {host.name}",
    )
    clock, shown = Clock(limit_s), 0

    def running(state: UnitStateValue) -> bool:
        nonlocal shown
        if follow:
            shown += _say_new_lines(host, unit, state.invocation, shown)
        return state.job or state.active not in ("active", "failed", "inactive")

    state = wait_while(
        host,
        unit,
        running,
        clock,
        progress=lambda state: "" if follow else f"{what}: {clock}{latest(host, unit, state)}",
        timed_out=f"{what} timed out after {duration(limit_s)}",
    )
    if state.load == "not-found":
        raise OperationError(
            f"{what} was interrupted: {host.name} was restarted, or {unit} was stopped. Run the deploy again: it "
            "continues from here."
        )
    if state.active != "active":
        error = failure(host, unit, state, f"{what} failed")
        _clear(host, unit)
        raise error
    _clear(host, unit)


def _say_new_lines(host: Host, unit: str, invocation: str, shown: int) -> int:
    """Log the unit's lines after its first `shown` ones; returns how many these were."""
    try:
        lines = _last_lines(host, unit, invocation, FOLLOWED_LINES)[shown:]
    except ConnectionLost:
        return 0
    for line in lines:
        say(host, line)
    return len(lines)
