"""The gateway in front of a public endpoint: what is rendered, what is read back, who is told what."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from rigup.cli import main
from rigup.facts.gateway import parse_gateway_state
from rigup.operations import gateway as gateway_operations
from rigup.paths import FIREWALL, GATEWAYS
from rigup.plan.model import EndpointPlan
from rigup.render.docker import docker_argv
from rigup.render.firewall import all_rules_text
from rigup.render.gateway import DRAIN, config_text, opening, parse_gateway_names
from rigup.render.systemd import env_file_text, gateway_unit_text, nftables_text, unit_text
from tests.unit.deploys import Outcome, on_this_machine
from tests.unit.sample import plan

PUBLIC = {"listen": "192.0.2.20", "allowed_networks": ["192.0.2.0/24", "198.51.100.7"]}


def endpoint(**changes: object) -> EndpointPlan:
    return plan(endpoints={"main": {**PUBLIC, **changes}}).endpoint("main")


def test_the_engine_of_a_public_endpoint_is_the_very_one_of_a_private_one() -> None:
    private = plan().endpoint("main")
    public = endpoint()

    assert public.digest == private.digest
    assert docker_argv(public) == docker_argv(private)
    assert unit_text(public) == unit_text(private)
    assert "--host=127.0.0.1" in public.argv
    assert (public.url, public.public_url) == ("http://127.0.0.1:8000", "http://192.0.2.20:8000")


def test_nothing_that_is_rendered_holds_a_key() -> None:
    rendered = [config_text(endpoint()), opening(endpoint()).text, env_file_text(endpoint())]
    assert all("Bearer" not in text or "WWW-Authenticate Bearer" in text for text in rendered)
    assert "-f /etc/rigup/endpoints/main/key" in rendered[0]


def test_the_health_check_is_the_one_path_that_needs_no_key() -> None:
    text = config_text(endpoint())
    assert "unless known || health health_path" in text
    assert "acl health_path path /health\n" in text
    assert json.loads(text.partition("string '")[2].partition("'")[0])["error"]["code"] == "invalid_api_key"


def test_a_gateway_that_is_drained_has_no_server_left_and_drains_only_once() -> None:
    text = config_text(endpoint())
    drained = subprocess.run(["sed", DRAIN], input=text, capture_output=True, text=True, check=True).stdout
    assert [line for line in drained.splitlines() if line not in text.splitlines()] == [
        "    server engine 127.0.0.1:8000 disabled"
    ]
    again = subprocess.run(["sed", DRAIN], input=drained, capture_output=True, text=True, check=True).stdout
    assert again == drained


def test_the_gateway_too_knows_the_networks_and_the_host_itself() -> None:
    assert "reject unless { src 192.0.2.0/24 198.51.100.7/32 192.0.2.20 }" in config_text(endpoint())


@pytest.mark.parametrize(
    ("listen", "networks", "bind"),
    [
        ("192.0.2.20", ["0.0.0.0/0"], "ipv4@192.0.2.20:8000"),
        ("2001:db8::20", ["2001:db8::/32"], "ipv6@2001:db8::20:8000"),
    ],
)
def test_both_families_are_rendered(listen: str, networks: list[str], bind: str) -> None:
    found = endpoint(listen=listen, allowed_networks=networks)
    assert f"bind {bind} proto h1\n" in config_text(found)
    family = "ip6" if ":" in listen else "ip"
    assert f"{family} daddr {listen} tcp dport 8000 {family} saddr != {{ {networks[0]} }} drop" in opening(found).text


@pytest.mark.skipif(shutil.which("nft") is None, reason="nft is not installed")
@pytest.mark.parametrize("changes", [{}, {"listen": "2001:db8::20", "allowed_networks": ["2001:db8::/32", "fd00::/8"]}])
def test_nft_understands_the_rules(tmp_path: Path, changes: dict[str, object]) -> None:
    rules = tmp_path / "rules.nft"
    rules.write_text(opening(endpoint(**changes)).text)
    done = subprocess.run(["nft", "-c", "-f", str(rules)], capture_output=True, text=True)
    if "Operation not permitted" in done.stderr:
        pytest.skip("nft checks rules as root alone")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("nft") is None or os.geteuid() != 0, reason="nft is not installed, or needs root")
@pytest.mark.parametrize("moment", ["ExecStartPost", "ExecReload", "ExecStop"])
def test_the_rule_returns_with_nftables(tmp_path: Path, moment: str) -> None:
    """In a network namespace of its own, with what the drop-in says that systemd runs after nftables' own commands."""
    (tmp_path / "main.nft").write_text(opening(endpoint()).text)
    firewall = tmp_path / "firewall"
    firewall.write_text(all_rules_text().replace(GATEWAYS, str(tmp_path)))
    found = [line.partition("=-")[2] for line in nftables_text().splitlines() if line.startswith(f"{moment}=")]
    script = [
        "set -e",
        f"nft -f {tmp_path}/main.nft",
        "nft flush ruleset",
        *found,
        "nft list chain inet rigup endpoint-main",
    ]
    argv = ["unshare", "--net", "sh", "-c", "\n".join(script).replace(FIREWALL, str(firewall))]
    listed = subprocess.run(argv, capture_output=True, text=True)
    assert f"rigup {opening(endpoint()).digest}" in listed.stdout, listed.stderr
    (tmp_path / "main.nft").unlink()
    subprocess.run([*argv[:-1], f"nft -f {firewall}"], check=True)


