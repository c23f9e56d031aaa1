"""model.* and verify.verified: what goes on by itself is begun once, waited for once, and verified once."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest

from rigup.operations import model, verify
from rigup.plan.peers import Peer
from tests.unit.deploys import Actor, Outcome, Said
from tests.unit.sample import plan
from tests.unit.test_operations_units import DOWN, NEWER, NO_UNIT, OLDER, shown

ENDPOINT = plan().endpoints[0]
CHECKPOINT = ENDPOINT.checkpoint
UNIT = f"model-fetch@{CHECKPOINT.instance}.service"
STAMP = {"repo": CHECKPOINT.repo, "revision": CHECKPOINT.revision, "files": 2, "bytes": 30}
STAMP |= {"newest": 1_763_900_000_500_000_001, "machine": "aa"}
SIZES = ["--- sizes", "10 1763900000.5000000010", "20 1763800000.0000000000"]
MACHINE = ["--- arriving", "--- machine", "aa"]
COMPLETE = [json.dumps(STAMP), *SIZES, *MACHINE]
ABSENT = ["", "--- sizes", *MACHINE]
SOURCES = model.Sources(("http://hub:8001",), "rig1", (Peer("rig2", "10.0.0.12"),), "/mnt/disk")
RUNNING = shown()
OVER = shown("inactive", "dead", UnitFileState="disabled")


def host(stamps: Any, units: Any) -> Actor:
    return Actor().answers("--- sizes", *stamps).answers("systemctl show", *units)


def fetch(actor: Actor) -> Outcome:
    return actor.does(model.fetch, checkpoint=CHECKPOINT, sources=SOURCES)


def wait(actor: Actor, **arguments: Any) -> Outcome:
    return actor.does(model.wait, checkpoint=CHECKPOINT, **arguments)


def asked(sources: model.Sources = SOURCES) -> list[str]:
    """What stat and sha256sum say of the request that the operation writes."""
    content = model.request(CHECKPOINT, sources).encode()
    return ["regular file|644|root|root", f"{hashlib.sha256(content).hexdigest()}  x"]


def test_a_verified_checkpoint_is_not_fetched() -> None:
    outcome = fetch(host([COMPLETE], [OVER]))

    assert (outcome.foreseen, outcome.changed) == (False, False)


@pytest.mark.parametrize(
    "stamp",
    [
        ABSENT,
        [json.dumps(STAMP), *SIZES[:2], *MACHINE],
        [json.dumps(STAMP), *SIZES[:2], "21 1763800000.0000000000", *MACHINE],
        [json.dumps(STAMP), *SIZES[:2], "20 1763900009.0000000000", *MACHINE],
        [json.dumps({**STAMP, "revision": "f" * 40}), *SIZES, *MACHINE],
        [json.dumps({**STAMP, "machine": "bb"}), *SIZES, *MACHINE],
    ],
)
def test_anything_less_starts_the_unit_and_does_not_wait(stamp: list[str]) -> None:
    outcome = fetch(host([stamp], [NO_UNIT]))

    assert (outcome.foreseen, outcome.changed, outcome.failed) == (True, True, False), outcome.told
    assert outcome.ran(f"systemctl restart --no-block -- {UNIT}") == 1
    assert outcome.ran(f"systemctl enable --quiet -- {UNIT}") == 1
    assert outcome.ran("chown -h rigup-fetch:") == 1


def test_a_download_under_way_is_left_alone() -> None:
    outcome = fetch(host([ABSENT], [RUNNING]).answers("stat -c '%F", asked()))

    assert not outcome.changed, outcome.told


def test_a_download_under_way_that_a_reboot_would_end_is_enabled_without_a_restart() -> None:
    outcome = fetch(host([ABSENT], [shown(UnitFileState="disabled")]).answers("stat -c '%F", asked()))

    assert outcome.ran(f"systemctl enable --quiet -- {UNIT}") == 1
    assert not outcome.ran("systemctl restart")


def test_a_download_of_something_else_is_begun_anew() -> None:
    outcome = fetch(host([ABSENT], [RUNNING]).answers("stat -c '%F", ["regular file|644|root|root", f"{'0' * 64}  x"]))

    assert outcome.ran(f"systemctl restart --no-block -- {UNIT}") == 1


def test_a_download_that_began_with_another_token_or_with_one_that_is_gone_is_begun_anew() -> None:
    with_token = replace(SOURCES, token="/etc/rigup/hub-token")
    for sources, units, restarts in (
        (with_token, [*RUNNING, OLDER], 0),
        (with_token, [*RUNNING, NEWER], 1),
        (SOURCES, RUNNING, 1),
    ):
        actor = host([ABSENT], [units]).answers("stat -c '%F", asked(with_token))
        outcome = actor.does(model.fetch, checkpoint=CHECKPOINT, sources=sources)

        assert outcome.ran(f"systemctl restart --no-block -- {UNIT}") == restarts, outcome.told


def test_a_complete_checkpoint_is_not_waited_for() -> None:
    assert not wait(host([COMPLETE], [OVER])).changed


def test_it_waits_until_the_stamp_is_there_and_switches_the_unit_off() -> None:
    outcome = wait(host([ABSENT, ABSENT, ABSENT, COMPLETE], [RUNNING, RUNNING, RUNNING, RUNNING, DOWN]))

    assert not outcome.failed, outcome.told
    assert outcome.ran(f"systemctl disable --quiet -- {UNIT}") == 1


def test_a_download_whose_start_still_waits_its_turn_has_not_failed() -> None:
    queued = shown("inactive", "dead", Job="123")

    outcome = wait(host([ABSENT, ABSENT, ABSENT, COMPLETE], [queued, queued, queued, DOWN]))

    assert not outcome.failed, outcome.told


def test_a_download_that_has_given_up_is_told_in_its_own_words() -> None:
    dead = shown("failed", "failed", Result="exit-code")
    actor = host([ABSENT], [RUNNING, RUNNING, dead]).answers("journalctl", ["failed: the disk is full: free"])

    outcome = wait(actor)

    assert outcome.failed
    assert "the disk is full: free" in outcome.told


def test_the_request_names_every_source_and_every_file() -> None:
    told = json.loads(model.request(CHECKPOINT, SOURCES))

    assert told["peers"] == [{"name": "rig2", "address": "10.0.0.12", "port": 8730}]
    assert (told["hubs"], told["name"]) == (["http://hub:8001"], "rig1")
    name = CHECKPOINT.repo.partition("/")[2]
    assert told["sources"] == [f"/mnt/disk/{CHECKPOINT.repo}/{CHECKPOINT.revision}", f"/mnt/disk/{name}", "/mnt/disk"]
    assert told["files"] == CHECKPOINT.listing != {}
    assert told["dest"] == CHECKPOINT.path


INVOCATION = "6a0ab0a2b1a04ea2a7d8f4d1e4a7b1c9"


def record(digest: str, invocation: str = INVOCATION) -> list[str]:
    record = {"passed": True, "digest": digest, "invocation": invocation, "at": "2026-11-23T19:09:11+00:00"}
    return [json.dumps(record), "", "--- state", INVOCATION]


GPUS = record(f"{ENDPOINT.image} 4")
SERVES = record(ENDPOINT.digest)


def verified(gpus: list[str], serves: list[str], *answers: Said) -> Outcome:
    actor = Actor().answers(f"verify-gpus-{ENDPOINT.image[-64:-52]}.json 2>/dev/null", gpus)
    actor.answers("verify-endpoint-main.json 2>/dev/null", serves)
    for answer in answers:
        actor.answers("current/rigup-host", answer)
    return actor.does(verify.verified, endpoint=ENDPOINT, gpus=4)


def test_what_is_verified_is_not_tried_again() -> None:
    assert not verified(GPUS, SERVES).changed


def test_an_endpoint_started_since_is_tried_again_and_the_gpus_are_not() -> None:
    outcome = verified(GPUS, record(ENDPOINT.digest, "another"), Said(["ok   endpoint is healthy  0.0 s"]))

    assert (outcome.changed, outcome.failed) == (True, False)
    (command,) = [command for command in outcome.commands if "current/rigup-host" in command]
    assert f"rigup-host smoke --url={ENDPOINT.url}" in command
    assert f"--unit={ENDPOINT.unit} --digest={ENDPOINT.digest}" in command
    assert "ok   endpoint is healthy" in outcome.told


def test_gpus_are_tried_again_once_docker_was_started_anew() -> None:
    outcome = verified(record(f"{ENDPOINT.image} 4", "another"), SERVES)

    (command,) = [command for command in outcome.commands if "current/rigup-host" in command]
    assert f"rigup-host verify gpus --image={ENDPOINT.image} --count=4" in command


def test_a_failed_check_fails_the_host_with_its_reason() -> None:
    failed = Said(["FAIL endpoint completes a chat  0.2 s"], ["endpoint completes a chat: answered 500"], ok=False)

    outcome = verified(GPUS, ["", "--- state", INVOCATION], failed)

    assert outcome.failed
    assert "endpoint completes a chat: answered 500" in outcome.told
