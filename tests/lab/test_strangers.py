"""A user without privileges on the host and a machine on its network try what they can during a host's whole life.

The host is deployed from bare, switched to another recipe, audited and reset to bare. The strangers get nothing.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab import network
from lab.machine import Host
from lab.settings import GATEWAY, host_address, namespace
from tests.lab.rigs import ROOT, status_of
from tests.lab.standin import Rig, bare

NAME, STRANGER = "rig18", "rig19"
USER = "mallory"
PORT = 8000
KEY = "planted0key0000000000000000000000000000000000000000000000000043"
LOOT = f"/home/{USER}/loot"


@dataclass
class Strangers:
    """Both strangers, and what they got so far."""

    host: Host
    network_loot: Path

    def entries(self) -> list[dict[str, object]]:
        said = self.host.shell(f"cat {LOOT}").stdout + self.network_loot.read_text()
        return [json.loads(line) for line in said.splitlines()]

    def loot(self) -> list[str]:
        """Return what they got, and how."""
        return [f"{entry['way']}: {entry['what']}" for entry in self.entries() if "way" in entry]

    def tried(self) -> Counter[str]:
        """Return how often they tried each way."""
        most = Counter[str]()
        for entry in self.entries():
            most |= Counter(entry.get("tried", {}))  # type: ignore[call-overload]
        return most


@contextlib.contextmanager
def strangers(host: Host, directory: Path) -> Iterator[Strangers]:
    """Let both act until the context ends."""
    host.shell(f"useradd --create-home {USER}; apt-get -qq update; apt-get -qq install -y python3 >/dev/null")
    program = (ROOT / "tests/lab/stranger_on_host.py").read_text()
    host.shell(f"cat > /home/{USER}/stranger.py; install -o {USER} /dev/null {LOOT}", stdin=program)
    on_network = directory / "loot"
    on_network.touch()
    network.add(STRANGER)
    outside = ["ip", "netns", "exec", namespace(STRANGER), sys.executable]
    knocking = subprocess.Popen([*outside, str(ROOT / "tests/lab/stranger_on_network.py"), on_network, host.address])
    try:
        start_on_host(host)
        yield Strangers(host, on_network)
    finally:
        knocking.kill()
        knocking.wait()
        network.remove(STRANGER)


def start_on_host(host: Host) -> None:
    """Start the stranger on the host as a service, which a reboot of the host starts again."""
    unit = (
        f"[Service]\nUser={USER}\nExecStart=/usr/bin/python3 /home/{USER}/stranger.py {LOOT} {PORT}\nRestart=always\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )
    host.shell("cat > /etc/systemd/system/mallory.service", stdin=unit)
    host.shell("systemctl enable --quiet --now mallory")


@pytest.fixture(scope="module")
def rig(services: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A bare host. Only the control machine may use its endpoint, whose key is planted."""
    endpoint = {"listen": host_address(NAME), "allowed_networks": [f"{GATEWAY}/32"], "port": PORT}
    with bare(NAME, tmp_path_factory, login="ops", endpoints={"main": endpoint}) as rig:
        yield rig


def test_strangers_get_nothing_while_a_host_is_deployed_switched_audited_and_rebuilt(rig: Rig, tmp_path: Path) -> None:
    with strangers(rig.host, tmp_path) as both:
        rig.host.shell("install -d -m 700 /etc/rigup/endpoints/main")
        rig.host.shell("umask 077 && cat > /etc/rigup/endpoints/main/key", stdin=f"{KEY}\n")
        deployed = rig.deploy()
        assert deployed.code == 0, deployed.output
        url = f"http://{rig.host.address}:{PORT}/v1/models"
        assert status_of(url, f"Authorization: Bearer {KEY}") == "200"
        # This recipe has a planted secret in its environment.
        switched = rig.deploy(recipe="standin-secret")
        assert switched.code == 0, switched.output
        assert rig.serves() == "standin-secret"
        audit = rig.rigs.audit()
        assert [line for line in audit.output.splitlines() if "FAILED" in line] == [], audit.output
        rebuilt = rig.rigs.run("pyinfra", "inventory/lab.py", "rebuild.py", "-y")
        assert rebuilt.code == 0, rebuilt.output

        assert both.loot() == []
        tried = both.tried()
        assert tried.keys() == {"read", "write", "wait", "listen", "command", "socket", "port"}, tried
        # They would have seen it: what anyone can read, write or reach is found.
        rig.host.shell(f"echo {KEY} > /var/log/leak; echo x > /etc/leak; chmod 666 /etc/leak")
        rig.host.shell("setsid python3 -m http.server 8123 --directory /srv >/dev/null 2>&1 &")
        for way in ("read: /var/log/leak", "write: /etc/leak", "port: 8123 answered"):
            while not any(each.startswith(way) for each in both.loot()):
                assert rig.host.running
