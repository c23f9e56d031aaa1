"""Endpoints brought to the generation that their plan names, by `switch.py` on the host, which also goes back.

The switch is a unit of its own: once begun it comes to its end, whatever becomes of the deploy or its connection.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from pyinfra.api.command import FunctionCommand, QuoteString, StringCommand
from pyinfra.api.exceptions import OperationError
from pyinfra.api.host import Host
from pyinfra.api.operation import OperationMeta, operation
from pyinfra.context import host

from rigup.diagnosis.explain import explain
from rigup.facts.endpoints import JUDGED, Endpoints, EndpointsValue, parse_endpoints
from rigup.facts.files import FileInfo, FileState, parse_file_info
from rigup.facts.serving import ModelStamp
from rigup.facts.units import ProcessCommand, UnitState, UnitStateValue
from rigup.operations import _notes
from rigup.operations._host import check, run, say, work
from rigup.operations._ledger import note, note_directory, note_file
from rigup.operations._turns import TURNS
from rigup.operations._units import (
    DIAGNOSED_LINES,
    SHOWN_LINES,
    UnitFailed,
    last_lines,
    run_as_unit,
    show,
    wait_for_leftover,
)
from rigup.operations.model import is_done
from rigup.operations.systemd import ENABLED, stale_reasons
from rigup.plan.model import ENDPOINTS, UNITS, EndpointPlan
from rigup.render.docker import cache_volumes
from rigup.render.systemd import inputs_of, served_argv, start_seconds, unit_text
from rigup.render.verify import VERIFY_SECONDS, check_args_argv

__all__ = ["judged", "serve", "tidy"]

Commands = Generator[FunctionCommand, None, None]

SWITCH = "/usr/local/lib/rigup/switch.py"
SWITCH_UNIT = "rigup-switch.service"


@dataclass(frozen=True)
class Todo:
    """What a switch must do to one endpoint; `restart` tells that its process is another one than planned, and why."""

    endpoint: EndpointPlan
    restart: tuple[str, ...]


def todo_of(
    endpoint: EndpointPlan, state: UnitStateValue, running: Sequence[str], unit: FileState | None
) -> Todo | None:
    """What is to be done to an endpoint, from its unit, its process and the unit file in force."""
    restart = stale_reasons(state, served_argv(endpoint), running)
    settled = unit is not None and unit.sha256 == hashlib.sha256(unit_text(endpoint).encode()).hexdigest()
    settled = settled and state.fragment == endpoint.unit_file and not state.needs_reload and state.enabled in ENABLED
    return None if settled and state.active == "active" and not restart else Todo(endpoint, tuple(restart))


@operation()
def judged(endpoint: EndpointPlan) -> Commands:
    """Have the engine's own parser judge the endpoint's arguments, before another generation is stopped for it.

    It runs in a throwaway container of the image, or in the engine's virtual environment. What the engine refuses fails
    the operation, with the engine's words; where its parser cannot be found, nothing is known and nothing fails. A host
    that serves nothing yet and has the checkpoint needs no judge: the engine says the same at once.
    """
    found: EndpointsValue = host.get_fact(Endpoints)
    key = (endpoint.name, endpoint.generation)
    # Of another name too: an endpoint that is renamed or split is stopped for those that take its place.
    serves = found.in_force.keys() | found.active
    checkpoint = endpoint.checkpoint
    starts_at_once = not serves and is_done(host.get_fact(ModelStamp, path=checkpoint.path), checkpoint)
    if starts_at_once or found.in_force.get(endpoint.name) == endpoint.generation or key in found.judged:
        host.noop(f"the arguments of {endpoint.recipe} are judged already, or by its start")
        return

    def judge(host: Host) -> None:
        answer = run(host, *(QuoteString(word) for word in check_args_argv(endpoint)))
        if not answer.ok:
            said = "\n".join(f"    {line}" for line in answer.errors[-10:])
            raise OperationError(
                f"{host.name}: the engine of {endpoint.recipe} refuses its arguments, so it was not tried; "
                f"nothing was stopped for {endpoint.name}.\n{said}"
            )
        for line in answer.lines:
            if line.startswith("not judged: "):
                say(host, f"{endpoint.recipe}: {line}")
        mark = QuoteString(f"{JUDGED}/{endpoint.name}/{endpoint.generation}")
        check(host, "install -D -m 644 /dev/null", mark, failing="could not keep the verdict")

    yield work(judge, f"judge {endpoint.recipe}")


@operation()
def serve(
    endpoints: Sequence[EndpointPlan], reload_for: Sequence[OperationMeta] = (), max_unavailable: int = 0
) -> Commands:
    """Have the host serve these endpoints, each by the generation of its plan, and no others.

    + reload_for: operations that write the generations' files, so that a plan can foresee what follows
    + max_unavailable: where it is not 0, on how many hosts of a run what serves may be stopped at a time

    What runs as planned is left alone. All the rest is switched together: where one endpoint does not come up or fails
    its proof, all that was stopped serves again as before, and the operation fails with what was found.
    """
    found: EndpointsValue = host.get_fact(Endpoints)
    # Active without being in force: what a switch had on trial that was given up. Units of others have no generations.
    removed = sorted((found.in_force.keys() | found.active & found.names) - {endpoint.name for endpoint in endpoints})
    todo = [_todo(endpoint) for endpoint in endpoints]
    foreseen = any(not meta.is_complete() and meta.will_change for meta in reload_for)
    if not any(todo) and not removed and not foreseen:
        host.noop("every endpoint serves what its plan says")
        return

    def switch(host: Host) -> None:
        limit = sum(2 * (start_seconds(endpoint) + VERIFY_SECONDS) for endpoint in endpoints)
        wait_for_leftover(host, SWITCH_UNIT, "a switch", limit)
        now = [todo for endpoint in endpoints if (todo := _todo_now(host, endpoint))]
        if not now and not removed:
            return
        _note(host, [each.endpoint for each in now])
        argv = ["/usr/bin/python3", SWITCH]
        for each in now:
            argv += ["--to", f"{each.endpoint.name}={each.endpoint.generation}"]
            if each.restart:
                argv += ["--restart", each.endpoint.name]
                say(host, f"{each.endpoint.unit} is restarted: {each.restart[-1]}")
        for name in removed:
            argv += ["--remove", name]
        stops = bool(removed) or any(each.restart for each in now)
        with TURNS.take(host, max_unavailable) if stops and max_unavailable else nullcontext():
            try:
                # on-abnormal: not for its verdicts, but where it was killed half way.
                run_as_unit(host, SWITCH_UNIT, argv, what="the switch", limit_s=limit, tell=True, restart="on-abnormal")
            except UnitFailed as error:
                raise OperationError(_told(host, endpoints, _result(host)) or str(error)) from error
        _result(host)

    yield work(switch, "switch")


@operation()
def tidy(endpoints: Sequence[EndpointPlan]) -> Commands:
    """Remove the files of generations and endpoints that no plan names."""
    found: EndpointsValue = host.get_fact(Endpoints)
    kept = {endpoint.name: endpoint.generation for endpoint in endpoints}
    unused = sorted(
        {f"{ENDPOINTS}/{name}/{generation}" for name, generation in found.ports if kept.get(name) != generation}
        | {f"{ENDPOINTS}/{name}" for name in found.names - kept.keys()}
    )
    if not unused:
        host.noop("there are no files of earlier generations")
        return

    def remove(host: Host) -> None:
        check(host, "rm -rf --", *(QuoteString(path) for path in unused), failing="could not remove old files")

    yield work(remove, "tidy")


def _todo(endpoint: EndpointPlan) -> Todo | None:
    """From facts, on the current host."""
    state: UnitStateValue = host.get_fact(UnitState, unit=endpoint.unit, inputs=inputs_of(endpoint))
    running: list[str] = host.get_fact(ProcessCommand, pid=state.main_pid) if state.main_pid else []
    return todo_of(endpoint, state, running, host.get_fact(FileInfo, path=endpoint.unit_file))


def _todo_now(host: Host, endpoint: EndpointPlan) -> Todo | None:
    """The same readings, taken now: an earlier deploy's switch may have ended since."""
    state = show(host, endpoint.unit, inputs_of(endpoint))
    running = list(run(host, ProcessCommand().command(state.main_pid)).lines) if state.main_pid else []
    unit = parse_file_info(list(run(host, FileInfo().command(endpoint.unit_file)).lines))
    return todo_of(endpoint, state, running, unit)


