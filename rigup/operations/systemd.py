"""Bring units to their desired state with at most one start or restart.

Whether a running unit must be restarted depends on its state, not on what this deploy has changed: if a deploy is
killed between writing a file and the restart, the next one finishes it. A unit runs with old input if

- one of its input files was written after its main process started, or
- its main process has another command line than the expected one. If none is given, a unit file that systemd has
  not reloaded (`NeedDaemonReload`) counts instead; with one, changes of the unit's other lines restart nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

from pyinfra.api.command import QuoteString
from pyinfra.api.exceptions import OperationError
from pyinfra.api.host import Host
from pyinfra.api.operation import OperationMeta, operation
from pyinfra.context import host

from rigup.facts.files import FileInfo
from rigup.facts.units import ActiveUnits, ProcessCommand, UnitState, UnitStateValue
from rigup.operations._host import Commands, ConnectionLost, check, read_now, run, work
from rigup.operations._ledger import note_file, record
from rigup.operations._rolling import ROLLING
from rigup.operations._units import failure, latest, wait_while
from rigup.operations._wait import REPORT_EVERY_S, Clock, say
from rigup.text import duration

SERVING = "llm@*.service"

# A generated or static unit cannot be enabled; the unit that requires it starts it.
ENABLED = ("enabled", "static", "generated", "alias", "indirect")


def changed(meta: OperationMeta) -> bool:
    """Return whether an operation has changed something; or, while the deploy is being prepared, whether it will."""
    return meta.did_change() if meta.is_complete() else meta.will_change


def stale_reasons(state: UnitStateValue, command: Sequence[str] | None, running: Sequence[str]) -> list[str]:
    """Return why the unit runs with old input (see above); empty for a unit that does not run."""
    if not state.runs:
        return []
    reasons = [f"{path} was written after it started" for path in state.newer_inputs]
    if command is None and state.needs_reload:
        reasons.append("its unit file has changed")
    # If the program is a script, its interpreter comes first.
    if command is not None and running and list(running[1 - len(command) :]) != list(command[1:]):
        reasons.append("it was started with another command line")
    return reasons


@operation()
def enabled(unit: str, reload_for: Sequence[OperationMeta] = ()) -> Commands:
    """Enable `unit` and reload its file, without starting it.

    + reload_for: operations that write the unit's files, so that a dry run can predict the reload
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
    """Stop and disable `unit`, and remove its `files`."""
    present = [path for path in files if host.get_fact(FileInfo, path=path)]
    if not present:
        host.noop(f"{unit} does not exist")
        return

    def remove(host: Host) -> None:
        run(host, "systemctl disable --quiet --now --", QuoteString(unit))
        for path in present:
            record(host, note_file(path, ""))
        failing = f"could not remove {unit} from {host.name}"
        check(host, "rm -f --", *map(QuoteString, present), "&& systemctl daemon-reload", failing=failing)

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
    """Make `unit` run with its present files: start it if it is down, restart it only if it runs with old input.

    + inputs: files that the unit's process reads once, at its start
    + command: the command line of its main process
    + reload_for: operations that write these files or the unit's, so that a dry run can predict the change
    + enabled: whether it starts at boot
    + timeout: seconds until it must be active; a unit that is already starting is waited for, not started again
    + max_unavailable: if not 0, on how many hosts of a run at a time the unit may be restarted

    Fails with the unit's last lines if it does not become active.
    """
    state: UnitStateValue = host.get_fact(UnitState, unit=unit, inputs=inputs)
    running: list[str] = []
    if command is not None and state.main_pid:
        running = host.get_fact(ProcessCommand, pid=state.main_pid)
    reasons = stale_reasons(state, command, running)
    enable = enabled and state.enabled not in ENABLED
    foreseen = any(not meta.is_complete() and meta.will_change for meta in reload_for)
    if state.active == "active" and not reasons and not enable and not state.needs_reload and not foreseen:
        host.noop(f"{unit} runs with its present files")
        return

    def bring_up(host: Host) -> None:
        name = QuoteString(unit)
        check(host, "systemctl daemon-reload", failing=f"systemd on {host.name} could not reload its units")
        if enable:
            check(host, "systemctl enable --quiet --", name, failing=f"could not enable {unit} on {host.name}")
        if reasons:
            with ROLLING.slot(host, max_unavailable) if max_unavailable else nullcontext():
                say(host, f"restarting {unit}: {'; '.join(reasons)}")
                start(host, unit, timeout, verb="restart")
        elif state.active != "active":
            start(host, unit, timeout, verb="attach" if state.runs else "start")

    yield work(bring_up, f"converge {unit}")


@contextmanager
def serving_again(host: Host, max_unavailable: int, timeout: float) -> Iterator[None]:
    """Take a slot of the rolling update for a change that interrupts serving, and start again what served before.

    An endpoint that does not start is reported and left to the later steps, which may repair it; the rolling update
    stops then, and the other hosts keep serving.
    """
    serving = read_now(host, ActiveUnits, SERVING)
    if not serving:
        yield
        return
    with ROLLING.slot(host, max_unavailable):
        yield
        for unit in serving:
            try:
                start(host, unit, timeout)
            except ConnectionLost:
                raise
            except OperationError as error:
                ROLLING.failed = host.name
                say(host, f"{str(error).splitlines()[0]} Later steps may repair it.")


@operation()
def stopped(unit: str) -> Commands:
    """Stop and disable `unit`, if it exists."""
    state: UnitStateValue = host.get_fact(UnitState, unit=unit)
    if not state.runs and state.enabled not in ENABLED:
        host.noop(f"{unit} is stopped")
        return

    def stop(host: Host) -> None:
        failing = f"could not stop {unit} on {host.name}"
        check(host, "systemctl disable --quiet --now --", QuoteString(unit), failing=failing)

    yield work(stop, f"stop {unit}")


def start(host: Host, unit: str, timeout: float, verb: str = "start") -> None:
    """Start or restart `unit`, or `attach` to a start in progress, and wait until it is active.

    Raises OperationError as soon as its start fails, or after `timeout` seconds.
    """
    name = QuoteString(unit)
    if verb != "attach":
        # A unit that has reached its start limit is refused until its counter is reset.
        check(
            host,
            "systemctl reset-failed --",
            name,
            f"2>/dev/null; systemctl {verb} --no-block --",
            name,
            failing=f"could not {verb} {unit} on {host.name}",
        )
    clock = Clock(timeout)
    state = wait_while(
        host,
        unit,
        lambda state: state.job or (state.active in ("activating", "deactivating") and not state.is_waiting_to_retry),
        clock,
        progress=lambda state: f"{unit} is starting: {clock}{latest(host, unit, state)}",
        timed_out=f"the start of {unit} timed out after {duration(timeout)}",
    )
    if state.active != "active":
        raise failure(host, unit, state, f"{unit} failed to start")
    if clock.elapsed_s >= REPORT_EVERY_S:
        say(host, f"{unit} is up after {duration(clock.elapsed_s)}")
