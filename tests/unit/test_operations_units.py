"""systemd.converge and docker.*: one start at most, and what a host says when it does not come up."""

from __future__ import annotations

from typing import Any

import pytest

from rigup.operations import docker, systemd
from tests.unit.deploys import Actor, Outcome, Said

UNIT = "llm@main.service"
COMMAND = ["/usr/bin/docker", "run", "--name=llm-main", "image@sha256:1", "--model", "a b"]
START = f"systemctl start --no-block -- {UNIT}"
RESTART = f"systemctl restart --no-block -- {UNIT}"


def shown(active: str = "active", sub: str = "running", **properties: str) -> list[str]:
    """What `systemctl show` prints; STARTED is the moment at which the main process began."""
    values = {
        "LoadState": "loaded",
        "ActiveState": active,
        "SubState": sub,
        "Result": "success",
        "Job": "0",
        "UnitFileState": "enabled",
        "NeedDaemonReload": "no",
        "MainPID": "812" if active in ("active", "activating") else "0",
        "InvocationID": "6a0ab0a2b1a04ea2a7d8f4d1e4a7b1c9",
        "NRestarts": "0",
        "ExecMainStartTimestamp": "Mon 2026-11-23 19:09:11.250000 UTC",
    }
    return [f"{name}={value}" for name, value in {**values, **properties}.items()]


OLDER, NEWER = "mtime=1795460951.000000 /etc/rigup/env", "mtime=1795460999.000000 /etc/rigup/env"
UP = shown()
STARTING = shown("activating", "start-post", Job="77")
DOWN = shown("inactive", "dead")


def converge(actor: Actor, **arguments: Any) -> Outcome:
    wanted = {"unit": UNIT, "inputs": ["/etc/rigup/env"], "command": COMMAND, **arguments}
    return actor.does(systemd.converge, **wanted)


def unit(*states: list[str] | Said) -> Actor:
    """A host whose unit goes through these states."""
    return Actor().answers("systemctl show", *states).answers("/proc/812/cmdline", COMMAND)


def test_a_unit_that_runs_what_its_files_say_is_left_alone() -> None:
    outcome = converge(unit([*UP, OLDER]))

    assert (outcome.foreseen, outcome.changed, outcome.failed) == (False, False, False)
    assert not outcome.ran("systemctl start") + outcome.ran("restart") + outcome.ran("daemon-reload")


def test_a_unit_that_is_down_is_started_once_and_never_restarted() -> None:
    outcome = converge(unit([*DOWN, NEWER], [*DOWN, NEWER], STARTING, STARTING, UP))

    assert (outcome.foreseen, outcome.changed, outcome.failed) == (True, True, False)
    assert (outcome.ran(START), outcome.ran(RESTART)) == (1, 0)
    # A unit that used up its start limit would refuse the start.
    assert outcome.ran(f"reset-failed -- {UNIT}") == 1
    assert outcome.ran("daemon-reload") == 1


def test_a_unit_that_runs_on_old_input_is_restarted_once() -> None:
    outcome = converge(unit([*UP, NEWER], [*UP, NEWER], STARTING, UP))

    assert (outcome.ran(START), outcome.ran(RESTART)) == (0, 1)
    assert "/etc/rigup/env was written after it started" in outcome.told


def test_a_unit_started_with_another_command_is_restarted() -> None:
    actor = Actor().answers("systemctl show", UP, UP, STARTING, UP)
    actor.answers("/proc/812/cmdline", [*COMMAND[:-1], "another"])

    outcome = converge(actor)

    assert outcome.ran(RESTART) == 1
    assert "another command line" in outcome.told


@pytest.mark.parametrize(
    ("state", "stops"),
    [(UP, 1), (shown("failed", "failed"), 1), (shown("inactive", "dead", UnitFileState="disabled"), 0), (["x=1"], 0)],
)
def test_a_unit_that_shall_not_run_is_stopped_and_one_that_does_not_is_left_alone(state: list[str], stops: int) -> None:
    outcome = unit(state).does(systemd.stopped, unit=UNIT)

    assert outcome.ran(f"systemctl disable --quiet --now -- {UNIT}") == stops
    assert outcome.changed is bool(stops)


def test_an_interpreter_before_the_command_does_not_count() -> None:
    actor = Actor().answers("systemctl show", UP).answers("/proc/812/cmdline", ["/bin/sh", *COMMAND])

    assert not converge(actor).changed


