"""The gateway in front of an endpoint, with a real HAProxy: who is let through, and what strangers can use up."""

from __future__ import annotations

import os
import pwd
import resource
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rigup.paths import GATEWAY_LUA
from rigup.render.gateway import config_text, kernel_form
from rigup.resources import FILES
from rigup_host import listener
from tests.unit.own_address import OWN_ADDRESS, free_port, is_open
from tests.unit.sample import plan
from tests.unit.waiting import HANG_S, until

HAPROXY = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
pytestmark = pytest.mark.skipif(
    HAPROXY is None or resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 16_000,
    reason="haproxy is not installed, or may not have so many connections",
)
KEY = "0123456789abcdef" * 4
SECRET = f"Authorization: Bearer {KEY}\r\n"
PUBLIC = {"listen": "192.0.2.20", "allowed_networks": ["192.0.2.0/24"]}


class Engine(BaseHTTPRequestHandler):
    """Answers every request."""

    served = 0

    def do_GET(self) -> None:
        Engine.served += 1
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[int]:
    """The port of a gateway on OWN_ADDRESS that allows all of loopback, in front of an engine of this user."""
    with gateway_to(tmp_path, pwd.getpwuid(os.geteuid()).pw_name) as port:
        yield port


@contextmanager
def gateway_to(tmp_path: Path, user: str) -> Iterator[int]:
    """Run a gateway that expects the engine to run as `user`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    engine = ThreadingHTTPServer((OWN_ADDRESS, 0), Engine)
    threading.Thread(target=engine.serve_forever, args=(0.01,), daemon=True).start()
    endpoint = plan(endpoints={"main": PUBLIC}).endpoint("main")
    key, config, port = tmp_path / "key", tmp_path / "gateway.cfg", free_port()
    key.write_text(f"{KEY}\n")
    text = config_text(endpoint)
    for ours, here in {
        "192.0.2.20:8000": f"{OWN_ADDRESS}:{port}",
        "127.0.0.1:8000": f"{OWN_ADDRESS}:{engine.server_port}",
        "192.0.2.0/24 192.0.2.20": "127.0.0.0/8",
        endpoint.key_file: str(key),
        GATEWAY_LUA: str(FILES / "gateway.lua"),
        kernel_form("127.0.0.1", 8000): kernel_form(OWN_ADDRESS, engine.server_port),
        "-m str root": f"-m str {user}",
        "    user haproxy\n    group haproxy\n": "",
    }.items():
        assert ours in text
        text = text.replace(ours, here)
    config.write_text(text)
    process = subprocess.Popen([str(HAPROXY), "-db", "-f", str(config)], stdout=subprocess.DEVNULL)
    try:
        until(lambda: is_open(port), lambda: process.poll() is None)
        yield port
    finally:
        process.kill()
        process.wait()
        engine.shutdown()
        engine.server_close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def asked(port: int, head: str, source: str = "127.0.0.1") -> socket.socket:
    connection = socket.create_connection((OWN_ADDRESS, port), HANG_S, (source, 0))
    connection.sendall(f"{head}\r\n".encode())
    return connection


def answer(port: int, head: str, source: str = "127.0.0.1") -> bytes:
    """The whole answer, up to the end of the connection."""
    with asked(port, head, source) as connection:
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def status(port: int, head: str, source: str = "127.0.0.1") -> str:
    with asked(port, head, source) as connection:
        return connection.recv(1 << 16).decode().split(" ")[1]


KEYED = f"GET /v1/models HTTP/1.1\r\nHost: x\r\n{SECRET}"


@pytest.mark.parametrize(
    "head",
    [
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n",
        "GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n",
        "GET /health HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n",
        "GET /health HTTP/1.1\r\nUnfinished: ",
    ],
    ids=["refused", "health", "chunked", "headers"],
)
def test_a_flood_of_requests_without_a_key_keeps_nobody_else_out(gateway: int, head: str) -> None:
    assert status(gateway, KEYED) == "200"
    with ExitStack() as stack:
        flood = [stack.enter_context(socket.socket()) for _ in range(4200)]
        for each in flood:
            each.setblocking(False)
            each.bind(("127.0.0.2", 0))
            each.connect_ex((OWN_ADDRESS, gateway))
        for each in flood:
            with suppress(OSError):
                each.sendall(f"{head}\r\n".encode())
        assert {status(gateway, KEYED, source) for source in ("127.0.0.1", "127.0.0.3") for _ in range(20)} == {"200"}


@pytest.mark.parametrize("head", ["GET /v1/models HTTP/1.1\r\nHost: x\r\n", "GET /health HTTP/1.1\r\nHost: x\r\n"])
def test_without_the_key_a_connection_ends_with_its_answer(gateway: int, head: str) -> None:
    assert (b"200" if "health" in head else b"401") in answer(gateway, head).splitlines()[0]


def test_one_connection_serves_many_requests_with_the_key(gateway: int) -> None:
    with asked(gateway, KEYED) as connection:
        for _ in range(3):
            received = b""
            while not received.endswith(b"\r\n\r\nok"):
                received += connection.recv(1 << 16)
            assert b" 200 " in received
            connection.sendall(f"{KEYED}\r\n".encode())


def test_http_2_is_not_spoken(gateway: int) -> None:
    assert b" 400 " in answer(gateway, "PRI * HTTP/2.0\r\n\r\nSM\r\n").splitlines()[0]


def test_who_listens_in_place_of_the_engine_gets_no_request(tmp_path: Path) -> None:
    """The listener runs as this user, and the engine would run as another one."""
    Engine.served = 0
    with gateway_to(tmp_path, "games") as port:
        assert (status(port, KEYED), Engine.served) == ("503", 0)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_the_wait_for_an_engine_knows_who_listens(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as held:
        held.bind((address, 0))
        port = held.getsockname()[1]
        url = f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"
        assert not listener.is_of(url, os.getpid())
        held.listen()
        assert listener.is_of(url, os.getpid())
        # No process has this number.
        assert not listener.is_of(url, 1 << 23)
        table = Path("/proc/net/tcp6" if ":" in address else "/proc/net/tcp").read_text()
        assert f" {kernel_form(address, port)} " in table


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a process of another user")
def test_somebody_elses_listener_is_not_the_engines() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held, subprocess.Popen(["sleep", "60"], user=65534) as other:
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        assert (listener.is_of(url, os.getpid()), listener.is_of(url, other.pid)) == (True, False)
        other.kill()
