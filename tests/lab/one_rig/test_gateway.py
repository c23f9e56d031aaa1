"""A deployed host whose endpoint is opened to a network and closed again; its key is planted, and searched for."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.settings import GATEWAY, SUBNET
from tests.lab.breaks import GATEWAY_BREAKS, KEY
from tests.lab.one_rig.rig import NAME, OneRig
from tests.lab.rigs import ROOT, Result, status_of

PLANTED = "planted0key0c0ffee0000000000000000000000000000000000000000000042"
PORT = 8000


@pytest.fixture(scope="module")
def rig(one_rig: OneRig) -> Iterator[OneRig]:
    """The host; its endpoint is on loopback again afterwards."""
    before = dict(one_rig.rigs.hosts[NAME])
    yield one_rig
    one_rig.rigs.hosts[NAME] = before
    one_rig.rigs.write()
    one_rig.deploy()


def open_to(rig: OneRig, *networks: str) -> Result:
    endpoint = {"listen": rig.host.address, "allowed_networks": list(networks)}
    rig.rigs.hosts[NAME]["endpoints"] = {"main": endpoint}
    rig.rigs.write()
    return rig.deploy()


def invocation(rig: OneRig) -> str:
    return rig.host.shell("systemctl show --value --property=InvocationID llm@main").stdout.strip()


def test_a_planted_key_opens_the_gateway_and_is_stored_nowhere_else(rig: OneRig) -> None:
    engine = invocation(rig)
    # An existing key is kept, so a key can be planted before the gateway opens.
    rig.host.shell("umask 077 && cat > /etc/rigup/endpoints/main/key", stdin=f"{PLANTED}\n")
    opened = open_to(rig, SUBNET)
    url = f"http://{rig.host.address}:{PORT}"
    assert invocation(rig) == engine, "opening the gateway restarted the engine"

    said = [opened.output]
    for path in ("/v1/models", "/metrics", "/version", "/docs", "/tokenize", "/no-such-path"):
        assert status_of(url + path) == "401", path
        assert status_of(url + path, "Authorization: Bearer wrong") == "401", path
    assert status_of(f"{url}/health") == "200"
    assert status_of(f"{url}/v1/models", f"Authorization: Bearer {PLANTED}") == "200"
    assert status_of(f"{url}/metrics", f"x-api-key: {PLANTED}") == "200"

    shown = rig.rigs.run("rigup", "key", NAME)
    assert shown.output.strip() == PLANTED
    # The line of the report, as a person would run it.
    line = next(line for line in opened.output.splitlines() if "try it" in line).split("try it", 1)[1].strip()
    environment = rig.rigs.environment(PATH=f"{ROOT / '.venv/bin'}:{os.environ['PATH']}")
    tried = subprocess.run(["sh", "-c", line], env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(tried.stdout)["usage"]["completion_tokens"] > 0
    said += [line, tried.stdout, tried.stderr]

    again = rig.deploy()
    assert again.changed() == []
    said += [again.output, rig.rigs.audit().output, rig.rigs.run("rigup", "plan", "--json").output]
    said += [rig.rigs.run("rigup", "report").output, json.dumps(again.report), json.dumps(opened.report)]
    assert [text for text in said if PLANTED in text] == []
    assert_nowhere_on_the_control_machine(rig)
    # The key comes by standard input, so that the search does not find itself.
    search = """read -r key; hits() { grep -aFs "$@" -f <(printf '%s\\n' "$key"); }
        journalctl --no-pager | hits -c; hits -hc - < <(cat /proc/*/cmdline); docker inspect llm-main | hits -c
        hits -rl /etc /run /var /tmp /usr/local /home /root"""
    journal, processes, container, *files = rig.host.shell(search, stdin=f"{PLANTED}\n", check=False).stdout.split()
    assert (journal, processes, container) == ("0", "0", "0")
    assert files == ["/etc/rigup/endpoints/main/key"]
    assert rig.host.shell("stat -c '%a %U' /etc/rigup/endpoints/main/key").stdout.strip() == "600 root"


def assert_nowhere_on_the_control_machine(rig: OneRig) -> None:
    for folder in (rig.rigs.directory, ROOT / ".rigup"):
        for path in Path(folder).rglob("*"):
            assert not (path.is_file() and PLANTED.encode() in path.read_bytes()), path


def test_exactly_what_was_broken_at_the_gateway_is_found_and_the_deploy_repairs_it(rig: OneRig) -> None:
    def findings() -> list[str]:
        told = json.loads(rig.rigs.run("rigup", "audit", "--json").output)
        return sorted(check["check"] for check in told["checks"] if check["result"] == "finding")

    assert findings() == []
    # The firewall rule last: reloading the gateway loads it too.
    for check in ("gateway-files", "gateway-refuses", "gateway-key"):
        rig.host.shell(GATEWAY_BREAKS[check])
    assert findings() == sorted(GATEWAY_BREAKS)
    repaired = rig.deploy()
    assert {line.split()[1] for line in repaired.changed()} == {"gateway", "verify"}, repaired.changed()
    assert findings() == []
    rig.host.shell(KEY.command)
    assert findings() == [KEY.check]
    assert "gateway" in {line.split()[1] for line in rig.deploy().changed()}
    assert findings() == []


def test_another_process_of_root_in_the_engines_place_gets_no_request(rig: OneRig) -> None:
    url = f"http://{rig.host.address}:{PORT}/v1/models"
    key = rig.rigs.run("rigup", "key", NAME).output.strip()
    rig.host.shell("systemctl stop llm@main")
    rig.host.shell(
        f"systemd-run --quiet --unit=squatter python3 -m http.server --directory /run --bind 127.0.0.1 {PORT}; "
        "until grep -q ' 0100007F:1F40 .* 0A ' /proc/net/tcp; do sleep 0.1; done"
    )
    assert status_of(url, f"Authorization: Bearer {key}") == "503"
    assert status_of(f"http://{rig.host.address}:{PORT}/health") == "503"
    said = rig.host.shell("journalctl --quiet --output=cat --unit=squatter").stdout
    assert "GET" not in said, said
    rig.host.shell("systemctl stop squatter; systemctl start llm@main")
    assert status_of(url, f"Authorization: Bearer {key}") == "200"


def test_a_client_outside_the_networks_is_dropped_by_firewall_and_gateway(rig: OneRig) -> None:
    open_to(rig, "192.0.2.0/24")
    url = f"http://{rig.host.address}:{PORT}/health"
    assert status_of(url) == "000"
    # Docker's own rules are where they were.
    assert "docker" in rig.host.shell("nft list ruleset").stdout
    # Somebody clears the rules away: the gateway itself still knows who may come in.
    rig.host.shell("nft delete table inet rigup")
    assert status_of(url) == "000"
    repaired = rig.deploy()
    assert [name.partition(" | ")[0] for name in repaired.changed()] == [f"{NAME} gateway"], repaired.changed()
    assert status_of(url) == "000"


def test_an_endpoint_that_returns_to_loopback_leaves_no_gateway(rig: OneRig) -> None:
    open_to(rig, f"{GATEWAY}/32")
    assert status_of(f"http://{rig.host.address}:{PORT}/health") == "200"
    del rig.rigs.hosts[NAME]["endpoints"]
    rig.rigs.write()
    closed = rig.deploy()
    assert f"{NAME} gateway | Remove gateways that are no longer configured" in closed.changed()
    assert status_of(f"http://{rig.host.address}:{PORT}/health") == "000"
    left = "systemctl is-active rigup-gateway@main; nft list chain inet rigup endpoint-main; ls /etc/rigup/gateways"
    assert rig.host.shell(f"({left}) 2>/dev/null; true").stdout.split() == ["inactive"]
    assert rig.deploy().changed() == []
