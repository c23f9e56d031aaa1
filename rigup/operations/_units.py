"""Watching systemd units from an operation, and running commands as units of their own.

A command that changes a host for longer than a moment (apt, a pull, a start) runs as a unit: it ends the way it would
have when the connection breaks or the deploy is killed, and the next deploy finds it and waits for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from pyinfra.api.command import QuoteString
from pyinfra.api.exceptions import OperationError
from pyinfra.api.host import Host

from rigup.diagnosis.explain import explain
from rigup.facts.units import UnitState, UnitStateValue, parse_unit_state
from rigup.operations._host import Clock, ConnectionLost, check, duration, run, say, try_reconnect

__all__ = [
    "UnitFailed",
    "failure",
    "last_lines",
    "run_as_unit",
    "shorten",
    "show",
    "show_patiently",
    "wait_for_leftover",
]

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")
LINE_WIDTH = 140
# More than any unit of ours says that is told line by line.
TELL_LINES = 1000

SHOWN_LINES = 30
# Tracebacks of four workers lie between the first error and the last line.
DIAGNOSED_LINES = 2000


def show(host: Host, unit: str, inputs: Sequence[str] = ()) -> UnitStateValue:
    """The unit's state now."""
    return parse_unit_state(list(run(host, UnitState().command(unit, inputs)).lines))


def show_patiently(host: Host, unit: str, clock: Clock) -> UnitStateValue:
    """The unit's state, through a broken connection if need be; raises `ConnectionLost` when the time is up."""
    while True:
        try:
            return show(host, unit)
        except ConnectionLost:
            say(host, "the connection broke; waiting for the host to answer again")
            while not try_reconnect(host):
                if clock.is_up:
                    raise
                clock.nap()


def last_lines(host: Host, unit: str, invocation: str, count: int = SHOWN_LINES) -> list[str]:
    """The last `count` lines that the unit wrote in that invocation, without colours."""
    selected = f"_SYSTEMD_INVOCATION_ID={invocation}" if invocation else f"_SYSTEMD_UNIT={unit}"
    answer = run(host, "journalctl --no-pager --quiet --output=cat --lines", str(count), QuoteString(selected))
    return [CONTROL.sub("", line).rstrip() for line in answer.lines if line.strip()]


def shorten(line: str) -> str:
    """A line that fits beside the host's name."""
    return line if len(line) <= LINE_WIDTH else f"{line[: LINE_WIDTH - 1]}…"


class UnitFailed(OperationError):
    """A unit did not do what it should."""


def failure(host: Host, unit: str, state: UnitStateValue, what: str) -> UnitFailed:
    """The error for a unit that did not do what it should, with the end of its log."""
    # What a unit says last may reach the journal after its end was noticed.
    run(host, "journalctl --sync")
    log = last_lines(host, unit, state.invocation, DIAGNOSED_LINES)
    lines = "\n".join(f"    {line}" for line in log[-SHOWN_LINES:]) or "    (it wrote nothing)"
    told = [
        f"{what} on {host.name}: {unit} is {state.active} ({state.sub}, {state.result}). Its last lines:",
        lines,
        *explain(log),
        f"More: journalctl -u {unit}",
    ]
    return UnitFailed("\n".join(told))


def wait_for_leftover(host: Host, unit: str, what: str, limit_s: float) -> None:
    """Wait until a unit that an earlier, killed deploy started has ended, and clear it away, whatever it came to."""
    state = show(host, unit)
    if state.load == "not-found":
        return
    clock = Clock(limit_s)
    while state.active in ("activating", "deactivating"):
        if clock.is_due():
            say(host, f"{what}, begun by an earlier deploy, still runs: {clock}")
        if clock.is_up:
            raise failure(host, unit, state, f"{what}, begun by an earlier deploy, did not end")
        clock.nap()
        state = show_patiently(host, unit, clock)
    clear(host, unit)


def clear(host: Host, unit: str) -> None:
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
    tell: bool = False,
    restart: str = "no",
) -> None:
    """Run `argv` as the transient oneshot `unit`, to its end, with a line of progress now and then.

    With `tell` its own lines are told, all of them, instead. `restart` is systemd's setting of that name.

    Its environment is that of /etc/environment (where hosts keep their proxies) and `env`, which must hold no secret.
    Raises `UnitFailed` with its last lines when it fails or is not done after `limit_s`, and another `OperationError`
    when it was cut off.
    """
    check(
        host,
        "systemd-run --quiet --no-block --remain-after-exit --service-type=oneshot",
        "--property=EnvironmentFile=-/etc/environment",
        QuoteString(f"--property=Restart={restart}"),
        *(QuoteString(f"--setenv={name}={value}") for name, value in (env or {}).items()),
        QuoteString(f"--unit={unit}"),
        "--",
        *(QuoteString(argument) for argument in argv),
        failing=f"could not start {what} on {host.name}",
    )
    clock, told = Clock(limit_s), 0
    state = show_patiently(host, unit, clock)
    while state.job or state.active not in ("active", "failed", "inactive"):
        if tell:
            told += _tell(host, unit, state.invocation, told)
        if clock.is_up:
            raise failure(host, unit, state, f"{what} was not done within {duration(limit_s)}")
        if clock.is_due() and not tell:
            latest = last_lines(host, unit, state.invocation, 1)
            say(host, f"{what}: {clock}" + (f"; {shorten(latest[-1])}" if latest else ""))
        clock.nap()
        state = show_patiently(host, unit, clock)
    if tell:
        _tell(host, unit, state.invocation, told)
    if state.load == "not-found":
        raise OperationError(
            f"{what} was cut off: {host.name} was restarted, or somebody stopped {unit}. Run the deploy again: "
            "it goes on from here."
        )
    if state.active != "active":
        error = failure(host, unit, state, f"{what} failed")
        clear(host, unit)
        raise error
    clear(host, unit)


def _tell(host: Host, unit: str, invocation: str, told: int) -> int:
    """Tell what the unit has said beyond its first `told` lines; returns how many those were."""
    try:
        lines = last_lines(host, unit, invocation, TELL_LINES)[told:]
    except ConnectionLost:
        return 0
    for line in lines:
        say(host, line)
    return len(lines)
