"""The load balancer with a real HAProxy: who is let through, which endpoint gets what, and what a client is told."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rigup.config.load_balancer import ClientKey
from rigup.paths import BALANCER_CLIENTS, BALANCER_KEY, BALANCER_LUA
from rigup.plan.balancer import SERVERS_PATH, Backend, Balancer, Model
from rigup.render.balancer import BODY_BYTES, config_text
from rigup.render.gateway import READINESS
from rigup.resources import FILES
from tests.unit.own_address import OWN_ADDRESS, free_port, is_open
from tests.unit.waiting import HANG_S, until

HAPROXY = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
pytestmark = pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed")

OWN_KEY = "f" * 64
Body = bytes | Iterator[bytes]
KEYS = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("default", "agents", "slow", "few")}
CHAT = "/v1/chat/completions"
NAME, OTHER, ALIAS = "org/Model-1.5", "other", "fast"


class Endpoint(BaseHTTPRequestHandler):
    """The gateway of an endpoint, as far as the load balancer sees it."""

    protocol_version = "HTTP/1.1"
    server: Gateway

    def do_GET(self) -> None:
        if self.path == READINESS:
            return self.said(200 if self.server.ready else 503)
        self.server.seen.append(self)
        return self.said(200)

    def do_POST(self) -> None:
        self.body = self.whole()
        self.server.seen.append(self)
        if self.server.fails == "silently":
            self.close_connection = True
            return
        if self.server.fails:
            return self.said(int(self.server.fails))
        if self.headers["X-Holds"]:
            self.hold()
            return
        self.said(200)

    def whole(self) -> bytes:
        """Read the body, in pieces or not."""
        if self.headers["Transfer-Encoding"] != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"]))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def hold(self) -> None:
        """Begin an answer, and note the client's end."""
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        self.wfile.write(b"first")
        self.server.cancelled.append(self.connection.recv(1))

    def said(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(self.server.name)))
        self.end_headers()
        # A health check ends with its status.
        with suppress(ConnectionError):
            self.wfile.write(self.server.name.encode())

    def log_message(self, *_: object) -> None:
        pass


class Gateway(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, name: str) -> None:
        super().__init__((OWN_ADDRESS, 0), Endpoint)
        self.name, self.ready, self.fails = name, True, ""
        self.seen: list[Endpoint] = []
        self.cancelled: list[bytes] = []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