def _note(host: Host, endpoints: Sequence[EndpointPlan]) -> None:
    """Write down the unit files that the switch will put into force, and the volumes that Docker makes for them."""
    for directory in (UNITS.rpartition("/")[0], UNITS):
        known = StringCommand("test -d", QuoteString(directory), "||", note_directory(directory))
        check(host, known, failing=f"could not write the ledger of {host.name}")
    for endpoint in endpoints:
        written = note_file(endpoint.unit_file, hashlib.sha256(unit_text(endpoint).encode()).hexdigest())
        check(host, written, failing=f"could not write the ledger of {host.name}")
        if volumes := cache_volumes(endpoint):
            failing = f"could not write the ledger of {host.name}"
            check(host, note("volumes", list(volumes.values())), failing=failing)


def _result(host: Host) -> EndpointsValue:
    """What the host's endpoints are after a switch; for how long nothing answered becomes a part of the report."""
    found = parse_endpoints(list(run(host, Endpoints().command()).lines))
    if found.last.get("downtime_s") is not None:
        _notes.note(host.name, downtime_s=found.last["downtime_s"])
    return found


def _told(host: Host, endpoints: Sequence[EndpointPlan], found: EndpointsValue) -> str | None:
    """What the failed switch has written down, for a person; None where it has written nothing."""
    last: dict[str, Any] = dict(found.last)
    if last.get("to") is None or last.get("why") is None:
        return None
    name = last["endpoint"]
    recipe = last["recipes"].get(name, "?")
    silent = f" Nothing answered for {last['downtime_s']:.0f} s." if last.get("downtime_s") is not None else ""
    outcome = {
        "went back": f"What served before serves again, and is proven.{silent}",
        "lost": f"What served before does not serve either: {last.get('worse')}",
        "failed": "It still runs, for better than nothing." if last.get("proof") else "Nothing served there before.",
    }.get(last["result"], "")
    unit = next((endpoint.unit for endpoint in endpoints if endpoint.name == name), f"llm@{name}.service")
    log = last_lines(host, unit, last["invocation"], DIAGNOSED_LINES) if last["invocation"] else []
    lines = "\n".join(f"    {line}" for line in log[-SHOWN_LINES:]) or "    (it wrote nothing)"
    again = (
        "It is not tried again by itself: change the recipe, or run once with `--data retry=true`."
        if (name, last["to"].get(name)) in found.failed
        else "Run again once that is put right."
    )
    return (
        f"{host.name}: {recipe} as {name} {last['why']}\n{outcome}\nIts last lines:\n{lines}\n"
        + "".join(f"{line}\n" for line in explain([*log, last["why"]]))
        + f"More: journalctl -u {unit}\n{again}"
    )
