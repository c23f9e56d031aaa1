"""model.* and verify.proof: what goes on by itself is begun once, waited for once, and proven once."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from rigup.operations import model, verify
from tests.unit.deploys import Actor, Outcome, Said
from tests.unit.sample import plan
from tests.unit.test_operations_units import DOWN, NO_UNIT, shown

ENDPOINT = plan().endpoints[0]
CHECKPOINT = ENDPOINT.checkpoint
UNIT = f"model-fetch@{CHECKPOINT.instance}.service"
STAMP = {"repo": CHECKPOINT.repo, "revision": CHECKPOINT.revision, "files": 2, "bytes": 30}
COMPLETE = [json.dumps(STAMP), "--- sizes", "10", "20"]
ABSENT = ["", "--- sizes"]
RUNNING = shown()
OVER = shown("inactive", "dead", UnitFileState="disabled")


def host(stamps: Any, units: Any) -> Actor:
    return Actor().answers("--- sizes", *stamps).answers("systemctl show", *units)


def fetch(actor: Actor) -> Outcome:
    return actor.does(model.fetch, checkpoint=CHECKPOINT, endpoint="http://hub:8001")


def wait(actor: Actor, **arguments: Any) -> Outcome:
    return actor.does(model.wait, checkpoint=CHECKPOINT, **arguments)


def asked() -> list[str]:
    """What stat and sha256sum say of the request that the operation writes."""
    request = {
        "endpoint": "http://hub:8001",
        "repo": CHECKPOINT.repo,
        "revision": CHECKPOINT.revision,
        "dest": CHECKPOINT.path,
        "bytes": CHECKPOINT.bytes,
        "files": CHECKPOINT.files,
        "venv": "/usr/local/lib/rigup/venv",
    }
    content = (json.dumps(request, indent=2) + "\n").encode()
    return ["regular file|644|root|root", f"{hashlib.sha256(content).hexdigest()}  x"]


def test_a_verified_checkpoint_is_not_fetched() -> None:
    outcome = fetch(host([COMPLETE], [OVER]))

    assert (outcome.foreseen, outcome.changed) == (False, False)


@pytest.mark.parametrize(
    "stamp",
    [
        ABSENT,
        [json.dumps(STAMP), "--- sizes", "10"],
        [json.dumps(STAMP), "--- sizes", "10", "21"],
        [json.dumps({**STAMP, "revision": "f" * 40}), "--- sizes", "10", "20"],
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


def test_a_complete_checkpoint_is_not_waited_for() -> None:
    assert not wait(host([COMPLETE], [OVER])).changed


def test_it_waits_until_the_stamp_is_there_and_switches_the_unit_off() -> None:
    outcome = wait(host([ABSENT, ABSENT, ABSENT, COMPLETE], [RUNNING, RUNNING, RUNNING, RUNNING, DOWN]))

    assert not outcome.failed, outcome.told
    assert outcome.ran(f"systemctl disable --quiet -- {UNIT}") == 1


def test_a_download_that_has_given_up_is_told_in_its_own_words() -> None:
    dead = shown("failed", "failed", Result="exit-code")
    actor = host([ABSENT], [RUNNING, RUNNING, dead]).answers("journalctl", ["failed: the disk is full: make room"])

    outcome = wait(actor)

    assert outcome.failed
    assert "the disk is full: make room" in outcome.told


def test_the_pace_of_a_download_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 10.0, 20.0])
    pace = model._Pace()
    monkeypatch.setattr(type(pace._clock), "elapsed_s", property(lambda self: next(now)))
    total = 240_000_000_000

    def told(done: int) -> str:
        return pace.line("o/n", {"step": "downloading", "bytes_done": done, "bytes_total": total})

    assert told(0) == "o/n: downloading, 0 MB of 240.0 GB"
    assert told(5_000_000_000) == "o/n: downloading, 5.0 GB of 240.0 GB, 500 MB/s, about 7 min 50 s left"
    assert pace.line("o/n", {}) == "o/n: starting"


INVOCATION = "6a0ab0a2b1a04ea2a7d8f4d1e4a7b1c9"


def proven(digest: str, invocation: str = INVOCATION) -> list[str]:
    record = {"passed": True, "digest": digest, "invocation": invocation, "at": "2026-11-23T19:09:11+00:00"}
    return [json.dumps(record), "", "--- state", INVOCATION]


GPUS = proven(f"{ENDPOINT.image} 4")
SERVES = proven(ENDPOINT.digest)


def proof(gpus: list[str], serves: list[str], *answers: Said) -> Outcome:
    actor = Actor().answers(f"proof-gpus-{ENDPOINT.image[-64:-52]}.json 2>/dev/null", gpus)
    actor.answers("proof-endpoint-main.json 2>/dev/null", serves)
    for answer in answers:
        actor.answers("prove.py", answer)
    return actor.does(verify.proof, endpoint=ENDPOINT, gpus=4)


def test_what_is_proven_is_not_tried_again() -> None:
    assert not proof(GPUS, SERVES).changed


def test_an_endpoint_started_since_is_tried_again_and_the_gpus_are_not() -> None:
    outcome = proof(GPUS, proven(ENDPOINT.digest, "another"), Said(["ok   endpoint is healthy  0.0 s"]))

    assert (outcome.changed, outcome.failed) == (True, False)
    (command,) = [command for command in outcome.commands if "prove.py" in command]
    assert f"prove.py endpoint --url={ENDPOINT.url}" in command
    assert f"--unit={ENDPOINT.unit} --digest={ENDPOINT.digest}" in command
    assert "ok   endpoint is healthy" in outcome.told


def test_gpus_are_tried_again_once_docker_was_started_anew() -> None:
    outcome = proof(proven(f"{ENDPOINT.image} 4", "another"), SERVES)

    (command,) = [command for command in outcome.commands if "prove.py" in command]
    assert f"prove.py gpus --image={ENDPOINT.image} --count=4" in command


def test_a_failed_check_fails_the_host_with_its_reason() -> None:
    failed = Said(["FAIL endpoint completes a chat  0.2 s"], ["endpoint completes a chat: answered 500"], ok=False)

    outcome = proof(GPUS, ["", "--- state", INVOCATION], failed)

    assert outcome.failed
    assert "endpoint completes a chat: answered 500" in outcome.told
