"""rigup-host switch on a host behind load balancers: it stops nothing that still gets requests."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.unit.own_address import OWN_ADDRESS, free_port
from tests.unit.test_host_programs_switch import ASKED, OLD, Rig

PATH = "/rigup/servers"


class Teller(BaseHTTPRequestHandler):
    """A load balancer that tells what its script says next, and notes how the host is at that time."""

    server: LoadBalancer

    def do_GET(self) -> None:
        server = self.server
        flags = sorted(path.name for path in (server.rig.root / "run/rigup-draining").iterdir())
        server.noted.append((self.path, self.client_address[0], flags, sorted(server.rig.running_names())))
        text = json.dumps(server.script.pop(0) if len(server.script) > 1 else server.script[0]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


class LoadBalancer(HTTPServer):
    def __init__(self, rig: Balanced, script: list[Any]) -> None:
        super().__init__((OWN_ADDRESS, 0), Teller)
        self.rig, self.script, self.noted = rig, script, list[tuple[str, str, list[str], list[str]]]()


class Balanced(Rig):
    """A host whose endpoint `main` is behind load balancers."""

    def running_names(self) -> list[str]:
        return [path.name for path in self.running.iterdir()]

    def knows(self, *urls: str, timeout_s: float = 300) -> None:
        endpoints = {"main": {"name": "rig1:main", "address": "127.0.0.1"}}
        data = {"urls": urls, "endpoints": endpoints, "timeout_s": timeout_s}
        (self.root / "etc/rigup/load-balancers.json").write_text(json.dumps(data))

    @property
    def flags(self) -> list[Path]:
        return list((self.root / "run/rigup-draining").glob("*"))


def told(up: int, *running: int) -> dict[str, Any]:
    return {"rig1:main": {"up": up, "running": running}}


@contextmanager
def telling(rig: Balanced, *script: Any) -> Iterator[LoadBalancer]:
    server = LoadBalancer(rig, list(script))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def rig(tmp_path: Path) -> Balanced:
    made = Balanced.made(tmp_path / "rig", True)
    assert isinstance(made, Balanced)
    return made


@pytest.mark.parametrize("new_passes", [True, False])
def test_an_endpoint_is_stopped_once_no_load_balancer_has_requests_for_it(tmp_path: Path, new_passes: bool) -> None:
    rig = Balanced.made(tmp_path / "rig", new_passes)
    assert isinstance(rig, Balanced)
    units = sorted(f"llm@{name}.service" for name in OLD)
    with telling(rig, told(1, 2, 1), told(0, 0, 1), told(0, 0, 0)) as first, telling(rig, told(0, 0, 0)) as second:
        rig.knows(*(f"http://{OWN_ADDRESS}:{each.server_port}{PATH}" for each in (first, second)))
        done = rig.run(*ASKED)
        assert done.returncode == (0 if new_passes else 3), done.stdout + done.stderr
        assert [noted for noted in first.noted] == [(PATH, "127.0.0.1", ["main"], units)] * 3
        assert second.noted
    assert "draining main" in done.stdout
    assert done.stdout.index("drained after ") < done.stdout.index("stopping ")
    assert rig.flags == []


def test_requests_that_do_not_end_are_aborted_when_the_time_is_up(rig: Balanced) -> None:
    with telling(rig, told(0, 3, 0)) as balancer:
        rig.knows(f"http://{OWN_ADDRESS}:{balancer.server_port}{PATH}", timeout_s=0)
        done = rig.run(*ASKED)
    assert done.returncode == 0, done.stderr
    assert f"{OWN_ADDRESS} has 3 requests at rig1:main after 0 s: they will be aborted" in done.stdout
    assert rig.flags == []


@pytest.mark.parametrize(
    "answer",
    [None, {}, {"rig1:main": {"up": "x", "running": ["y"]}}],
)
def test_a_load_balancer_that_tells_nothing_keeps_no_host_from_its_switch(rig: Balanced, answer: Any) -> None:
    with telling(rig, answer) as balancer:
        rig.knows(f"http://{OWN_ADDRESS}:{balancer.server_port}{PATH}", f"http://{OWN_ADDRESS}:{free_port()}{PATH}")
        done = rig.run(*ASKED)
    assert done.returncode == 0, done.stderr
    assert rig.flags == []


def test_without_load_balancers_nothing_is_drained(rig: Balanced) -> None:
    done = rig.run(*ASKED)
    assert done.returncode == 0, done.stderr
    assert "drain" not in done.stdout