def test_the_rule_in_force_is_known_by_its_digest() -> None:
    listed = [
        "key=root 600 65",
        "table inet rigup {",
        "\tchain endpoint-main {",
        '\t\tiif != "lo" ip daddr 192.0.2.20 tcp dport 8000 ip saddr != 192.0.2.0/24 drop comment '
        f'"rigup {opening(endpoint()).digest}"',
    ]
    state = parse_gateway_state(listed)
    assert (state.key_is_safe, state.rule) == (True, opening(endpoint()).digest)
    assert opening(endpoint(allowed_networks=["192.0.2.0/24"])).digest != state.rule


@pytest.mark.parametrize("line", ["key=root 644 65", "key=ops 600 65", "key=root 600 0"])
def test_a_key_that_others_can_read_or_that_is_empty_is_none(line: str) -> None:
    assert not parse_gateway_state([line]).key_is_safe


@pytest.mark.skipif(os.geteuid() != 0, reason="a key is root's")
def test_a_key_is_made_once_for_root_alone_and_made_anew_only_where_it_is_gone(tmp_path: Path) -> None:
    file = tmp_path / "endpoints/main/key"

    def have() -> Outcome:
        return on_this_machine(gateway_operations.key, endpoint="main", path=str(file))

    made = have()
    first = file.read_text()
    assert made.changed
    assert re.fullmatch(r"[0-9a-f]{64}\n", first)
    assert (stat.S_IMODE(file.stat().st_mode), file.stat().st_uid) == (0o600, 0)
    assert [path.name for path in file.parent.iterdir()] == ["key"]
    assert first.strip() not in made.told

    assert not have().changed

    file.chmod(0o644)
    assert have().changed
    assert (stat.S_IMODE(file.stat().st_mode), file.read_text()) == (0o600, first)

    file.write_text("")
    assert have().changed
    assert re.fullmatch(r"[0-9a-f]{64}\n", file.read_text())
    assert file.read_text() != first


def test_the_rule_is_in_force_before_anything_listens_on_the_new_address() -> None:
    unit = gateway_unit_text()
    assert unit.index("ExecStartPre=+/usr/sbin/nft -f /etc/rigup/gateways/%i.nft") < unit.index(
        "ExecStart=/usr/sbin/haproxy"
    )
    # The engine itself never does.
    assert "--host=127.0.0.1" in endpoint().argv


def test_gateways_are_known_by_their_files() -> None:
    assert parse_gateway_names(["left.cfg", "left.nft", "main.cfg"]) == ["left", "main"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rig1"], "rig1 has several endpoints: name one: rig1/left, rig1/right"),
        (["rig1/centre"], "rig1 has no endpoint 'centre': endpoints: left, right"),
        (["rig1/left"], "endpoint left listens on loopback only and needs no key"),
        (["rig2/left"], "no host is named 'rig2': did you mean rig1?"),
    ],
)
def test_a_key_that_there_is_not_is_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    inventory = tmp_path / "lab.yaml"
    endpoints = "{left: {gpus: [0, 1, 2, 3]}, right: {gpus: [4, 5, 6, 7], port: 8001}}"
    inventory.write_text(f"hosts: {{rig1: {{address: 192.0.2.1, endpoints: {endpoints}}}}}\n")
    assert main.main(["key", *words, "--inventory", str(inventory)]) == 1
    assert message in capsys.readouterr().err
