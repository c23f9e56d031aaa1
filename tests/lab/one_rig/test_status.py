"""`rigup status` of a deployed host: it serves; then it is stopped, and watched as it starts again."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import Any

from tests.lab.one_rig.rig import NAME, OneRig
from tests.lab.rigs import DEPLOY


def status(rig: OneRig) -> tuple[int, dict[str, Any]]:
    result = rig.rigs.run("rigup", "status", "--json")
    found: dict[str, Any] = json.loads(result.output)["hosts"][NAME]
    return result.code, found


def test_a_serving_endpoint_is_reported_with_its_gpus_and_start_time(one_rig: OneRig) -> None:
    one_rig.deploy()
    code, found = status(one_rig)
    assert code == 0, found
    (endpoint,) = found["endpoints"]
    assert (endpoint["state"], endpoint["health"], endpoint["recipe"]) == ("serving", 200, "vllm-nvfp4-cu130")
    assert endpoint["since"] and endpoint["verified"]
    assert [gpu["total"] for gpu in found["gpus"]] == [97887] * 4
    assert found["downloads"] == []
    assert "serving" in one_rig.rigs.run("rigup", "status").output


def test_an_endpoint_stopped_by_hand_is_reported_with_its_own_exit_code(one_rig: OneRig) -> None:
    one_rig.host.shell("systemctl stop llm@main.service")
    code, found = status(one_rig)
    assert (code, found["endpoints"][0]["state"]) == (2, "stopped")


def test_it_can_be_watched_until_it_serves_again(one_rig: OneRig) -> None:
    seen: list[str] = []
    with one_rig.rigs.begun("rigup", "status", "--watch", "--json") as watch:
        assert watch.stdout
        with one_rig.rigs.begun(*DEPLOY, output=subprocess.DEVNULL) as deploy:
            for line in watch.stdout:
                (endpoint,) = json.loads(line)["hosts"][NAME]["endpoints"]
                seen.append(endpoint["state"])
                if endpoint["state"] == "serving":
                    break
                assert deploy.poll() in (None, 0)
            assert deploy.wait() == 0
        watch.send_signal(signal.SIGINT)
        assert watch.wait() == 130
    assert [state for state in dict.fromkeys(seen) if state != "not verified"] == ["stopped", "starting", "serving"]