def test_a_unit_that_is_starting_is_waited_for_and_not_started_again() -> None:
    outcome = converge(unit([*STARTING, OLDER], [*STARTING, OLDER], STARTING, STARTING, UP))

    assert outcome.changed
    assert not outcome.failed
    assert outcome.ran(START) + outcome.ran(RESTART) == 0


def test_a_starting_unit_with_old_input_is_started_anew() -> None:
    assert converge(unit([*STARTING, NEWER], [*STARTING, NEWER], STARTING, UP)).ran(RESTART) == 1


def test_a_unit_in_a_crash_loop_gets_a_fresh_start() -> None:
    looping = shown("activating", "auto-restart", MainPID="0")

    outcome = converge(unit(looping, looping, STARTING, UP))

    assert (outcome.ran(START), outcome.failed) == (1, False)


def test_a_changed_unit_file_is_read_again_without_a_restart_where_the_process_is_the_wanted_one() -> None:
    outcome = converge(unit(shown(NeedDaemonReload="yes")))

    assert outcome.ran("daemon-reload") == 1
    assert outcome.ran(START) + outcome.ran(RESTART) == 0


def test_without_a_command_a_changed_unit_file_calls_for_a_restart() -> None:
    changed = shown(NeedDaemonReload="yes")

    assert converge(unit(changed, changed, STARTING, UP), command=None).ran(RESTART) == 1


def test_a_unit_that_runs_but_would_not_start_at_boot_is_enabled_only() -> None:
    outcome = converge(unit(shown(UnitFileState="disabled")))

    assert outcome.ran(f"systemctl enable --quiet -- {UNIT}") == 1
    assert outcome.ran(START) + outcome.ran(RESTART) == 0


@pytest.mark.parametrize(
    "end", [shown("failed", "failed", Result="exit-code"), shown("activating", "auto-restart", Result="exit-code")]
)
def test_a_failed_start_ends_the_wait_at_once_with_the_units_own_words(end: list[str]) -> None:
    actor = unit(DOWN, DOWN, STARTING, end)
    actor.answers("journalctl", ["loading weights", "\x1b[31mValueError: no room\x1b[0m", "x" * 300])

    outcome = converge(actor)

    assert outcome.failed
    assert "failed to start on @fake/rig1" in outcome.told
    assert "    ValueError: no room\n" in outcome.told
    sync, read = (command for command in outcome.commands if "journalctl" in command)
    assert "--sync" in sync
    assert "_SYSTEMD_INVOCATION_ID=6a0ab0a2b1a04ea2a7d8f4d1e4a7b1c9" in read
    assert "Traceback" not in outcome.told


def test_a_start_that_takes_too_long_is_an_error_that_says_so() -> None:
    outcome = converge(unit(DOWN, DOWN, STARTING), timeout=600)

    assert outcome.failed
    assert "timed out after" in outcome.told


def test_a_connection_that_breaks_while_waiting_does_not_end_the_wait() -> None:
    outcome = converge(unit(DOWN, DOWN, STARTING, Said(breaks=True), STARTING, UP))

    assert not outcome.failed
    assert outcome.ran(START) == 1
    assert "waiting until the host answers again" in outcome.told


def test_a_connection_that_breaks_before_the_order_is_told_without_a_traceback() -> None:
    actor = Actor().answers("daemon-reload", Said(breaks=True)).answers("systemctl show", DOWN)

    outcome = converge(actor)

    assert outcome.failed
    assert "the connection to @fake/rig1 broke" in outcome.told
    assert "Traceback" not in outcome.told


def test_a_unit_is_enabled_without_being_started() -> None:
    actor = Actor().answers("systemctl show", shown("inactive", "dead", UnitFileState="disabled"))
    done = Actor().answers("systemctl show", DOWN)

    outcome = actor.does(systemd.enabled, unit=UNIT)

    assert outcome.ran(f"systemctl enable --quiet -- {UNIT}") == 1
    assert not outcome.ran("systemctl start")
    assert not done.does(systemd.enabled, unit=UNIT).changed


OURS = {"features": {"cdi": True}}
GOOD = ["--- present", '{"features": {"cdi": true}}']
BEFORE = ["--- present", '{"debug": true}']
FILE = ["regular file|644|root|root", "0" * 64 + "  /etc/docker/daemon.json"]


