"""Units brought to where they shall be with one start, never a start and then a restart.

Whether a running unit must be restarted is read from its state, not from what this deploy has changed: a deploy that
was killed between writing a file and the restart is finished by the next one. A unit runs on old input when

- one of its input files was written after its main process began,
- systemd itself has not read the unit's file again (`NeedDaemonReload`), or
- the process was started with another `RIGUP_DIGEST` in its environment than the one wanted.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from pyinfra.api.command import FunctionCommand, QuoteString
from pyinfra.api.host import Host
from pyinfra.api.operation import OperationMeta, operation
from pyinfra.context import host

from rigup.facts.units import ProcessDigest, UnitState, UnitStateValue
from rigup.operations._host import SAY_EVERY_S, Clock, check, duration, say, work
from rigup.operations._units import failure, last_lines, shorten, show_patiently

__all__ = ["changed", "converge", "stale_reasons", "start"]

Commands = Generator[FunctionCommand, None, None]


def changed(meta: OperationMeta) -> bool:
    """Whether an operation has changed something; while the deploy is being prepared, whether it will."""
    return meta.did_change() if meta.is_complete() else meta.will_change


def stale_reasons(
    state: UnitStateValue, digest: str | None, running_digest: str | None, restart_on: Sequence[OperationMeta] = ()
) -> list[str]:
    """Why what runs is not what the files say; empty for a unit that does not run. See the module's text."""
    if not state.runs:
        return []
    reasons = [f"{path} was written after it started" for path in state.newer_inputs]
    if state.needs_reload:
        reasons.append("its unit file has changed")
    if digest is not None and running_digest is not None and running_digest != digest:
        reasons.append("it runs an earlier plan")
    if any(changed(meta) for meta in restart_on):
        reasons.append("this deploy changed what it runs on")
    return reasons


@operation()
def converge(
    unit: str,
    inputs: Sequence[str] = (),
    digest: str | None = None,
    restart_on: Sequence[OperationMeta] = (),
    enabled: bool = True,
    timeout: float = 300,
) -> Commands:
    """Make `unit` run on what its files say now: started if it is down, restarted only if it runs on old input.

    + inputs: files the unit's process reads once, at its start
    + digest: what must stand as `RIGUP_DIGEST` in the environment of the unit's main process
    + restart_on: further operations whose change calls for a restart
    + enabled: whether it starts at boot
    + timeout: seconds until it must be active; a unit that is already starting is waited for, not started again

    Fails with the unit's last lines where it does not become active.
    """
    state: UnitStateValue = host.get_fact(UnitState, unit=unit, inputs=inputs)
    running = host.get_fact(ProcessDigest, pid=state.main_pid) if digest and state.main_pid else None
    reasons = stale_reasons(state, digest, running, restart_on)
    wants_enabling = enabled and state.enabled not in ("enabled", "static", "generated", "alias")
    if state.active == "active" and not reasons and not wants_enabling:
        host.noop(f"{unit} runs what its files say")
        return

    def bring_up(host: Host) -> None:
        name = QuoteString(unit)
        check(host, "systemctl daemon-reload", failing=f"systemd on {host.name} could not read its units again")
        if wants_enabling:
            check(host, "systemctl enable --quiet --", name, failing=f"could not enable {unit} on {host.name}")
        if reasons:
            say(host, f"{unit} is restarted: {'; '.join(reasons)}")
            start(host, unit, timeout, verb="restart")
        elif state.active != "active":
            start(host, unit, timeout, verb="attach" if state.runs else "start")

    yield work(bring_up, f"converge {unit}")


def start(host: Host, unit: str, timeout: float, verb: str = "start") -> None:
    """Start or restart `unit`, or `attach` to a start that is under way, and wait until it is active.

    Raises OperationError as soon as its start fails, or after `timeout` seconds.
    """
    name = QuoteString(unit)
    if verb != "attach":
        # A unit that has used up its start limit is refused until its count is cleared.
        check(
            host,
            "systemctl reset-failed --",
            name,
            f"2>/dev/null; systemctl {verb} --no-block --",
            name,
            failing=f"systemd on {host.name} did not take the order to {verb} {unit}",
        )
    clock = Clock(timeout)
    state = show_patiently(host, unit, clock)
    while state.job or (state.active in ("activating", "deactivating") and not state.is_waiting_to_retry):
        if clock.is_up:
            raise failure(host, unit, state, f"{unit} was not up after {clock}")
        if clock.is_due():
            latest = last_lines(host, unit, state.invocation, 1)
            say(host, f"{unit} is starting: {clock}" + (f"; {shorten(latest[-1])}" if latest else ""))
        clock.nap()
        state = show_patiently(host, unit, clock)
    if state.active != "active":
        raise failure(host, unit, state, f"{unit} did not come up")
    if clock.elapsed_s >= SAY_EVERY_S:
        say(host, f"{unit} is up after {duration(clock.elapsed_s)}")
