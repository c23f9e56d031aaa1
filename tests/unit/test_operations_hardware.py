"""GPUs verified before anything serves, and power limits and access control applied only where they differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pyinfra.api.deploy import deploy

from rigup.operations import hardware, systemd, verify
from rigup.paths import HARDWARE_UNIT, PERSISTENCED_UNIT
from tests.unit.deploys import Actor, Outcome, Said
from tests.unit.sample import plan
from tests.unit.test_operations_units import DOWN, shown

ENDPOINT = plan().endpoints[0]
INVOCATION = "6a0ab0a2b1a04ea2a7d8f4d1e4a7b1c9"
NOTHING = ["", "--- state", INVOCATION]
SERVES = ["--- active", "llm@main.service loaded active running main"]


def recorded(digest: str, passed: bool = True) -> list[str]:
    record = {"passed": passed, "digest": digest, "invocation": INVOCATION, "at": "2026-11-23T19:09:11+00:00"}
    return [json.dumps(record), *NOTHING]


def cards(record: list[str], endpoints: list[str] | None = None, *answers: Said) -> Outcome:
    actor = Actor().answers("--- state", record).answers("--- checked", endpoints or [])
    for answer in answers:
        actor.answers("current/rigup-host", answer)
    return actor.does(verify.cards_verified, endpoint=ENDPOINT, gpus=4)


def test_cards_are_verified_in_the_engines_image_before_anything_serves() -> None:
    outcome = cards(NOTHING, None, Said(["ok   GPUs compute correctly  2.0 s"]))
    assert (outcome.changed, outcome.failed) == (True, False)
    (command,) = [command for command in outcome.commands if "current/rigup-host" in command]
    assert "rigup-host cards " in command and "--unit=nvidia-persistenced.service" in command
    assert "--gpus=4 --container=rigup-cards-main -- /usr/bin/docker run --rm --pull=never" in command
    assert "cards-main.json" in command
    assert f"--entrypoint=python3 {ENDPOINT.image} /usr/local/lib/rigup/host/current/check_cards.py" in command
    assert "--env-file=" in command and "--network=none" in command and "--device=nvidia.com/gpu=all" in command
    assert "ok   GPUs compute correctly" in outcome.told


def test_they_are_not_verified_twice_nor_under_an_engine() -> None:
    assert not cards(recorded(f"{ENDPOINT.image} all")).changed
    assert not cards(NOTHING, SERVES).changed
    assert cards(recorded("another image"), None, Said(["ok"])).changed
    assert cards(recorded(f"{ENDPOINT.image} all", passed=False), None, Said(["ok"])).changed


def test_bad_cards_stop_the_deploy_with_the_reason() -> None:
    reason = "GPUs copy data to each other unchanged: GPU 2 received other bytes than GPU 0 sent. The usual cause is"
    outcome = cards(NOTHING, None, Said(["FAIL GPUs copy"], [reason], ok=False))
    assert outcome.failed and reason in outcome.told and "the GPUs of main failed" in outcome.told


ENABLED = shown("active", "exited")
LIMITS = ["0, GPU-a, 450.00", "1, GPU-b, 450.00"]


def applied(unit: list[str], limits: list[str], **settings: Any) -> Outcome:
    actor = Actor().answers("systemctl show", unit, unit, ENABLED).answers("power.limit", limits)
    actor.answers("--- cards", []).answers("find -L", [])
    return actor.does(hardware.applied, unit=HARDWARE_UNIT, **{"power": {"all": 450}, "acs": True, **settings})


def test_limits_in_effect_are_left_alone() -> None:
    assert not applied(ENABLED, LIMITS).changed
    assert not applied(ENABLED, LIMITS, power={"1": 450}).changed


def test_a_limit_changed_by_hand_or_a_unit_that_is_down_is_applied_again() -> None:
    for unit, limits in ((ENABLED, [LIMITS[0], "1, GPU-b, 600.00"]), (DOWN, LIMITS)):
        outcome = applied(unit, limits)
        assert (outcome.changed, outcome.failed) == (True, False)
        assert outcome.ran(f"systemctl restart --no-block -- {HARDWARE_UNIT}") == 1
        assert outcome.ran(f"systemctl enable --quiet -- {HARDWARE_UNIT}") == 1


@deploy("both")
def both(_: None) -> None:
    persistence = systemd.converge(name="persistence", unit=PERSISTENCED_UNIT)
    hardware.applied(name="hardware", unit=HARDWARE_UNIT, power={"all": 450}, acs=True, reload_for=[persistence])


def test_settings_are_applied_after_the_persistence_daemon_even_if_systemd_was_faster() -> None:
    persistence, settings = f"-- {PERSISTENCED_UNIT}", f"-- {HARDWARE_UNIT}"

    def deployed(daemon: Sequence[list[str]]) -> Outcome:
        actor = Actor().answers(f"start --no-block {persistence}", []).answers(f"restart --no-block {settings}", [])
        actor.answers(f"enable --quiet {persistence}", []).answers(f"enable --quiet {settings}", [])
        actor.answers(PERSISTENCED_UNIT, *daemon).answers(HARDWARE_UNIT, ENABLED).answers("power.limit", LIMITS)
        return actor.walks(both, None)

    restarted = deployed([DOWN, DOWN, shown("active", "running")])
    assert restarted.ran(f"systemctl start --no-block {persistence}") == 1
    assert restarted.ran(f"systemctl restart --no-block {settings}") == 1
    assert deployed([shown("active", "running")]).ran(f"restart --no-block {settings}") == 0
