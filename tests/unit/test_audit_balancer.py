"""The audit of the load balancer: what is rendered is as planned, and what admits others is found."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rigup.render.balancer import config_text
from rigup.render.gateway import config_text as gateway_text
from rigup.render.gateway import opening
from tests.unit.sample import plan
from tests.unit.test_audit_serving import checks_of
from tests.unit.test_config_load_balancer import made

MORE = ", aliases: {fast: Qwen3.5-397B-A17B}, keys: {default: {}, few: {models: [fast], concurrency: 2}}"


@pytest.fixture
def rig(tmp_path: Path) -> Any:
    """What the checks ask of a host that the load balancer runs on."""
    return SimpleNamespace(name="rig1", balancer=made(tmp_path, MORE))


def test_a_configuration_as_rendered_is_as_planned(rig: Any) -> None:
    checks = checks_of("balancer")
    assert checks.admission(config_text(rig.balancer, "rig1")) == checks.expected_admission(rig, rig.balancer)


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("bind ipv4@192.0.2.11:8080", "bind ipv4@0.0.0.0:8080"),
        ("reject unless { src 198.51.100.0/24", "reject unless { src 0.0.0.0/0"),
        ("' unless known\n", "' if FALSE\n"),
        ("acl known var(txn.key) -m found", "acl known always_true"),
        ("    acl known", "    http-request return status 200 if TRUE\n    acl known"),
        ("/etc/rigup/load-balancer/clients", "/tmp/clients"),
        ("server rig2:main 192.0.2.12:8000", "server rig2:main 203.0.113.9:8000"),
    ],
)
def test_what_lets_in_others_or_sends_elsewhere_is_found(rig: Any, line: str, instead: str) -> None:
    checks, text = checks_of("balancer"), config_text(rig.balancer, "rig1")
    assert line in text
    assert checks.admission(text.replace(line, instead)) != checks.expected_admission(rig, rig.balancer)


def test_the_gateways_behind_it_admit_it_and_nobody_else(rig: Any) -> None:
    checks = checks_of("gateway")
    public = {"listen": "192.0.2.12", "allowed_networks": ["192.0.2.12/32"]}
    endpoint = plan(endpoints={"main": public}).endpoint("main")
    addresses = tuple(rig.balancer.hosts.values())
    text = gateway_text(endpoint, addresses)
    assert checks.admission(text) == checks.expected_admission(rig, endpoint)
    assert checks.admission(gateway_text(endpoint)) != checks.expected_admission(rig, endpoint)
    changed = text.replace("{ src,concat(=,txn.digest) -m str -f /etc/rigup/load-balancers }", "{ src 0.0.0.0/0 }")
    assert changed != text
    assert checks.admission(changed) != checks.expected_admission(rig, endpoint)
    rules = opening(endpoint, addresses).text
    assert checks.rules_at_boot(rules, "endpoint-main") == [checks.expected_rule(rig, endpoint)]
