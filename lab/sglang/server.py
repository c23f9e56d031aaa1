"""SGLang's HTTP server, as far as chat clients use it."""

from __future__ import annotations

import json
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .answers import BadRequest, chunks, completion, reply

WARM_UP_S = 0.5


@dataclass
class Served:
    """The served model: `context` in tokens, `key` the API key or None.

    `own_template` is whether a chat template was given, `has_metrics` whether metrics were enabled.
    """

    name: str
    context: int
    parses_tools: bool
    parses_reasoning: bool
    key: str | None = None
    own_template: bool = False
    has_metrics: bool = False
    ready: threading.Event = field(default_factory=threading.Event)

    def card(self) -> dict[str, Any]:
        card = {"id": self.name, "object": "model", "created": int(time.time()), "owned_by": "sglang"}
        return card | {"root": self.name, "parent": None, "max_model_len": self.context}

    def metrics(self) -> str:
        """Return those of a scheduler without work (sglang/srt/observability/metrics_collector.py)."""
        labels = f'{{engine_type="unified",model_name="{self.name}",moe_ep_rank="0",pp_rank="0",tp_rank="0"}}'
        names = ("num_running_reqs", "num_queue_reqs", "token_usage", "gen_throughput")
        return "".join(f"sglang:{name}{labels} 0.0\n" for name in names)


def error(message: str, kind: str, code: int) -> dict[str, Any]:
    """Return an error in SGLang's format."""
    return {"object": "error", "message": message, "type": kind, "param": None, "code": code}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "uvicorn"
    server: Server

    def do_GET(self) -> None:
        if self.refused():
            return
        path, served = self.path.partition("?")[0], self.server.served
        if path in ("/health", "/health_generate", "/ready"):
            self.send(200 if served.ready.is_set() else 503, b"")
        elif path == "/metrics" and served.has_metrics:
            self.send(200, served.metrics().encode(), "text/plain; version=0.0.4; charset=utf-8")
        elif path == "/v1/models":
            self.json(200, {"object": "list", "data": [served.card()]})
        elif path == f"/v1/models/{served.name}":
            self.json(200, served.card())
        elif path.startswith("/v1/models/"):
            message = f"The model '{path.removeprefix('/v1/models/')}' does not exist"
            kind = {"type": "invalid_request_error", "param": "model", "code": "model_not_found"}
            self.json(404, {"error": {"message": message, **kind}})
        elif path == "/v1/chat/completions":
            self.json(405, error("Method Not Allowed", "405", 405))
        else:
            self.json(404, error("Not Found", "404", 404))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.refused():
            return
        if self.path.partition("?")[0] != "/v1/chat/completions":
            self.json(404, error("Not Found", "404", 404))
            return
        served = self.server.served
        try:
            chat = self.chat(body)
            said = reply(
                chat,
                parses_tools=served.parses_tools,
                parses_reasoning=served.parses_reasoning,
                own_template=served.own_template,
            )
        except BadRequest as bad:
            self.json(400, error(str(bad), bad.kind, 400))
            return
        model = str(chat.get("model") or "default")
        if chat.get("stream"):
            usage = bool((chat.get("stream_options") or {}).get("include_usage"))
            self.stream([json.dumps(chunk) for chunk in chunks(said, model, usage)])
        else:
            self.json(200, completion(said, model))

    def chat(self, body: bytes) -> dict[str, Any]:
        """Parse the request. Raises BadRequest unless it is a JSON object."""
        kind = (self.headers.get("Content-Type") or "").split(";")[0].strip().lower()
        if kind != "application/json":
            raise BadRequest("Unsupported Media Type: Only 'application/json' is allowed", "Bad Request")
        try:
            chat = json.loads(body)
        except ValueError as bad:
            raise BadRequest(f"JSON decode error: {bad}", "Bad Request") from bad
        if not isinstance(chat, dict):
            raise BadRequest("Input should be a valid dictionary", "Bad Request")
        return chat

    def refused(self) -> bool:
        """Answer 401 and return True if a key is required and missing; health checks need none."""
        key, given = self.server.served.key, self.headers.get("Authorization") or ""
        if key is None or self.path.startswith(("/health", "/ready", "/metrics")):
            return False
        kind, _, token = given.partition(" ")
        if kind.lower() == "bearer" and secrets.compare_digest(token.encode(), key.encode()):
            return False
        self.json(401, {"error": "Unauthorized"})
        return True

    def json(self, status: int, answer: Any) -> None:
        self.send(status, json.dumps(answer).encode(), "application/json")

    def stream(self, lines: list[str]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in [*lines, "[DONE]"]:
            data = f"data: {line}\n\n".encode()
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def send(self, status: int, body: bytes, kind: str | None = None) -> None:
        self.send_response(status)
        if kind:
            self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        print(f"INFO:     {self.client_address[0]} - {format % args}", flush=True)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], served: Served):
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, Handler)
        self.served = served


def serve(host: str, port: int, served: Served, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM."""
    server = Server((host, port), served)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    say(f"Uvicorn running on http://{host}:{port} (Press CTRL+C to quit)")

    def warm_up() -> None:
        served.ready.set()
        say("The server is fired up and ready to roll!")

    threading.Timer(WARM_UP_S, warm_up).start()
    server.serve_forever()
