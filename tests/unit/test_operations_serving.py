"""serving.*: what a switch is asked for, what a host's answers mean, and what a person is told."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from rigup.facts.endpoints import Tried, parse_endpoints
from rigup.operations import _notes, serving
from rigup.operations._rolling import RollingUpdate
from rigup.plan.model import EndpointPlan
from rigup.render.docker import docker_argv
from rigup.render.systemd import unit_text
from rigup.text import duration
from tests.unit.deploys import Actor, Outcome, Said
from tests.unit.sample import plan
from tests.unit.test_operations_model import ABSENT, COMPLETE
from tests.unit.test_operations_units import DOWN, NO_UNIT, shown

ENDPOINT = plan().endpoint("main")
NEW = ENDPOINT.generation
OLD = "0123456789ab"
SWITCHING = "/usr/local/lib/rigup/host/current/rigup-host switch"


def record(name: str, generation: str, port: int) -> str:
    about = {"recipe": "vllm-nvfp4-cu130", "gpus": "all", "address": "127.0.0.1", "ready_path": "/health"}
    return json.dumps({"name": name, "generation": generation, "port": port, **about})


def here(*generations: str, in_force: str = "", on_trial: str = "", checked: str = "", **switches: Any) -> list[str]:
    """What a host prints about its endpoint main."""
    records = [record("main", each, 8000) for each in generations]
    marks = [f"/run/rigup/checked-arguments/main/{checked}"] if checked else []
    places = {"/usr/local/lib/systemd/system": in_force, "/run/systemd/system": on_trial}
    units = [f"{place}/llm@main.service:Generation={generation}" for place, generation in places.items() if generation]
    active = ["llm@main.service loaded active running rigup endpoint main"] if in_force else []
    known = json.dumps(switches, indent=2).splitlines()
    parts = ["--- checked", *marks, "--- units", *units, "--- active", *active, "--- switches", *known]
    return [*records, *parts]


def unit_file(endpoint: EndpointPlan) -> list[str]:
    digest = hashlib.sha256(unit_text(endpoint).encode()).hexdigest()
    return ["regular file|644|root|root", f"{digest}  {endpoint.unit_file}"]


UP = shown(FragmentPath=ENDPOINT.unit_file)
TRIAL = shown(FragmentPath="/run/systemd/system/llm@main.service")
SERVED = here(NEW, in_force=NEW)


def serve(
    found: list[str],
    *states: list[str],
    command: list[str] | None = None,
    file: list[str] | None = None,
    max_unavailable: int = 0,
) -> Outcome:
    actor = Actor().answers("echo '--- checked'", found)
    actor.answers("rigup-switch.service", NO_UNIT, shown("active", "exited"))
    actor.answers("systemctl show", *states)
    actor.answers("/proc/812/cmdline", command or docker_argv(ENDPOINT))
    actor.answers("stat -c '%F", unit_file(ENDPOINT) if file is None else file)
    return actor.does(serving.serve, endpoints=[ENDPOINT], max_unavailable=max_unavailable)


def asked(outcome: Outcome) -> str:
    """The arguments of the switch that was begun."""
    (command,) = [command for command in outcome.commands if SWITCHING in command]
    return command.partition(f"{SWITCHING} ")[2]


def test_an_endpoint_that_serves_what_its_plan_says_is_left_alone() -> None:
    outcome = serve(SERVED, UP)

    assert (outcome.foreseen, outcome.changed) == (False, False)
    assert not outcome.ran(SWITCHING)


def test_another_generation_is_switched_to_with_a_restart() -> None:
    outcome = serve(here(OLD, NEW, in_force=OLD), UP, command=["/usr/bin/docker", "run", "other"])

    assert asked(outcome) == f"--to main={NEW} --restart main"
    assert outcome.ran("--property=Restart=on-abnormal") == 1


def test_after_a_failed_host_nothing_is_stopped_any_more_and_what_is_down_is_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rolling = RollingUpdate()
    rolling.failed = "rig2"
    monkeypatch.setattr(serving, "ROLLING", rolling)
    restarted = serve(here(OLD, NEW, in_force=OLD), UP, command=["docker", "run", "other"], max_unavailable=1)
    assert restarted.failed and not restarted.ran(SWITCHING)
    assert "rolling update stopped: rig2 failed" in restarted.told
    assert asked(serve(SERVED, DOWN, max_unavailable=1)) == f"--to main={NEW}"


def test_what_a_switch_prints_is_shown() -> None:
    actor = (
        Actor().answers("echo '--- checked'", here(OLD, NEW, in_force=OLD)).answers("journalctl", ["main: starting"])
    )
    actor.answers("rigup-switch.service", NO_UNIT, shown("active", "exited", InvocationID="abc"))
    outcome = actor.answers("systemctl show", DOWN).does(serving.serve, endpoints=[ENDPOINT])
    assert not outcome.failed and "main: starting" in outcome.told


def test_a_switch_may_start_and_verify_each_endpoint_twice() -> None:
    actor = Actor().answers("echo '--- checked'", here(OLD, NEW, in_force=OLD))
    actor.answers("rigup-switch.service", NO_UNIT, shown("activating", "start")).answers("systemctl show", DOWN)
    outcome = actor.does(serving.serve, endpoints=[ENDPOINT])
    # For the start as long as systemd waits, for the verification half an hour.
    assert f"the switch timed out after {duration(2 * (ENDPOINT.ready_timeout + 60 + 1800))}" in outcome.told


def test_a_unit_that_is_down_is_only_started() -> None:
    assert asked(serve(SERVED, DOWN)) == f"--to main={NEW}"


def test_a_unit_file_that_differs_without_another_process_restarts_nothing() -> None:
    assert asked(serve(SERVED, UP, file=["regular file|644|root|root", "0" * 64 + "  x"])) == f"--to main={NEW}"


def test_a_trial_whose_switch_was_lost_is_gone_on_with() -> None:
    assert asked(serve(here(OLD, NEW, in_force=OLD), TRIAL)) == f"--to main={NEW}"


def test_a_unit_of_others_with_a_name_like_ours_is_left_alone() -> None:
    at = SERVED.index("--- active") + 1
    found = [*SERVED[:at], "llm@webui.service loaded active running somebody's", *SERVED[at:]]
    assert not serve(found, UP).changed


def test_an_endpoint_that_no_plan_names_is_removed() -> None:
    found = here(NEW, in_force=NEW)
    found.insert(found.index("--- active"), "/usr/local/lib/systemd/system/llm@gone.service:Generation=0123456789ab")

    assert asked(serve(found, UP)) == "--remove gone"


def test_a_switch_of_an_earlier_deploy_is_waited_for_and_what_it_has_done_is_not_done_again() -> None:
    actor = Actor().answers("echo '--- checked'", here(OLD, NEW, in_force=OLD))
    actor.answers("rigup-switch.service", shown("activating", "start"), shown("active", "exited"))
    # Before: the old process. After: the new one.
    actor.answers("systemctl show", UP)
    actor.answers("/proc/812/cmdline", ["/usr/bin/docker", "run", "other"], ["/usr/bin/docker", "run", "other"])
    actor.script[-1][1].append(Said(docker_argv(ENDPOINT)))
    actor.answers("stat -c '%F", unit_file(ENDPOINT))

    outcome = actor.does(serving.serve, endpoints=[ENDPOINT])

    assert not outcome.failed
    assert not outcome.ran(SWITCHING)


LAST = {
    "result": "rolled back",
    "to": {"main": NEW},
    "recipes": {"main": "broken-one"},
    "downtime_s": 95.4,
    "endpoint": "main",
    "why": "did not come up: not ready after 3 s: its main process has ended",
    "invocation": "6a0ab0a2",
    "came_up": False,
}
FAILED = {"main": {NEW: {"recipe": "broken-one", "at": "2026-11-23T19:09:11+00:00", "why": LAST["why"]}}}


@pytest.mark.parametrize(
    ("last", "failed", "told"),
    [
        (
            {},
            FAILED,
            ["the previous generation serves again and is verified. Nothing answered for 95 s.", "retry=true"],
        ),
        (
            {"result": "lost", "worse": "main is gone"},
            {},
            ["The rollback failed too: main is gone"],
        ),
        (
            {"result": "failed", "came_up": True},
            {},
            ["It keeps running, because nothing served before.", "Fix the cause and run again"],
        ),
    ],
    ids=lambda value: value.get("result", "") if isinstance(value, dict) else "",
)
def test_a_failed_switch_tells_the_cause_the_log_and_what_serves_now(
    last: dict[str, Any], failed: dict[str, Any], told: list[str]
) -> None:
    before, after = here(OLD, NEW, in_force=OLD), here(OLD, NEW, in_force=OLD, last={**LAST, **last}, failed=failed)
    actor = Actor().answers("echo '--- checked'", before, after)
    actor.answers("rigup-switch.service", NO_UNIT, shown("failed", "failed", Result="exit-code"))
    actor.answers("systemctl show", UP)
    actor.answers("/proc/812/cmdline", ["/usr/bin/docker", "run", "other"])
    # The cause stands far above the end.
    log = ["KeyError: 'invalid tool call parser: x (chose from { y })'", *["a line"] * 1500, "the last line"]
    actor.answers("--lines 2000 _SYSTEMD_INVOCATION_ID=6a0ab0a2", log)

    outcome = actor.does(serving.serve, endpoints=[ENDPOINT])

    assert outcome.failed
    assert _notes.taken("@fake/rig1") == {"downtime_s": 95.4}
    wanted = ("broken-one as main did not come up", "the last line", "(tool-parser-unknown)", "journalctl -u llm@main")
    for part in (*wanted, *told):
        assert part in outcome.told


def test_a_switch_that_has_written_nothing_down_is_told_by_its_own_log() -> None:
    actor = Actor().answers("echo '--- checked'", here(OLD, NEW, in_force=OLD))
    actor.answers("rigup-switch.service", NO_UNIT, shown("failed", "failed", Result="exit-code"))
    actor.answers("systemctl show", UP)
    actor.answers("/proc/812/cmdline", ["/usr/bin/docker", "run", "other"])
    actor.answers("--lines 2000", ["nothing was changed: the files of a generation are incomplete"])

    outcome = actor.does(serving.serve, endpoints=[ENDPOINT])

    assert outcome.failed
    assert "nothing was changed: the files of a generation are incomplete" in outcome.told


def check(found: list[str], answer: Said | None = None, stamp: list[str] = COMPLETE) -> Outcome:
    actor = Actor().answers("echo '--- checked'", found).answers("--- sizes", stamp)
    if answer is not None:
        actor.answers("--entrypoint=python3", answer)
    return actor.does(serving.arguments_checked, endpoint=ENDPOINT)


def test_arguments_are_checked_once_and_only_where_the_engine_cannot_start_at_once() -> None:
    assert not check(here()).changed
    assert not check(SERVED).changed
    assert not check(here(OLD, NEW, in_force=OLD, checked=NEW)).changed

    assert check(here(), stamp=ABSENT).ran(f"/run/rigup/checked-arguments/main/{NEW}") == 1

    outcome = check(here(OLD, NEW, in_force=OLD))

    assert outcome.changed
    assert outcome.ran(f"/run/rigup/checked-arguments/main/{NEW}") == 1
    # By which a rebuild knows its container.
    assert outcome.ran(f"--label=rigup.plan={ENDPOINT.digest}") == 1


def test_the_arguments_of_an_endpoint_that_takes_the_place_of_another_are_checked() -> None:
    renamed = [line.replace("llm@main", "llm@before") for line in here(OLD, in_force=OLD)]

    assert check(renamed).ran("--entrypoint=python3") == 1


def test_refused_arguments_fail_before_anything_is_stopped() -> None:
    usage = [f"usage {number:02}" for number in range(11)]
    refused = Said(errors=[*usage, "error: unrecognized arguments: --x"], ok=False)

    outcome = check(here(OLD, NEW, in_force=OLD), refused)

    assert outcome.failed
    assert "unrecognized arguments: --x" in outcome.told
    # Ten lines of it.
    assert "usage 02" in outcome.told and "usage 01" not in outcome.told
    assert not outcome.ran("install -D")


def test_an_engine_whose_parser_is_not_known_is_tried_all_the_same() -> None:
    outcome = check(here(OLD, NEW, in_force=OLD), Said(["not checked: no ServerArgs in sglang.srt.server_args"]))

    assert not outcome.failed
    assert "not checked: no ServerArgs" in outcome.told


def test_files_of_other_generations_and_of_removed_endpoints_go() -> None:
    found = here(OLD, NEW, in_force=NEW)
    found.insert(0, record("gone", OLD, 8001))

    outcome = Actor().answers("echo '--- checked'", found).does(serving.tidy, endpoints=[ENDPOINT])

    (command,) = [command for command in outcome.commands if command.startswith("rm -rf")]
    gone, older = "/etc/rigup/endpoints/gone", f"/etc/rigup/endpoints/main/{OLD}"
    assert sorted(command.split()[3:]) == sorted([gone, f"{gone}/{OLD}", older])
    assert not Actor().answers("echo '--- checked'", SERVED).does(serving.tidy, endpoints=[ENDPOINT]).changed


def test_a_host_tells_its_endpoints() -> None:
    found = parse_endpoints(here(OLD, NEW, in_force=OLD, on_trial=NEW, checked=NEW, failed=FAILED, last=LAST))

    assert found.ports == {("main", OLD): 8000, ("main", NEW): 8000}
    assert (found.in_force, found.on_trial, found.active) == ({"main": OLD}, {"main": NEW}, {"main"})
    assert found.checked == {("main", NEW)}
    assert found.failed == {("main", NEW): Tried("broken-one", "2026-11-23T19:09:11+00:00", str(LAST["why"]))}
    assert (found.busy_ports, found.names) == ({8000}, {"main"})


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_damaged_record_says_nothing(text: str) -> None:
    found = parse_endpoints([text, "--- checked", "--- units", "--- active", "--- switches", text])
    assert (found.ports, found.failed, found.last, found.busy_ports) == ({}, {}, {}, set())


def test_the_volumes_that_docker_makes_for_an_endpoint_are_in_the_ledger_before_it_starts() -> None:
    endpoint = ENDPOINT.model_copy(update={"caches": ("/root/.cache",)})
    actor = Actor().answers("echo '--- checked'", here()).answers("rigup-switch.service", NO_UNIT, shown("active"))
    outcome = actor.answers("systemctl show", DOWN).does(serving.serve, endpoints=[endpoint])
    (noted,) = [number for number, command in enumerate(outcome.commands) if '"added": "volumes"' in command]
    assert '"names": ["llm-main-root-.cache"]' in outcome.commands[noted]
    assert any("--mount=type=volume,source=llm-main-root-.cache," in word for word in docker_argv(endpoint))
    assert noted < next(number for number, command in enumerate(outcome.commands) if SWITCHING in command)
