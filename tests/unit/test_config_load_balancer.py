"""The load balancer of an inventory: what may be written, and which endpoints are behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rigup.config.inventory import Inventory, load_inventory
from rigup.errors import RigupError
from rigup.plan.balancer import Balancer, Member, balancer_of
from rigup.render.balancer import config_text, hosts_text, models_text, opening
from tests.unit.sample import CATALOGUE
from tests.unit.test_config_inventory import findings, written

HOSTS = """
hosts:
  rig1: {address: 192.0.2.11, endpoints: {main: {listen: 192.0.2.11, allowed_networks: [192.0.2.0/24]}}}
  rig2: {address: 192.0.2.12, endpoints: {main: {listen: 192.0.2.12, allowed_networks: [192.0.2.12]}}}
  rig3: {address: 192.0.2.13}
"""
MODEL = "Qwen3.5-397B-A17B"


def inventory(directory: Path, balancer: str, hosts: str = HOSTS) -> Inventory:
    return load_inventory(written(directory, f"load_balancer: {balancer}{hosts}"))


def made(directory: Path, more: str = "", hosts: str = HOSTS, addresses: dict[str, str] | None = None) -> Balancer:
    found = inventory(directory, f"{{hosts: [rig1], allowed_networks: [198.51.100.0/24]{more}}}", hosts)
    assert found.load_balancer
    members = [Member(name, host.connection.address, host.settings) for name, host in found.hosts.items()]
    resolve = (addresses or {member.login: member.login for member in members}).get
    return balancer_of(found.load_balancer, members, CATALOGUE, {}, resolve)


def test_every_endpoint_with_a_gateway_is_behind_it(tmp_path: Path) -> None:
    balancer = made(tmp_path)
    assert balancer.hosts == {"rig1": "192.0.2.11"}
    assert [backend.name for backend in balancer.backends] == ["rig1:main", "rig2:main"]
    assert [model.name for model in balancer.models] == [MODEL]
    assert balancer.url("rig1") == "http://192.0.2.11:8080"
    assert list(balancer.keys) == ["default"]


def test_its_own_address_and_the_hosts_behind_it_come_in_beside_the_networks(tmp_path: Path) -> None:
    balancer = made(tmp_path)
    assert opening(balancer, "rig1").networks == ("192.0.2.11/32", "192.0.2.12/32", "198.51.100.0/24")
    text = config_text(balancer, "rig1")
    assert "reject unless { src 198.51.100.0/24 192.0.2.11 192.0.2.12 }" in text
    assert "bind ipv4@192.0.2.11:8080 proto h1\n" in text


def test_a_switch_knows_the_load_balancers_and_its_own_endpoints(tmp_path: Path) -> None:
    assert json.loads(hosts_text(made(tmp_path), "rig2", 300)) == {
        "urls": ["http://192.0.2.11:8080/rigup/servers"],
        "endpoints": {"main": {"name": "rig2:main", "address": "192.0.2.12"}},
        "timeout_s": 300,
    }


def test_a_key_lists_its_models_and_their_aliases(tmp_path: Path) -> None:
    more = f", aliases: {{fast: {MODEL}, agents: {MODEL}}}, keys: {{all: {{}}, some: {{models: [fast]}}}}"
    balancer = made(tmp_path, more)
    assert balancer.names == {MODEL: MODEL, "fast": MODEL, "agents": MODEL}
    cards = json.loads(models_text(balancer, "all"))["data"]
    assert [card["id"] for card in cards] == [MODEL, "agents", "fast"]
    # An alias stands for its model.
    assert balancer.names_for("some") == [MODEL, "agents", "fast"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (", aliases: {fast: other}", "load_balancer.aliases.fast: no endpoint with a gateway serves 'other'"),
        (f", aliases: {{{MODEL}: other}}", f"load_balancer.aliases.{MODEL}: a model has this name"),
        (", keys: {one: {models: [nope]}}", "load_balancer.keys.one.models: there is no model or alias 'nope'"),
    ],
)
def test_a_name_of_no_model_is_refused(tmp_path: Path, more: str, says: str) -> None:
    with pytest.raises(RigupError, match=says):
        made(tmp_path, more)


def test_a_host_that_nobody_finds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RigupError, match="the address of rig1 does not resolve"):
        made(tmp_path, addresses={"other": "192.0.2.1"})


def test_a_gateway_of_the_other_family_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RigupError, match=r"rig1 has the address 2001:db8::1, and endpoint main of rig1 listens on 192"):
        made(tmp_path, addresses={"192.0.2.11": "2001:db8::1"})


BASE = "hosts: [rig1], allowed_networks: [192.0.2.0/24]"


@pytest.mark.parametrize(
    ("balancer", "said"),
    [
        ("{hosts: [rig1]}", "load_balancer.allowed_networks: is missing: for example"),
        ("{hosts: [], allowed_networks: [192.0.2.0/24]}", "load_balancer.hosts: must have at least 1 entries"),
        ("{hosts: [rig9], allowed_networks: [192.0.2.0/24]}", "load_balancer.hosts[0]: no host is named 'rig9'"),
        (f"{{{BASE}, tls: internal}}", "load_balancer.tls: unknown key"),
        (f"{{{BASE}, port: 8000}}", "load_balancer.port: is also the port of rig1 for its endpoint main"),
        (f"{{{BASE}, port: 8730}}", "load_balancer.port: is also the port of rig1 for its peers' daemon"),
        (f"{{{BASE}, aliases: {{'a b': x}}}}", "'a b' is not a name to serve a model as"),
        (f"{{{BASE}, aliases: {{a: b, b: c}}}}", "load_balancer: alias a names b, which is an alias too: write c"),
        (f"{{{BASE}, keys: {{}}}}", "load_balancer.keys: must have at least 1 entries"),
        (f"{{{BASE}, keys: {{Ops: {{}}}}}}", "'Ops' is not a valid name"),
        (f"{{{BASE}, keys: {{one: {{concurrency: 0}}}}}}", "load_balancer.keys.one.concurrency: must be at least 1"),
        ("[rig1]", "load_balancer: must contain keys"),
        ("{hosts: [rig1, rig1], allowed_networks: [192.0.2.0/24]}", "load_balancer: lists a host twice"),
    ],
)
def test_a_mistake_is_refused_with_its_line(tmp_path: Path, balancer: str, said: str) -> None:
    (found,) = findings(tmp_path, f"load_balancer: {balancer}{HOSTS}")
    assert found.startswith("lab.yaml:1: ")
    assert said in found


def test_without_a_gateway_there_is_nothing_to_balance(tmp_path: Path) -> None:
    (found,) = findings(tmp_path, f"load_balancer: {{{BASE}}}\nhosts: {{rig1: {{address: 192.0.2.11}}}}\n")
    assert "load_balancer: no endpoint can be reached from other hosts" in found


def test_a_deploy_gets_it_with_the_data_of_every_host(tmp_path: Path) -> None:
    found: Any = inventory(tmp_path, f"{{{BASE}}}").pyinfra_hosts()
    assert {data["rigup_load_balancer"]["port"] for _, data in found} == {8080}