def daemon(text: list[str], *states: list[str]) -> Actor:
    actor = Actor().answers("systemctl show", *states).answers("echo '--- present'", text)
    return actor.answers("stat -c '%F", FILE if text else [])


def test_docker_that_runs_with_our_keys_is_left_alone() -> None:
    outcome = daemon(GOOD, UP).does(docker.daemon_config, values=OURS)

    assert not outcome.changed
    assert not outcome.ran("systemctl restart")


def test_docker_is_restarted_when_a_killed_deploy_left_it_with_the_old_file() -> None:
    written = [*UP, "mtime=1795460999.000000 /etc/docker/daemon.json"]

    outcome = daemon(GOOD, written, written, STARTING, UP).does(docker.daemon_config, values=OURS)

    assert outcome.ran("systemctl restart --no-block -- docker.service") == 1
    assert not outcome.ran("mv -T")


@pytest.mark.parametrize("state", [shown("inactive", "dead"), shown("activating", "start")])
def test_docker_that_is_down_or_still_starting_is_not_restarted(state: list[str]) -> None:
    outcome = daemon(GOOD, state, state, UP).does(docker.daemon_config, values=OURS)

    assert outcome.changed
    assert outcome.ran("systemctl start --no-block -- docker.service") == 1
    assert not outcome.ran("systemctl restart")


def test_docker_is_not_restarted_into_a_file_that_it_would_refuse() -> None:
    written = [*UP, "mtime=1795460999.000000 /etc/docker/daemon.json"]
    actor = daemon(GOOD, written)
    actor.script.insert(0, ("dockerd --validate", [Said(errors=["unable to configure: unknown key"], ok=False)]))

    outcome = actor.does(docker.daemon_config, values=OURS)

    assert outcome.failed
    assert "keeps its old settings: `dockerd` refuses /etc/docker/daemon.json" in outcome.told
    assert "unknown key" in outcome.told
    assert not outcome.ran("systemctl restart")


def test_the_daemons_own_validator_judges_the_file_before_it_is_put_in_place() -> None:
    actor = daemon(BEFORE, UP)
    actor.script.insert(0, ("dockerd --validate", [Said(errors=["unable to configure: unknown key"], ok=False)]))

    outcome = actor.does(docker.daemon_config, values=OURS)

    assert outcome.failed
    assert "unknown key" in outcome.told
    assert "dockerd --validate --config-file=/etc/docker/.rigup-new.daemon.json/daemon.json" in outcome.commands
    assert not outcome.ran("mv -T") + outcome.ran("systemctl restart")


def test_docker_that_does_not_come_up_gets_its_old_file_back() -> None:
    dead = shown("failed", "failed", Result="exit-code")
    actor = daemon(BEFORE, UP, UP, dead, UP).answers("journalctl", ["failed to start daemon: no such runtime"])

    outcome = actor.does(docker.daemon_config, values=OURS)

    assert outcome.failed
    assert "failed to start daemon: no such runtime" in outcome.told
    assert "is rolled back, and Docker runs" in outcome.told
    assert outcome.ran("cp -a /etc/docker/daemon.json.rigup-backup /etc/docker/daemon.json") == 1
    assert outcome.ran("systemctl restart --no-block -- docker.service") == 2


def test_a_daemon_json_that_was_not_there_is_removed_again() -> None:
    dead = shown("failed", "failed", Result="exit-code")

    outcome = daemon([], UP, UP, dead, UP).does(docker.daemon_config, values=OURS)

    assert outcome.failed
    assert outcome.ran("rm -f /etc/docker/daemon.json") == 1


REFERENCE = f"vllm/vllm-openai@sha256:{'a' * 64}"
TAG = "vllm/vllm-openai:cu130-nightly"
PULL = f"rigup-pull-{'a' * 12}.service"
NO_UNIT = [line.replace("LoadState=loaded", "LoadState=not-found") for line in DOWN]
PROGRESS = "downloading, 4.1 GB of 12.4 GB, 85 MB/s, about 1 min 37 s left, 9 of 31 layers complete"
HERE, MISSING = Said(["."]), Said(errors=["Error: No such image"], ok=False)


