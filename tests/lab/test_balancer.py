"""A load balancer in front of two hosts: streaming clients meet a rolling switch, a killed engine and a killed host.

The tests build on each other, in file order.
"""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from lab import machine, world
from lab.settings import SUBNET
from tests.lab.breaks import BALANCER_BREAKS
from tests.lab.rigs import Rigs, status_of
from tests.lab.standin import lock_trained_weights, project

FIRST, SECOND = "rig11", "rig12"
PORT, MODEL = 8080, "Qwen3.5-397B-A17B"
CLIENTS = 20
# Three seconds of an answer, at the stand-in's speed.
WORDS = 300


@dataclass
class Outcome:
    """What became of the requests of all clients: answered in full, cut after the first byte, or without an answer."""

    whole: int = 0
    cut: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


@dataclass
class Clients:
    """Clients that stream one answer after the other."""

    key: str
    address: str
    outcome: Outcome = field(default_factory=Outcome)
    streaming: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self, count: int = CLIENTS) -> Iterator[Outcome]:
        """Run until the block ends; each client ends the answer that it has begun. All stream when the block begins."""
        threads = [threading.Thread(target=self._ask, args=(number,), daemon=True) for number in range(count)]
        for thread in threads:
            thread.start()
        for _ in threads:
            self.streaming.acquire()
        try:
            yield self.outcome
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(300)
                assert not thread.is_alive(), "a client got neither an answer nor an error"

    def _ask(self, number: int) -> None:
        turn = 0
        while not self._stop.is_set():
            turn += 1
            self.one(f"I am {number}, and ask for the {turn}. time.")

    def one(self, greeting: str, model: str = MODEL) -> None:
        """Ask once."""
        words = f"{greeting} Count from 1 to {WORDS}."
        body = {"model": model, "stream": True, "messages": [{"role": "user", "content": words}]}
        text, status = "", 0
        connection = http.client.HTTPConnection(self.address, PORT, timeout=300)
        try:
            headers = {"Authorization": f"Bearer {self.key}"}
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            answer = connection.getresponse()
            status = answer.status
            while piece := answer.read1(65536):
                if not text:
                    self.streaming.release()
                text += piece.decode()
        except (OSError, http.client.HTTPException) as error:
            text += f" {error!r}"
        finally:
            connection.close()
        if status == 200 and text.endswith("data: [DONE]\n\n") and text.count("data: ") > WORDS:
            self.outcome.whole += 1
        elif status == 200 and text:
            self.outcome.cut.append(text[-300:])
        else:
            self.outcome.refused.append(f"{status} {text}")


@dataclass
class Fleet:
    rigs: Rigs

    @property
    def key(self) -> str:
        return machine.get(FIRST).shell("cat /etc/rigup/load-balancer/keys/default").stdout.strip()

    @property
    def url(self) -> str:
        return f"http://{machine.get(FIRST).address}:{PORT}"

    def clients(self) -> Clients:
        return Clients(self.key, machine.get(FIRST).address)

    def told(self) -> dict[str, Any]:
        """What the load balancer tells its own host of the endpoints."""
        return dict(json.loads(machine.get(FIRST).shell(f"curl -sS {self.url}/rigup/servers").stdout))

    def servers(self) -> dict[str, bool]:
        """Whether each endpoint gets requests."""
        return {name: bool(each["up"]) for name, each in self.told().items()}

    def until_busy(self, name: str) -> None:
        """Wait until a host has several requests at the same time."""
        while sum(self.told()[f"{name}:main"]["running"]) < 3:
            pass

    def until(self, **up: bool) -> None:
        """Wait until the load balancer sees these hosts so."""
        wanted = {f"{name}:main": is_up for name, is_up in up.items()}
        while not wanted.items() <= self.servers().items():
            pass


