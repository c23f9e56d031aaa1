"""Units brought to where they shall be with one start, never a start and then a restart.

Whether a running unit must be restarted is read from its state, not from what this deploy has changed: a deploy that
was killed between writing a file and the restart is finished by the next one. A unit runs on old input when

- one of its input files was written after its main process began, or
- its main process has another command line than the one wanted. Where none is given, a unit file that systemd has not
  read again (`NeedDaemonReload`) counts instead; with one, a change of the unit's other lines restarts nothing.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext

from pyinfra.api.command import FunctionCommand, QuoteString
from pyinfra.api.exceptions import OperationError
from pyinfra.api.host import Host
from pyinfra.api.operation import OperationMeta, operation
from pyinfra.context import host

from rigup.facts.files import FileInfo
from rigup.facts.units import ActiveUnits, ProcessCommand, UnitState, UnitStateValue, parse_active_units
from rigup.operations._host import SAY_EVERY_S, Clock, ConnectionLost, check, duration, run, say, work
from rigup.operations._ledger import note_file
from rigup.operations._turns import TURNS
from rigup.operations._units import failure, last_lines, shorten, show_patiently

__all__ = ["SERVING", "absent", "changed", "converge", "enabled", "serving_again", "stale_reasons", "start", "stopped"]

Commands = Generator[FunctionCommand, None, None]

SERVING = "llm@*.service"

# A generated or static unit cannot be enabled; whatever pulls it in does that.
ENABLED = ("enabled", "static", "generated", "alias", "indirect")


def changed(meta: OperationMeta) -> bool:
    """Whether an operation has changed something; while the deploy is being prepared, whether it will."""
    return meta.did_change() if meta.is_complete() else meta.will_change


def stale_reasons(state: UnitStateValue, command: Sequence[str] | None, running: Sequence[str]) -> list[str]:
    """Why what runs is not what the files say; empty for a unit that does not run. See the module's text."""
    if not state.runs:
        return []
    reasons = [f"{path} was written after it started" for path in state.newer_inputs]
    if command is None and state.needs_reload:
        reasons.append("its unit file has changed")
    # The program itself may be a script, whose interpreter then comes first.
    if command is not None and running and list(running[1 - len(command) :]) != list(command[1:]):
        reasons.append("it was started with another command line")
    return reasons


@operation()
def enabled(unit: str, reload_for: Sequence[OperationMeta] = ()) -> Commands:
    """Have `unit` start at boot, and systemd know its present file; starts nothing.

    + reload_for: operations that write the unit's files, so that a plan can foresee the reload
    """
    state: UnitStateValue = host.get_fact(UnitState, unit=unit)
    if state.enabled in ENABLED and not state.needs_reload and not any(changed(meta) for meta in reload_for):
        host.noop(f"{unit} starts at boot")
        return

    def enable(host: Host) -> None:
        check(
            host,
            "systemctl daemon-reload && systemctl enable --quiet --",
            QuoteString(unit),
            failing=f"could not enable {unit} on {host.name}",
        )

    yield work(enable, f"enable {unit}")


@operation()
def absent(unit: str, files: Sequence[str]) -> Commands:
    """Have no `unit`: neither running, nor at boot, nor its `files`."""
    there = [path for path in files if host.get_fact(FileInfo, path=path)]
    if not there:
        host.noop(f"there is no {unit}")
        return

    def remove(host: Host) -> None:
        run(host, "systemctl disable --quiet --now --", QuoteString(unit))
        paths = [QuoteString(path) for path in there]
        failing = f"could not remove {unit} from {host.name}"
        for path in there:
            check(host, note_file(path, ""), failing=failing)
        check(host, "rm -f --", *paths, "&& systemctl daemon-reload", failing=failing)

    yield work(remove, f"remove {unit}")


@operation()
def converge(
    unit: str,
    inputs: Sequence[str] = (),
    command: Sequence[str] | None = None,
    reload_for: Sequence[OperationMeta] = (),
    enabled: bool = True,
    timeout: float = 300,
    max_unavailable: int = 0,
) -> Commands:
    """Make `unit` run on what its files say now: started if it is down, restarted only if it runs on old input.

    + inputs: files the unit's process reads once, at its start
    + command: the command line its main process must have been started with
    + reload_for: operations that write those files or the unit's, so that a plan can foresee what follows
    + enabled: whether it must start at boot
    + timeout: seconds until it must be active; a unit that is already starting is waited for, not started again
    + max_unavailable: where it is not 0, on how many hosts of a run the unit may be restarted at a time

    Fails with the unit's last lines where it does not become active.
    """
    state: UnitStateValue = host.get_fact(UnitState, unit=unit, inputs=inputs)
    running: list[str] = []
    if command is not None and state.main_pid:
        running = host.get_fact(ProcessCommand, pid=state.main_pid)
    reasons = stale_reasons(state, command, running)
    enable = enabled and state.enabled not in ENABLED
    foreseen = any(not meta.is_complete() and meta.will_change for meta in reload_for)
    if state.active == "active" and not reasons and not enable and not state.needs_reload and not foreseen:
        host.noop(f"{unit} runs what its files say")
        return

    def bring_up(host: Host) -> None:
        name = QuoteString(unit)
        check(host, "systemctl daemon-reload", failing=f"systemd on {host.name} could not read its units again")
        if enable:
            check(host, "systemctl enable --quiet --", name, failing=f"could not enable {unit} on {host.name}")
        if reasons:
            with TURNS.take(host, max_unavailable) if max_unavailable else nullcontext():
                say(host, f"{unit} is restarted: {'; '.join(reasons)}")
                start(host, unit, timeout, verb="restart")
        elif state.active != "active":
            start(host, unit, timeout, verb="attach" if state.runs else "start")

    yield work(bring_up, f"converge {unit}")


@contextmanager
def serving_again(host: Host, max_unavailable: int, timeout: float) -> Iterator[None]:
    """Around what interrupts serving without changing it: takes a turn, and has what served before serve again.

    What does not come up is said and left to the deploy's later steps, which may repair just that; other hosts wait no
    longer for their turn then, and serve on.
    """
    answer = run(host, ActiveUnits().command(SERVING))
    serving = parse_active_units(list(answer.lines))
    if not serving:
        yield
        return
    with TURNS.take(host, max_unavailable):
        yield
        for unit in serving:
            try:
                start(host, unit, timeout)
            except ConnectionLost:
                raise
            except OperationError as error:
                TURNS.failed = host.name
                say(host, f"{str(error).splitlines()[0]} Later steps may put that right.")


@operation()
def stopped(unit: str) -> Commands:
    """Have `unit` neither run nor start at boot; one that is not there is fine."""
    state: UnitStateValue = host.get_fact(UnitState, unit=unit)
    if not state.runs and state.enabled not in ENABLED:
        host.noop(f"{unit} does not run")
        return

    def stop(host: Host) -> None:
        failing = f"could not stop {unit} on {host.name}"
        check(host, "systemctl disable --quiet --now --", QuoteString(unit), failing=failing)

    yield work(stop, f"stop {unit}")


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
            raise failure(host, unit, state, f"{unit} was not up within {duration(timeout)}")
        if clock.is_due():
            latest = last_lines(host, unit, state.invocation, 1)
            say(host, f"{unit} is starting: {clock}" + (f"; {shorten(latest[-1])}" if latest else ""))
        clock.nap()
        state = show_patiently(host, unit, clock)
    if state.active != "active":
        raise failure(host, unit, state, f"{unit} did not come up")
    if clock.elapsed_s >= SAY_EVERY_S:
        say(host, f"{unit} is up after {duration(clock.elapsed_s)}")