@dataclass
class World:
    """A load balancer at `port`, and the gateways behind it."""

    port: int
    gateways: dict[str, Gateway]
    log: Path

    def ask(
        self, path: str = CHAT, body: Any = None, key: str | None = "default", method: str = "POST", **headers: str
    ) -> tuple[int, str, dict[str, str]]:
        """Return status, text and headers of the answer."""
        data = b"" if method == "GET" else json.dumps(body if body is not None else chat()).encode()
        return self.sent(path, data, key, method, **headers)

    def sent(
        self,
        path: str,
        data: bytes | Iterator[bytes],
        key: str | None = "default",
        method: str = "POST",
        **headers: str,
    ) -> tuple[int, str, dict[str, str]]:
        connection = self.begun(path, data, key, method, **headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, text, {name.lower(): value for name, value in answer.getheaders()}

    def begun(
        self,
        path: str,
        data: bytes | Iterator[bytes],
        key: str | None = "default",
        method: str = "POST",
        **headers: str,
    ) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(OWN_ADDRESS, self.port, timeout=HANG_S)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            sent["Authorization"] = f"Bearer {KEYS.get(key, key)}"
        connection.request(method, path, data or None, sent)
        return connection

    def served(self, path: str = CHAT, body: Any = None, **headers: str) -> str:
        """Return which endpoint answers while no other request runs: a busy one may be passed over."""
        self.calm()
        status, name, _ = self.ask(path, body, **headers)
        assert status == 200, name
        return name

    def held(self, path: str, bodies: Iterable[Any]) -> list[http.client.HTTPResponse]:
        """Return the begun answers to requests that an endpoint holds until they are closed."""
        connections = [self.begun(path, json.dumps(body).encode(), X_Holds="yes") for body in bodies]
        # An answer that nobody refers to is closed.
        answers = [connection.getresponse() for connection in connections]
        assert [answer.read(5) for answer in answers] == [b"first"] * len(answers)
        return answers

    def calm(self) -> None:
        """Wait until no request runs."""
        until(lambda: not any(self.running().values()))

    def running(self) -> dict[str, int]:
        return {name: sum(each["running"]) for name, each in self.servers().items()}

    def servers(self, source: str = OWN_ADDRESS) -> dict[str, Any]:
        """What a host at this address is told about the endpoints."""
        connection = http.client.HTTPConnection(OWN_ADDRESS, self.port, timeout=HANG_S, source_address=(source, 0))
        connection.request("GET", SERVERS_PATH)
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return dict(answer)

    def code(self, *arguments: Any, **named: Any) -> tuple[int, str]:
        status, text, _ = self.ask(*arguments, **named)
        return status, json.loads(text)["error"]["code"]


def chat(content: Any = "hello", model: str = NAME, system: str = "be kind") -> dict[str, Any]:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": content}]
    return {"messages": messages, "model": model}


@contextmanager
def balanced(directory: Path) -> Iterator[World]:
    """Run a load balancer in front of three gateways, two of which serve the same model."""
    gateways = {name: Gateway(name) for name in ("rig1:main", "rig2:main", "rig2:small")}
    backends = {
        name: Backend(*name.split(":"), OWN_ADDRESS, each.server_port)  # type: ignore[misc]
        for name, each in gateways.items()
    }
    rules = {
        "default": ClientKey(),
        "agents": ClientKey(models=(ALIAS,)),
        "slow": ClientKey(requests_per_minute=2),
        "few": ClientKey(concurrency=1),
    }
    models = (
        Model(NAME, (backends["rig1:main"], backends["rig2:main"])),
        Model(OTHER, (backends["rig2:small"],)),
    )
    port = free_port()
    balancer = Balancer({"rig1": OWN_ADDRESS}, port, ("127.0.0.0/8",), models, {ALIAS: NAME}, rules)
    clients, key, config, log = (directory / name for name in ("clients", "key", "config", "log"))
    clients.write_text("".join(f"{hashlib.sha256(key.encode()).hexdigest()} {name}\n" for name, key in KEYS.items()))
    key.write_text(f"key {OWN_KEY}\n")
    text = config_text(balancer, "rig1")
    for ours, here in {
        BALANCER_CLIENTS: str(clients),
        BALANCER_KEY: str(key),
        BALANCER_LUA: str(FILES / "balancer.lua"),
        "    user haproxy\n    group haproxy\n": "",
        "inter 1s": "inter 50ms",
        "slowstart 30s": "",
    }.items():
        assert ours in text
        text = text.replace(ours, here)
    config.write_text(text)
    with log.open("w") as written:
        process = subprocess.Popen([str(HAPROXY), "-db", "-f", str(config)], stdout=written)
    try:
        until(lambda: is_open(port), lambda: process.poll() is None)
        yield World(port, gateways, log)
    finally:
        process.kill()
        process.wait()
        for each in gateways.values():
            each.shutdown()
            each.server_close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with balanced(tmp_path_factory.mktemp("balancer")) as world:
        yield world


@pytest.fixture
def world(shared: World) -> World:
    """The load balancer, with all gateways ready and nothing seen yet."""
    for each in shared.gateways.values():
        each.ready, each.fails = True, ""
        each.seen.clear()
        each.cancelled.clear()
    shared.calm()
    until(lambda: all(each["up"] for each in shared.servers().values()))
    return shared


# Keys


@pytest.mark.parametrize("key", [None, "wrong", OWN_KEY, ""])
@pytest.mark.parametrize("path", [CHAT, "/v1/models", f"/{NAME}/v1/models", "/metrics"])
def test_nothing_answers_without_a_key(world: World, key: str | None, path: str) -> None:
    assert world.code(path, key=key) == (401, "invalid_api_key")
    assert not any(each.seen for each in world.gateways.values())


def test_an_endpoint_gets_the_load_balancers_key_and_never_the_clients(world: World) -> None:
    assert world.ask()[0] == 200
    assert world.ask(key=None, x_api_key=KEYS["default"])[0] == 200
    seen = [request for each in world.gateways.values() for request in each.seen]
    assert [request.headers["Authorization"] for request in seen] == [f"Bearer {OWN_KEY}"] * 2
    assert [request.headers["x-api-key"] for request in seen] == [None] * 2


def test_a_key_lists_and_reaches_its_models_only(world: World) -> None:
    def listed(key: str) -> list[str]:
        return [card["id"] for card in json.loads(world.ask("/v1/models", key=key, method="GET")[1])["data"]]

    assert listed("default") == [ALIAS, NAME, OTHER]
    assert listed("agents") == [ALIAS, NAME]
    assert world.ask(body=chat(model=ALIAS), key="agents")[0] == 200
    assert world.code(body=chat(model=OTHER), key="agents") == (403, "model_not_allowed")
    assert world.code(f"/{OTHER}{CHAT}", key="agents") == (403, "model_not_allowed")
    assert world.ask(body=chat(model=OTHER))[1] == "rig2:small"


def test_a_key_has_so_many_requests_a_minute(world: World) -> None:
    assert [world.ask(key="slow")[0] for _ in range(4)] == [200, 200, 429, 429]
    status, text, headers = world.ask(key="slow")
    assert (status, json.loads(text)["error"]["code"], headers["retry-after"]) == (429, "rate_limit_exceeded", "30")
    assert world.ask()[0] == 200


def test_a_key_has_so_many_requests_at_the_same_time(world: World) -> None:
    connection = world.begun(CHAT, json.dumps(chat(model=OTHER)).encode(), "few", X_Holds="yes")
    answer = connection.getresponse()
    status, _, headers = world.ask(key="few")
    assert (status, headers["retry-after"]) == (429, "1")
    assert world.ask()[0] == 200
    answer.close()
    until(lambda: world.ask(key="few")[0] == 200)


# Models


def test_a_model_is_found_in_the_body_or_in_the_path(world: World) -> None:
    for name, path, model in (
        ("the body", CHAT, OTHER),
        ("the path", f"/{OTHER}{CHAT}", NAME),
        ("an alias in the path", f"/{ALIAS}{CHAT}", OTHER),
    ):
        for each in world.gateways.values():
            each.seen.clear()
        status, served, _ = world.ask(path, chat(model=model))
        assert status == 200
        assert served.endswith("main" if "alias" in name else "small"), name
        (request,) = world.gateways[served].seen
        assert request.path == CHAT


# As clients may write them; the name is always the outermost model.
FORMS = (
    '{"model": "NAME", "messages": [{"role": "user", "content": "hello"}]}',
    '{"messages": [{"role": "user", "content": "say \\"model\\": \\"fast\\""}], "model":"NAME"}',
    '{"tools": [{"model": "fast"}, ["model", "fast"]], "x": {"model": "fast"}, "model" : "NAME", "stream": true}',
    '{"not": "model", "a": ["model"], "b": "\\\\", "model": "NAME"}',
)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chunked", [False, True])
def test_an_engine_gets_the_models_own_name(world: World, form: str, chunked: bool) -> None:
    def got(path: str, name: str) -> str:
        for each in world.gateways.values():
            each.seen.clear()
        text = form.replace("NAME", name).encode()
        status, served, _ = world.sent(path, iter([text[:9], text[9:]]) if chunked else text)
        assert status == 200
        return world.gateways[served].seen[0].body.decode()

    own = form.replace("NAME", NAME)
    for path, name in ((CHAT, ALIAS), (CHAT, NAME), (f"/{NAME}{CHAT}", "anything"), (f"/{ALIAS}{CHAT}", ALIAS)):
        assert got(path, name) == own


def test_an_engine_gets_the_models_own_name_in_the_longest_body_and_at_the_second_try(world: World) -> None:
    rest = {"messages": [{"role": "user", "content": "long\n" * (BODY_BYTES // 2)}]}
    assert world.ask(body={"model": ALIAS, **rest})[0] == 200
    world.gateways["rig1:main"].fails = "silently"
    for number in range(4):
        assert world.served(body=chat(f"a try {number}", model=ALIAS)) == "rig2:main"
    seen = [json.loads(request.body) for each in world.gateways.values() for request in each.seen]
    assert {body["model"] for body in seen} == {NAME}
    assert rest["messages"] in [body["messages"] for body in seen]
    assert len(seen) > 5


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/messages"])
def test_every_kind_of_request_is_routed(world: World, path: str) -> None:
    assert world.ask(path, {"input": "x", "model": OTHER})[1] == "rig2:small"


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        (CHAT, chat(model="unknown"), (404, "model_not_found")),
        (CHAT, chat(model="' or 1"), (404, "model_not_found")),
        (CHAT, {"messages": []}, (400, "model_missing")),
        (CHAT, {"model": 7}, (404, "model_not_found")),
        ("/metrics", chat(), (404, "unknown_url")),
        (f"/{NAME}/metrics", chat(), (404, "unknown_url")),
        ("/unknown/v1/models", chat(), (404, "unknown_url")),
    ],
)
def test_what_names_no_model_is_refused(world: World, path: str, body: Any, expected: tuple[int, str]) -> None:
    assert world.code(path, body) == expected
    assert not any(each.seen for each in world.gateways.values())


def test_a_body_is_routed_up_to_the_stated_size_and_beyond_it_by_its_path(world: World) -> None:
    frame = len(json.dumps(chat("", model=OTHER)))
    assert world.ask(body=chat("x" * (BODY_BYTES - frame), model=OTHER))[1] == "rig2:small"
    long = chat("x" * 3 * BODY_BYTES, model=OTHER)
    status, text, _ = world.ask(body=long)
    assert (status, json.loads(text)["error"]["code"]) == (413, "request_too_large")
    assert "/MODEL/v1/" in json.loads(text)["error"]["message"]
    assert world.ask(f"/{OTHER}{CHAT}", long)[1] == "rig2:small"
    # Clients that send the model first.
    assert world.ask(body={"model": OTHER, **long})[1] == "rig2:small"


# Where a request goes


def test_a_conversation_stays_at_its_endpoint_and_conversations_spread(world: World) -> None:
    served: dict[int, set[str]] = {}
    for number in range(20):
        begin = chat(f"question {number}")
        for turn in range(3):
            begin["messages"] += [{"role": "assistant", "content": "yes"}, {"role": "user", "content": f"turn {turn}"}]
            served.setdefault(number, set()).add(world.served(body=begin))
    assert all(len(names) == 1 for names in served.values())
    assert {name for names in served.values() for name in names} == {"rig1:main", "rig2:main"}


@pytest.mark.parametrize(
    "opening",
    [
        {"messages": [{"role": "user", "content": "{}"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "{}"}]}]},
        {"input": "{}"},
        {"input": [{"role": "user", "content": "{}"}]},
        {"prompt": "{}"},
    ],
    ids=["chat", "parts", "input", "responses", "completions"],
)
def test_the_first_words_decide_in_every_kind_of_request(world: World, opening: dict[str, Any]) -> None:
    def served(number: int) -> str:
        words = json.dumps(opening).replace("{}", f"words {number}")
        return world.served(body=json.loads(words) | {"model": NAME})

    first = {number: served(number) for number in range(16)}
    assert set(first.values()) == {"rig1:main", "rig2:main"}
    assert first == {number: served(number) for number in range(16)}


def test_a_session_header_comes_first(world: World) -> None:
    served = {number: world.served(X_Session_Id=f"session {number}") for number in range(16)}
    assert set(served.values()) == {"rig1:main", "rig2:main"}
    for number, name in served.items():
        assert world.served(body=chat(f"another {number}"), X_Session_Id=f"session {number}") == name


def test_a_conversation_that_everybody_has_does_not_fill_one_endpoint(world: World) -> None:
    held = world.held(CHAT, [chat()] * 8)
    counts = [count for name, count in world.running().items() if name != "rig2:small"]
    assert sum(counts) == 8
    assert max(counts) <= 1.5 * sum(counts) / 2
    for answer in held:
        answer.close()


def test_requests_without_a_beginning_go_where_the_fewest_run(world: World) -> None:
    held = world.held(f"/{NAME}/v1/audio", [{"file": number} for number in range(4)])
    assert world.running() == {"rig1:main": 2, "rig2:main": 2, "rig2:small": 0}
    for answer in held:
        answer.close()


# Endpoints that come and go


@pytest.mark.parametrize("fails", ["silently", "502", "503"])
def test_a_request_that_an_endpoint_did_not_answer_goes_to_another(world: World, fails: str) -> None:
    world.gateways["rig1:main"].fails = fails
    assert {world.served(body=chat(f"{fails} {number}")) for number in range(8)} == {"rig2:main"}
    assert world.gateways["rig1:main"].seen, "the first was asked as well"


@pytest.mark.parametrize("fails", ["500", "400", "429"])
def test_an_answer_of_an_engine_is_passed_on(world: World, fails: str) -> None:
    world.gateways["rig2:small"].fails = fails
    assert world.ask(body=chat(model=OTHER))[:2] == (int(fails), "rig2:small")
    assert len(world.gateways["rig2:small"].seen) == 1


def test_an_endpoint_that_drains_gets_no_new_requests_and_finishes_its_own(world: World) -> None:
    held = world.held(CHAT, [chat(f"held {number}") for number in range(8)])
    gateway = world.gateways["rig1:main"]
    before = len(gateway.seen)
    assert before
    gateway.ready = False
    until(lambda: not world.servers()["rig1:main"]["up"])
    assert {world.ask(body=chat(f"new {number}"))[1] for number in range(8)} == {"rig2:main"}
    assert len(gateway.seen) == before == world.running()["rig1:main"]
    assert not gateway.cancelled
    for answer in held:
        answer.close()
    world.calm()


def test_without_an_endpoint_a_client_is_told_when_to_come_back(world: World) -> None:
    world.gateways["rig2:small"].ready = False
    until(lambda: not world.servers()["rig2:small"]["up"])
    status, text, headers = world.ask(body=chat(model=OTHER))
    assert (status, json.loads(text)["error"]["code"], headers["retry-after"]) == (503, "unavailable", "10")
    assert world.ask("/health", key=None, method="GET")[0] == 200
    for each in world.gateways.values():
        each.ready = False
    until(lambda: world.ask("/health", key=None, method="GET")[0] == 503)


def test_a_cancelled_request_is_cancelled_at_the_endpoint(world: World) -> None:
    gateway = world.gateways["rig2:small"]
    for answer in world.held(CHAT, [chat(model=OTHER)]):
        answer.close()
    until(lambda: gateway.cancelled == [b""])


def test_the_log_has_neither_prompts_nor_keys(world: World) -> None:
    world.ask(f"/{OTHER}{CHAT}?secret=query", chat("a planted prompt"), X_Session_Id="a planted session")
    world.ask(key="a-wrong-key", body=chat("another prompt"))
    lines = until_logged(world, 2)
    assert any(" key=default model=other backend=rig2:small status=200 " in line for line in lines)
    assert any(" key=- model=- backend=<NOSRV> status=401 " in line for line in lines)
    written = world.log.read_text()
    for secret in (*KEYS.values(), OWN_KEY, "planted", "prompt", "a-wrong-key", "secret"):
        assert secret not in written


def until_logged(world: World, count: int) -> list[str]:
    """The last lines of the log, once the request after these has been logged."""
    world.ask("/v1/models", method="GET", key="default")
    marks = world.log.read_text().count("GET /v1/models")
    until(lambda: world.log.read_text().count("GET /v1/models") >= max(1, marks))
    return world.log.read_text().splitlines()[-count - 2 :]


def test_nobody_outside_sees_which_endpoints_there_are(world: World) -> None:
    assert set(world.servers()) == {"rig1:main", "rig2:main", "rig2:small"}
    assert world.servers("127.0.0.9")["error"]["code"] == "invalid_api_key"
