"""A fleet of three changes what it serves host by host, while a client of each host counts what fails."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from lab import machine, world
from lab.machine import Host
from tests.lab.rigs import Rigs

pytestmark = pytest.mark.soak

NAMES = ("rig8", "rig10", "rig19")
REFUSES = "/etc/systemd/system/llm@main.service.d/refuses.conf"


@dataclass
class Client:
    """Asks one host's endpoint again and again; `failed` are the moments when it had no answer."""

    host: Host
    asked: int = 0
    failed: list[float] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Client:
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _ask(self) -> None:
        while not self._stop.is_set():
            done = self.host.shell("curl -sf -m 20 -o /dev/null http://127.0.0.1:8000/v1/models", check=False)
            self.asked += 1
            if done.returncode:
                self.failed.append(time.monotonic())
            self._stop.wait(0.3)


@pytest.fixture(scope="module")
def fleet(services: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rigs]:
    hosts = {name: machine.get(name) for name in NAMES}
    try:
        for host in hosts.values():
            host.create(machine.Spec())
        machine.write_known_hosts()
        ways = {name: world.connection(host) for name, host in hosts.items()}
        rigs = Rigs(tmp_path_factory.mktemp("rolling"), ways, {**world.defaults(), "cuda_toolkit": "off"})
        rigs.write()
        result = rigs.deploy(timeout=1500)
        assert result.code == 0, result.output
        yield rigs
    finally:
        for host in hosts.values():
            host.remove()
        machine.write_known_hosts()


def test_one_host_at_a_time_stops_serving_and_the_others_answer(fleet: Rigs) -> None:
    fleet.write(container_ulimits={"stack": 33554432})
    clients = {name: Client(machine.get(name)) for name in NAMES}
    with clients[NAMES[0]], clients[NAMES[1]], clients[NAMES[2]]:
        result = fleet.deploy(timeout=1500)
    assert result.code == 0, result.output
    print({name: (client.asked, len(client.failed)) for name, client in clients.items()})
    spans = sorted((client.failed[0], client.failed[-1]) for client in clients.values())
    for before, after in pairwise(spans):
        assert before[1] < after[0], f"two hosts were down at once: {spans}"
    assert "keeps serving until" in result.output


def test_the_first_host_that_fails_stops_the_rest_and_the_next_run_goes_on_there(fleet: Rigs) -> None:
    hosts = {name: machine.get(name) for name in NAMES}
    for host in hosts.values():
        host.shell(f"install -D /dev/stdin {REFUSES}", stdin="[Service]\nExecStartPre=/bin/false\n")
    fleet.write(container_ulimits={"stack": 67108864})
    clients = {name: Client(host) for name, host in hosts.items()}
    with clients[NAMES[0]], clients[NAMES[1]], clients[NAMES[2]]:
        result = fleet.deploy(timeout=1500)
    assert result.code > 0
    waited = re.findall(r"rolling update stopped: (rig\d+) failed\. (rig\d+) was not changed", result.output)
    down = {name for name, client in clients.items() if client.failed}
    assert down == {failed for failed, _ in waited}
    assert {name for _, name in waited} == set(NAMES) - down
    assert len(down) == 1

    for host in hosts.values():
        host.shell(f"rm {REFUSES}; systemctl daemon-reload")
    # What did not come up is not tried again unless one says so.
    result = fleet.deploy("-y", "--data", "retry=true", timeout=1500)
    assert result.code == 0, result.output
    assert fleet.deploy(timeout=1500).changed() == []
