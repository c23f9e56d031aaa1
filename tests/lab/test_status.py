"""`rigup status` of a deployed host: it serves; then it is stopped, and then switched off."""

from __future__ import annotations

import json
from typing import Any

from tests.lab.one_rig import NAME, OneRig

pytest_plugins = ("tests.lab.one_rig_plugin",)


def status(rig: OneRig) -> tuple[int, dict[str, Any]]:
    result = rig.rigs.run("rigup", "status", "--json")
    found: dict[str, Any] = json.loads(result.output)["hosts"][NAME]
    return result.code, found


def test_what_serves_is_told_with_its_gpus_and_since_when(one_rig: OneRig) -> None:
    one_rig.deploy()
    code, found = status(one_rig)
    assert code == 0, found
    (endpoint,) = found["endpoints"]
    assert (endpoint["state"], endpoint["health"], endpoint["recipe"]) == ("serving", 200, "vllm-nvfp4-cu130")
    assert endpoint["since"] and endpoint["proven"]
    assert [gpu["total"] for gpu in found["gpus"]] == [97887] * 4
    assert found["downloads"] == []
    assert "serving" in one_rig.rigs.run("rigup", "status").output


def test_what_was_stopped_by_hand_is_told_with_an_exit_code_of_its_own(one_rig: OneRig) -> None:
    one_rig.host.shell("systemctl stop llm@main.service")
    code, found = status(one_rig)
    assert (code, found["endpoints"][0]["state"]) == (2, "stopped")
    one_rig.deploy()
    assert status(one_rig)[0] == 0
