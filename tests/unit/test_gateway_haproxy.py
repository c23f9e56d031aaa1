"""The gateway in front of an endpoint, with a real HAProxy: who is let through, and what strangers can use up."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import resource
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler
from typing import ClassVar

import h11
import pytest

from rigup.paths import BALANCERS, GATEWAY_LUA, draining, engine_listener
from rigup.render.gateway import READINESS, config_text, kernel_form
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
BALANCER = "fedcba9876543210" * 4
SECRET = f"Authorization: Bearer {KEY}\r\n"
PUBLIC = {"listen": "192.0.2.20", "allowed_networks": ["192.0.2.0/24"]}


def sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


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


class Server(ThreadingHTTPServer):
    """Lets another socket of its user listen beside it."""

    allow_reuse_port = True


class Recorder(BaseRequestHandler):
    """Answers every request and keeps them; reads them as uvicorn does, which engines have as their server."""

    received: ClassVar[list[tuple[str, str]]] = []

    def handle(self) -> None:
        # A request that was cut off is not one.
        with suppress(h11.RemoteProtocolError, ConnectionError):
            self._serve()

    def _serve(self) -> None:
        connection = h11.Connection(h11.SERVER)
        while connection.our_state is h11.IDLE:
            event: object = h11.NEED_DATA
            while not isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                if event is h11.NEED_DATA:
                    connection.receive_data(self.request.recv(1 << 16))
                event = connection.next_event()
                if isinstance(event, h11.Request):
                    self.received.append((event.method.decode(), event.target.decode()))
            if isinstance(event, h11.ConnectionClosed):
                return
            answer = h11.Response(status_code=200, headers=[("Content-Length", "0")])
            self.request.sendall((connection.send(answer) or b"") + (connection.send(h11.EndOfMessage()) or b""))
            if connection.our_state is h11.DONE is connection.their_state:
                connection.start_next_cycle()


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[int]:
    """The port of a gateway in front of a Recorder."""
    Recorder.received.clear()
    with gateway_to(tmp_path, engines=Recorder) as port:
        yield port


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[int]:
    """The port of a gateway on OWN_ADDRESS that allows all of loopback, in front of an engine of this user."""
    with gateway_to(tmp_path) as port:
        yield port


@contextmanager
def gateway_to(
    tmp_path: Path,
    recorded: str = "{uid} {inode}\n",
    engines: type[BaseRequestHandler] = Engine,
    balancers: tuple[str, ...] = (),
) -> Iterator[int]:
    """Run a gateway to an engine whose socket the readiness check has recorded like this.

    It admits load balancers at these addresses, whose key is BALANCER.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    engine = Server((OWN_ADDRESS, 0), engines)
    threading.Thread(target=engine.serve_forever, args=(0.01,), daemon=True).start()
    endpoint = plan(endpoints={"main": PUBLIC}).endpoint("main")
    key, config, port = tmp_path / "key", tmp_path / "gateway.cfg", free_port()
    key.write_text(f"{KEY}\n")
    [(inode, uid)] = listener.listening(f"http://{OWN_ADDRESS}:{engine.server_port}").items()
    (tmp_path / "listener").write_text(recorded.format(uid=uid, inode=inode))
    text = config_text(endpoint, balancers)
    (tmp_path / "balancers").write_text("".join(f"{each}={sha256(BALANCER)}\n" for each in balancers))
    found = {BALANCERS: str(tmp_path / "balancers"), draining("main"): str(tmp_path / "draining")} if balancers else {}
    for ours, here in found.items():
        assert ours in text
        text = text.replace(ours, here)
    for ours, here in {
        "192.0.2.20:8000": f"{OWN_ADDRESS}:{port}",
        "127.0.0.1:8000": f"{OWN_ADDRESS}:{engine.server_port}",
        " ".join(("192.0.2.0/24", *balancers, "192.0.2.20")): "127.0.0.0/8",
        endpoint.key_file: str(key),
        GATEWAY_LUA: str(FILES / "gateway.lua"),
        kernel_form("127.0.0.1", 8000): kernel_form(OWN_ADDRESS, engine.server_port),
        engine_listener("main"): str(tmp_path / "listener"),
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


@pytest.mark.parametrize(
    "recorded",
    ["", "{uid} 1{inode}\n", "1{uid} {inode}\n", "{uid} 1{inode}\n1{uid} {inode}\n", "{inode}\n"],
    ids=["nothing", "another socket", "another user", "both of others", "no user"],
)
def test_who_listens_in_place_of_the_engine_gets_no_request(tmp_path: Path, recorded: str) -> None:
    Engine.served = 0
    with gateway_to(tmp_path, recorded) as port:
        assert (status(port, KEYED), Engine.served) == ("503", 0)


def test_who_listens_after_the_engines_end_gets_no_request(tmp_path: Path) -> None:
    """It listens at the same address, as the same user."""
    Engine.served = 0
    with gateway_to(tmp_path) as port:
        assert (status(port, KEYED), Engine.served) == ("200", 1)
        # With the engine's unit systemd removes the record.
        (tmp_path / "listener").unlink()
        assert (status(port, KEYED), Engine.served) == ("503", 1)


def test_a_second_socket_at_the_engines_place_gets_no_request(tmp_path: Path) -> None:
    """The kernel would give it half of the connections."""
    with gateway_to(tmp_path) as port, socket.socket() as second:
        second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        found = re.search(r"server engine (\S+):(\d+)", (tmp_path / "gateway.cfg").read_text())
        assert found
        second.bind((found[1], int(found[2])))
        assert status(port, KEYED) == "200"
        second.listen()
        assert status(port, KEYED) == "503"


BALANCED = f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {BALANCER}\r\n"


def test_a_load_balancer_is_known_by_its_key_and_its_address(tmp_path: Path) -> None:
    with gateway_to(tmp_path, balancers=("127.0.0.7", "127.0.0.8")) as port:
        assert status(port, BALANCED, "127.0.0.7") == "200"
        assert status(port, BALANCED, "127.0.0.8") == "200"
        assert status(port, BALANCED, "127.0.0.9") == "401"
        assert status(port, BALANCED.replace(BALANCER, sha256(BALANCER)), "127.0.0.7") == "401"
        assert status(port, "GET /v1/models HTTP/1.1\r\nHost: x\r\n", "127.0.0.7") == "401"
        assert status(port, KEYED, "127.0.0.9") == "200"


def test_an_endpoint_that_drains_says_so_to_load_balancers_and_serves_on(tmp_path: Path) -> None:
    ready = f"GET {READINESS} HTTP/1.1\r\nHost: x\r\n"
    health = "GET /health HTTP/1.1\r\nHost: x\r\n"
    with gateway_to(tmp_path, engines=Recorder, balancers=("127.0.0.7",)) as port:
        Recorder.received.clear()
        assert status(port, ready) == "200"
        assert Recorder.received == [("GET", "/health")]
        (tmp_path / "draining").touch()
        assert [status(port, each, "127.0.0.7") for each in (ready, health, BALANCED)] == ["503", "200", "200"]
        (tmp_path / "draining").unlink()
        assert status(port, ready) == "200"


def test_a_load_balancer_is_told_last_that_the_engine_does_not_listen(tmp_path: Path) -> None:
    """It asks again and again, and may choose this endpoint until a health check has failed."""
    with gateway_to(tmp_path, "", balancers=("127.0.0.7",)) as port, asked(port, BALANCED, "127.0.0.7") as waiting:
        assert status(port, f"GET {READINESS} HTTP/1.1\r\nHost: x\r\n", "127.0.0.7") == "503"
        assert status(port, KEYED, "127.0.0.9") == "503"
        assert waiting.recv(1 << 16).split(b" ")[1] == b"503"


def test_without_a_load_balancer_a_gateway_knows_nothing_of_it(tmp_path: Path) -> None:
    with gateway_to(tmp_path) as port:
        assert status(port, f"GET {READINESS} HTTP/1.1\r\nHost: x\r\n") == "401"


METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", "GETS", "SSTP_DUPLEX")
HEALTH = ("/health", "/health?x=/v1/models", "http://x/health")
PATHS = (
    *HEALTH, "/", "*", "x:80", "health", "//health", "/health/", "/health/v1/models", "/health/../v1/models",
    "/./health", "/v1/../health", "/%68ealth", "/health%2f..%2fv1", "/health%00", "/health;x", "/health%3f", "/Health",
    "/healthz", "/health.", "/health%20", "/?/health", "http://health/", "http:///health/", "http://x/v1/models",
    "/v1/models", "//v1/models", "/v1//models", "/V1/models", "/v1/chat/completions", "/metrics", "/docs",
    "/openapi.json",
)  # fmt: skip
VERSIONS = ("HTTP/1.1", "HTTP/1.0", "HTTP/2.0")


def test_without_the_key_only_the_health_check_reaches_the_engine(recorded: int) -> None:
    assert len(METHODS) * len(PATHS) * len(VERSIONS) == 1224
    for method, path, version in itertools.product(METHODS, PATHS, VERSIONS):
        passes = method == "GET" and path in HEALTH
        said = answer(recorded, f"{method} {path} {version}\r\nHost: x\r\n").split(b" ")[1:2]
        assert said == [b"200"] if passes else said in ([], [b"400"], [b"401"], [b"505"]), (method, path, version, said)
    assert set(Recorder.received) == {("GET", path) for path in HEALTH}


SMUGGLED = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
LENGTH, CHUNKED = f"Content-Length: {len(SMUGGLED)}\r\n", "Transfer-Encoding: chunked\r\n"
CHUNK = f"{len(SMUGGLED):x}\r\n{SMUGGLED}\r\n0\r\n\r\n"
LAST = f"0\r\n\r\n{SMUGGLED}"
# Headers of a request, and what follows them.
SMUGGLING = [
    ("", SMUGGLED),
    (LENGTH, SMUGGLED),
    (CHUNKED, CHUNK),
    (CHUNKED, LAST),
    (LENGTH + CHUNKED, LAST),
    (CHUNKED + LENGTH, LAST),
    ("Content-Length: 0\r\n" + LENGTH, SMUGGLED),
    (LENGTH + "Content-Length: 0\r\n", SMUGGLED),
    (f"Content-Length: 0, {len(SMUGGLED)}\r\n", SMUGGLED),
    (f"Content-Length: +{len(SMUGGLED)}\r\n", SMUGGLED),
    (f"Content-Length: 0x{len(SMUGGLED):x}\r\n", SMUGGLED),
    ("Content-Length: -1\r\n", SMUGGLED),
    ("Content-Length: 99999999999999999999\r\n", SMUGGLED),
    (f"Content-Length : {len(SMUGGLED)}\r\n", SMUGGLED),
    (f"Content-Length:\r\n {len(SMUGGLED)}\r\n", SMUGGLED),
    (f"Content_Length: {len(SMUGGLED)}\r\n", SMUGGLED),
    (f"X: x\n{LENGTH}", SMUGGLED),
    (f"X: x\r{LENGTH}", SMUGGLED),
    (f"{LENGTH}Connection: content-length\r\n", SMUGGLED),
    ("Transfer-Encoding : chunked\r\n", LAST),
    ("Transfer-Encoding: xchunked\r\n", LAST),
    ("Transfer-Encoding: chunked, identity\r\n", LAST),
    ("Transfer-Encoding: \x0bchunked\r\n", LAST),
    (f"Transfer-Encoding: identity\r\n{CHUNKED}", LAST),
    (CHUNKED, f"0;a=b\n\r\n{SMUGGLED}"),
    (CHUNKED, f"100000000000000000\r\n\r\n{SMUGGLED}"),
    ("Connection: upgrade, http2-settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n", SMUGGLED),
]


def test_no_second_request_hides_in_another_one(recorded: int) -> None:
    assert len(SMUGGLING) == 27
    for first, path in ((f"POST /own HTTP/1.1\r\n{SECRET}", "/own"), ("GET /health HTTP/1.1\r\n", "/health")):
        for headers, after in SMUGGLING:
            with socket.create_connection((OWN_ADDRESS, recorded), HANG_S) as connection:
                connection.sendall(f"{first}Host: x\r\n{headers}\r\n{after}".encode())
                connection.shutdown(socket.SHUT_WR)
                # To the end, which comes once everything was answered or refused.
                for _ in iter(lambda: connection.recv(1 << 16), b""):
                    pass
        assert path in {target for _, target in Recorder.received}
    assert {target for _, target in Recorder.received} == {"/own", "/health"}


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_the_wait_for_an_engine_sees_the_sockets_that_the_gateway_sees(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as held:
        held.bind((address, 0))
        port = held.getsockname()[1]
        url = f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"
        assert listener.listening(url) == {}
        held.listen()
        assert listener.listening(url) == {os.fstat(held.fileno()).st_ino: os.geteuid()}
        table = Path("/proc/net/tcp6" if ":" in address else "/proc/net/tcp").read_text()
        assert f" {kernel_form(address, port)} " in table
