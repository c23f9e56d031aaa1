"""Endpoints switched to the generation of their plan by `rigup-host switch`, which also rolls back.

The switch is a unit of its own: once started it finishes, even if the deploy is killed or its connection breaks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.exceptions import OperationError
from pyinfra.api.host import Host
from pyinfra.api.operation import OperationMeta, operation
from pyinfra.context import host

from rigup.facts.endpoints import Endpoints, EndpointsValue
from rigup.facts.files import FileInfo, FileState
from rigup.facts.serving import ModelStamp
from rigup.facts.units import ProcessCommand, UnitState, UnitStateValue
from rigup.operations import _notes
from rigup.operations._host import Commands, check, read_now, run, work
from rigup.operations._ledger import note, note_directory, note_file, record
from rigup.operations._rolling import ROLLING
from rigup.operations._units import UnitFailed, excerpt, run_as_unit, show, wait_for_leftover
from rigup.operations._wait import say
from rigup.operations.model import is_done
from rigup.operations.systemd import ENABLED, stale_reasons
from rigup.paths import CHECKED_ARGUMENTS, ENDPOINTS, HOST_PROGRAM, SWITCH_UNIT, UNITS, endpoint_unit
from rigup.plan.model import EndpointPlan
from rigup.render.docker import cache_volumes
from rigup.render.systemd import inputs_of, served_argv, start_seconds, unit_text
from rigup.render.verify import VERIFY_SECONDS, check_args_argv


@dataclass(frozen=True)
class Todo:
    """What a switch must do to one endpoint; `restart` are the reasons to restart its process, if it must."""

    endpoint: EndpointPlan
    restart: tuple[str, ...]


def todo_of(
    endpoint: EndpointPlan, state: UnitStateValue, running: Sequence[str], unit: FileState | None
) -> Todo | None:
    """Return what must be done to an endpoint, from its unit, its process and its installed unit file."""
    restart = stale_reasons(state, served_argv(endpoint), running)
    settled = unit is not None and unit.sha256 == hashlib.sha256(unit_text(endpoint).encode()).hexdigest()
    settled = settled and state.fragment == endpoint.unit_file and not state.needs_reload and state.enabled in ENABLED
    return None if settled and state.active == "active" and not restart else Todo(endpoint, tuple(restart))


@operation()
def arguments_checked(endpoint: EndpointPlan) -> Commands:
    """Check the endpoint's arguments with the engine's own parser, before another generation is stopped for it.

    The parser runs in a throwaway container of the image, or in the engine's virtual environment. Arguments that it
    refuses fail the operation, with the engine's message; if the parser cannot be found, nothing fails. A host that
    serves nothing yet and has the checkpoints needs no check: its engine reports errors at its start.
    """
    found: EndpointsValue = host.get_fact(Endpoints)
    key = (endpoint.name, endpoint.generation)
    # Under another name too: an endpoint that is renamed or split is stopped for those that replace it.
    serves = found.in_force.keys() | found.active
    starts_at_once = not serves and all(
        is_done(host.get_fact(ModelStamp, path=each.path), each) for each in endpoint.checkpoints
    )
    if starts_at_once or found.in_force.get(endpoint.name) == endpoint.generation or key in found.checked:
        host.noop(f"the arguments of {endpoint.recipe} are checked, or will be by its start")
        return

    def check_arguments(host: Host) -> None:
        result = run(host, *map(QuoteString, check_args_argv(endpoint)))
        if not result.ok:
            message = "\n".join(f"    {line}" for line in result.errors[-10:])
            raise OperationError(
                f"{host.name}: the engine of {endpoint.recipe} refuses its arguments, so it was not tried; "
                f"nothing was stopped for {endpoint.name}.\n{message}"
            )
        for line in result.lines:
            if line.startswith("not checked: "):
                say(host, f"{endpoint.recipe}: {line}")
        mark = QuoteString(f"{CHECKED_ARGUMENTS}/{endpoint.name}/{endpoint.generation}")
        check(host, "install -D -m 644 /dev/null", mark, failing="could not record the result of the check")

    yield work(check_arguments, f"check the arguments of {endpoint.recipe}")


@operation()
def serve(
    endpoints: Sequence[EndpointPlan],
    reload_for: Sequence[OperationMeta] = (),
    max_unavailable: int = 0,
    drain_s: float = 0,
) -> Commands:
    """Serve these endpoints, each with the generation of its plan, and no others.

    + reload_for: operations that write the generations' files, so that a dry run can predict the change
    + max_unavailable: if not 0, on how many hosts of a run at a time endpoints may be stopped
    + drain_s: seconds that a switch may wait for the requests of load balancers

    Endpoints that run as planned are left alone. All others are switched together: if one does not start or fails its
    verification, all that were stopped are rolled back, and the operation fails with the cause.
    """
    found: EndpointsValue = host.get_fact(Endpoints)
    # Also those that are active but not installed: left on trial by an abandoned switch. Units of others have no
    # generations.
    removed = sorted((found.in_force.keys() | found.active & found.names) - {endpoint.name for endpoint in endpoints})
    todo = [_todo(endpoint) for endpoint in endpoints]
    foreseen = any(not meta.is_complete() and meta.will_change for meta in reload_for)
    if not any(todo) and not removed and not foreseen:
        host.noop("every endpoint serves its plan")
        return

    def switch(host: Host) -> None:
        limit = drain_s + sum(2 * (start_seconds(endpoint) + VERIFY_SECONDS) for endpoint in endpoints)
        wait_for_leftover(host, SWITCH_UNIT, "a switch", limit)
        now = [todo for endpoint in endpoints if (todo := _todo_now(host, endpoint))]
        if not now and not removed:
            return
        _record(host, [each.endpoint for each in now])
        argv = [HOST_PROGRAM, "switch"]
        for each in now:
            argv += ["--to", f"{each.endpoint.name}={each.endpoint.generation}"]
            if each.restart:
                argv += ["--restart", each.endpoint.name]
                say(host, f"restarting {each.endpoint.unit}: {each.restart[-1]}")
        for name in removed:
            argv += ["--remove", name]
        stops = bool(removed) or any(each.restart for each in now)
        with ROLLING.slot(host, max_unavailable) if stops and max_unavailable else nullcontext():
            try:
                # on-abnormal: restarted when it was killed halfway, but not when it failed.
                what, restart = "the switch", "on-abnormal"
                run_as_unit(host, SWITCH_UNIT, argv, what=what, limit_s=limit, follow=True, restart=restart)
            except UnitFailed as error:
                raise OperationError(_explanation(host, _state_after(host)) or str(error)) from error
        _state_after(host)

    yield work(switch, "switch")


@operation()
def tidy(endpoints: Sequence[EndpointPlan]) -> Commands:
    """Remove the files of generations and endpoints that are not in the plan."""
    found: EndpointsValue = host.get_fact(Endpoints)
    kept = {endpoint.name: endpoint.generation for endpoint in endpoints}
    unused = sorted(
        {f"{ENDPOINTS}/{name}/{generation}" for name, generation in found.ports if kept.get(name) != generation}
        | {f"{ENDPOINTS}/{name}" for name in found.names - kept.keys()}
    )
    if not unused:
        host.noop("no files of earlier generations exist")
        return

    def remove(host: Host) -> None:
        failing = f"could not remove old files on {host.name}"
        check(host, "rm -rf --", *map(QuoteString, unused), failing=failing)

    yield work(remove, "remove old generations")


def _todo(endpoint: EndpointPlan) -> Todo | None:
    """Return what must be done, from the facts of the current host."""
    state: UnitStateValue = host.get_fact(UnitState, unit=endpoint.unit, inputs=inputs_of(endpoint))
    running: list[str] = host.get_fact(ProcessCommand, pid=state.main_pid) if state.main_pid else []
    return todo_of(endpoint, state, running, host.get_fact(FileInfo, path=endpoint.unit_file))


def _todo_now(host: Host, endpoint: EndpointPlan) -> Todo | None:
    """Return the same, read again: the switch of an earlier deploy may have ended since."""
    state = show(host, endpoint.unit, inputs_of(endpoint))
    running = read_now(host, ProcessCommand, state.main_pid) if state.main_pid else []
    return todo_of(endpoint, state, running, read_now(host, FileInfo, endpoint.unit_file))


def _record(host: Host, endpoints: Sequence[EndpointPlan]) -> None:
    """Record the unit files that the switch will install, and the volumes that Docker creates for them."""
    record(host, StringCommand("test -d", QuoteString(UNITS), "||", note_directory(UNITS)))
    for endpoint in endpoints:
        record(host, note_file(endpoint.unit_file, hashlib.sha256(unit_text(endpoint).encode()).hexdigest()))
        if volumes := cache_volumes(endpoint):
            record(host, note("volumes", list(volumes.values())))


def _state_after(host: Host) -> EndpointsValue:
    """Return the state of the endpoints after a switch, and note for the report how long nothing answered."""
    found = read_now(host, Endpoints)
    if found.last.get("downtime_s") is not None:
        _notes.note(host.name, downtime_s=found.last["downtime_s"])
    return found


def _explanation(host: Host, found: EndpointsValue) -> str | None:
    """Return what the failed switch has recorded, as a message; None if it has recorded nothing."""
    last: dict[str, Any] = dict(found.last)
    if last.get("to") is None or last.get("why") is None:
        return None
    name = last["endpoint"]
    recipe = last["recipes"].get(name, "?")
    downtime = f" Nothing answered for {last['downtime_s']:.0f} s." if last.get("downtime_s") is not None else ""
    outcome = {
        "rolled back": f"It was rolled back: the previous generation serves again and is verified.{downtime}",
        "lost": f"The rollback failed too: {last.get('worse')}",
        "failed": "It keeps running, because nothing served before."
        if last.get("came_up")
        else "Nothing served before.",
    }.get(last["result"], "")
    unit = endpoint_unit(name)
    # Without an invocation the unit was never started.
    lines = excerpt(host, unit, last["invocation"], [last["why"]]) if last["invocation"] else ["    (no output)"]
    again = (
        "It is not tried again automatically: change the recipe, or run once with `--data retry=true`."
        if (name, last["to"].get(name)) in found.failed
        else "Fix the cause and run again."
    )
    message = [f"{host.name}: {recipe} as {name} {last['why']}", outcome, "Its last lines:", *lines]
    return "\n".join([*message, f"More: journalctl -u {unit}", again])