def image(actor: Actor) -> Outcome:
    return actor.does(docker.image, reference=REFERENCE, tag=TAG, size=12_400_000_000)


def test_an_image_that_is_here_is_not_pulled() -> None:
    assert not image(Actor().answers("docker image ls", [REFERENCE])).changed


def test_a_pull_runs_as_a_unit_and_is_waited_for() -> None:
    pulling, done = shown("activating", "start"), shown("active", "exited")
    actor = Actor().answers("systemctl show", NO_UNIT, pulling, pulling, done)

    outcome = image(actor.answers("image inspect", MISSING, HERE))

    assert not outcome.failed, outcome.told
    assert outcome.ran(f"/rigup-host pull --bytes=12400000000 {REFERENCE}") == 1


def test_a_long_pull_says_how_far_it_is() -> None:
    pulling, done = shown("activating", "start"), shown("active", "exited")
    actor = Actor().answers("systemctl show", NO_UNIT, *[pulling] * 20, done).answers("image inspect", MISSING, HERE)

    outcome = image(actor.answers("journalctl", [PROGRESS]))

    assert f"the pull of {TAG}: 11 s of at most 2 h 00 min; {PROGRESS}" in outcome.told


def test_a_pull_of_an_earlier_deploy_is_waited_for_and_not_begun_again() -> None:
    pulling, done = shown("activating", "start"), shown("active", "exited")
    actor = Actor().answers("systemctl show", pulling, pulling, done).answers("image inspect", HERE)

    outcome = image(actor)

    assert not outcome.failed, outcome.told
    assert not outcome.ran("rigup-host pull")


def test_a_pull_that_waits_for_its_turn_has_not_ended() -> None:
    queued, pulling, done = shown("inactive", "dead", Job="91"), shown("activating", "start"), shown("active", "exited")
    actor = Actor().answers("systemctl show", NO_UNIT, queued, pulling, done)

    assert not image(actor.answers("image inspect", MISSING, HERE)).failed


def test_a_pull_that_a_reboot_cut_off_is_told_as_that() -> None:
    actor = Actor().answers("systemctl show", NO_UNIT, shown("activating", "start"), NO_UNIT)

    outcome = image(actor.answers("image inspect", MISSING))

    assert outcome.failed
    assert f"the pull of {TAG} was interrupted: @fake/rig1 was restarted, or {PULL} was stopped." in outcome.told
    assert "rigup update" not in outcome.told


def test_a_failed_pull_says_what_docker_said() -> None:
    actor = Actor().answers("systemctl show", NO_UNIT, shown("failed", "failed", Result="exit-code"))
    actor.answers("journalctl", ["manifest unknown"]).answers("image inspect", MISSING)

    outcome = image(actor)

    assert outcome.failed
    assert "manifest unknown" in outcome.told


CDI = ["nvidia.com/gpu=0", "nvidia.com/gpu=1", "nvidia.com/gpu=all"]


def test_the_device_list_is_refreshed_only_when_it_lacks_a_gpu() -> None:
    assert not Actor().answers("nvidia-ctk cdi list", CDI).does(docker.cdi, gpus=2).changed

    actor = Actor().answers("nvidia-ctk cdi list", [], [], CDI).answers("systemctl show", UP)
    outcome = actor.does(docker.cdi, gpus=2)

    assert (outcome.changed, outcome.ran("systemctl restart --no-block -- nvidia-cdi-refresh.service")) == (True, 1)


def test_gpus_that_are_named_by_uuid_must_be_listed_by_it() -> None:
    actor = Actor().answers("nvidia-ctk cdi list", CDI, CDI, [*CDI, "nvidia.com/gpu=GPU-1"])

    assert not actor.answers("systemctl show", UP).does(docker.cdi, gpus=2, uuids=["GPU-1"]).failed
    actor = Actor().answers("nvidia-ctk cdi list", CDI).answers("systemctl show", UP)
    assert actor.does(docker.cdi, gpus=2, uuids=["GPU-1"]).failed


def test_a_gpu_that_stays_out_of_the_list_is_an_error() -> None:
    actor = Actor().answers("nvidia-ctk cdi list", CDI).answers("systemctl show", UP)

    outcome = actor.does(docker.cdi, gpus=4)

    assert outcome.failed
    assert "names only nvidia.com/gpu=0, nvidia.com/gpu=1" in outcome.told