@pytest.fixture(scope="module")
def fleet(services: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    hosts = {name: machine.get(name) for name in (FIRST, SECOND)}
    try:
        for name, host in hosts.items():
            host.create(machine.Spec("trixie" if name == FIRST else "bookworm", 4, "root"))
        machine.write_known_hosts()
        ways = {name: {**world.connection(host), "endpoints": opened(host)} for name, host in hosts.items()}
        copy = project(tmp_path_factory.mktemp("project"))
        settings = {**world.defaults(), "cuda_toolkit": "off"}
        balancer = {
            "hosts": [FIRST],
            "port": PORT,
            "allowed_networks": [SUBNET],
            "aliases": {"fast": MODEL},
        }
        rigs = Rigs(tmp_path_factory.mktemp("balanced"), ways, settings, copy, {"load_balancer": balancer})
        lock_trained_weights(rigs)
        result = rigs.deploy(timeout=1500)
        assert result.code == 0, result.output
        yield Fleet(rigs)
    finally:
        for host in hosts.values():
            host.remove()
        machine.write_known_hosts()


def opened(host: machine.Host) -> dict[str, object]:
    """An endpoint that only the load balancer and its own host reach."""
    return {"main": {"listen": host.address, "allowed_networks": [f"{host.address}/32"]}}


def test_one_address_serves_the_endpoints_of_both_hosts(fleet: Fleet) -> None:
    assert fleet.servers() == {f"{FIRST}:main": True, f"{SECOND}:main": True}
    bearer = f"Authorization: Bearer {fleet.key}"
    assert status_of(f"{fleet.url}/v1/models") == "401"
    assert status_of(f"{fleet.url}/v1/models", bearer) == "200"
    for name in (FIRST, SECOND):
        # The control machine is not in the networks of the gateways.
        assert status_of(f"http://{machine.get(name).address}:8000/health") == "000"
    clients = fleet.clients()
    for model in (MODEL, "fast"):
        clients.one("Hello.", model)
    assert (clients.outcome.whole, clients.outcome.refused) == (2, [])
    again = fleet.rigs.deploy()
    assert again.code == 0, again.output
    assert again.changed() == []


def test_exactly_what_was_broken_is_found_and_the_deploy_repairs_it(fleet: Fleet) -> None:
    def findings() -> list[str]:
        told = json.loads(fleet.rigs.run("rigup", "audit", "--json", "--step", "balancer", "--step", "gateway").output)
        return sorted(f"{each['host']} {each['check']}" for each in told["checks"] if each["result"] == "finding")

    assert findings() == []
    for command in BALANCER_BREAKS.values():
        machine.get(FIRST).shell(command)
    assert findings() == [f"{FIRST} {check}" for check in sorted(BALANCER_BREAKS)]
    repaired = fleet.rigs.deploy()
    assert repaired.code == 0, repaired.output
    fleet.until(**{FIRST: True})
    assert findings() == []


def test_a_rolling_switch_fails_no_request(fleet: Fleet) -> None:
    fleet.rigs.write(recipe="standin-b")
    with fleet.clients().running() as outcome:
        result = fleet.rigs.deploy(timeout=1500)
    assert result.code == 0, result.output
    print(outcome.whole, result.output)
    assert (outcome.cut, outcome.refused) == ([], [])
    assert outcome.whole >= CLIENTS
    assert result.output.count("drained after ") == 2, result.output
    assert fleet.servers() == {f"{FIRST}:main": True, f"{SECOND}:main": True}


def test_of_a_killed_engine_only_begun_answers_are_cut(fleet: Fleet) -> None:
    second = machine.get(SECOND)
    with fleet.clients().running() as outcome:
        fleet.until_busy(SECOND)
        second.shell("docker kill llm-main")
        second.shell("until systemctl is-active --quiet llm@main; do sleep 0.2; done")
        fleet.until(**{SECOND: True})
    print(outcome.whole, len(outcome.cut), outcome.refused)
    assert outcome.refused == []
    assert 0 < len(outcome.cut) <= CLIENTS


def test_of_a_killed_host_only_begun_answers_are_cut(fleet: Fleet) -> None:
    with fleet.clients().running() as outcome:
        fleet.until_busy(SECOND)
        machine.get(SECOND).stop()
        fleet.until(**{SECOND: False})
        before = outcome.whole
        while outcome.whole < before + CLIENTS:
            pass
    print(outcome.whole, len(outcome.cut), outcome.refused)
    assert outcome.refused == []
    assert 0 < len(outcome.cut) <= CLIENTS
    machine.get(SECOND).start()
    fleet.until(**{SECOND: True})


def test_a_rebuild_leaves_nothing_of_the_load_balancer(fleet: Fleet) -> None:
    result = fleet.rigs.run("pyinfra", "inventory/lab.py", "rebuild.py", "-y", "--limit", FIRST, timeout=1500)
    assert result.code == 0, result.output
    left = "ls -d /etc/rigup /run/rigup-draining; nft list table inet rigup; systemctl is-active 'rigup-gateway@*'"
    assert machine.get(FIRST).shell(f"({left}) 2>/dev/null; true").stdout.split() == []
