"""The hub's HTTP server: sends the answers of `protocol` at a limited rate, with the faults it was told to simulate."""

import io
import json
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from lab.hub.answers import Answer, Refused, as_json
from lab.hub.faults import Faults, Rule
from lab.hub.protocol import Hub
from lab.hub.throttle import Throttle

STALL_S = 600


class HubServer(ThreadingHTTPServer):
    """Serves one `Hub`; `journal` gets one JSON line per answer."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self,
        address: tuple[str, int],
        hub: Hub,
        throttle: Throttle,
        version: str = "",
        faults: Faults | None = None,
        journal: Path | None = None,
    ) -> None:
        self.hub = hub
        self.throttle = throttle
        self.version = version
        self.faults = faults or Faults(None)
        self._journal = journal
        self._lock = threading.Lock()
        super().__init__(address, _Handler)

    def note(self, **what: object) -> None:
        if self._journal is not None:
            with self._lock, self._journal.open("a") as file:
                file.write(json.dumps(what) + "\n")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60
    server: HubServer

    def version_string(self) -> str:
        return f"rigup-hub/{self.server.version}" if self.server.version else "rigup-hub"

    def do_GET(self) -> None:
        self._send(self._answer(), body=True)

    def do_HEAD(self) -> None:
        self._send(self._answer(), body=False)

    def _answer(self) -> Answer:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        host = self.headers.get("Host") or "{}:{}".format(*self.server.server_address[:2])
        try:
            answer = self.server.hub.answer(
                self.path, host, token if scheme == "Bearer" and token else None, self.headers.get("Range")
            )
        except Refused as refused:
            headers = {"X-Error-Message": refused.message}
            if refused.code:
                headers["X-Error-Code"] = refused.code
            return as_json({"error": refused.message}, refused.status, headers)
        return self._with_faults(answer)

    def _with_faults(self, answer: Answer) -> Answer:
        """Return the answer with the faults that apply before any content is sent."""
        take = self.server.faults.take
        if rule := take(("403", "429", "503"), answer.about):
            headers = {"Retry-After": rule.value or "1"} if rule.fault == "429" else {}
            return as_json({"error": "not now"}, HTTPStatus(int(rule.fault)), headers)
        if (rule := take(("moved",), answer.about)) and answer.about == "/api":
            content = json.loads(answer.body)
            return as_json({**content, "sha": rule.value} if isinstance(content, dict) else content)
        if rule := take(("etag",), answer.about):
            answer.headers |= {name: f'"{"0" * 64}"' for name in ("ETag", "X-Linked-ETag") if name in answer.headers}
        location = urlsplit(answer.headers.get("Location", ""))
        if location.netloc and (rule := take(("redirect",), answer.about)):
            answer.headers["Location"] = f"{rule.value}{location.path}?{location.query}"
        return answer

    def _send(self, answer: Answer, *, body: bool) -> None:
        length = answer.length if answer.entry else len(answer.body)
        rule = None
        if body and answer.entry is not None:
            rule = self.server.faults.take(("cut", "truncate", "flip", "stall"), answer.about)
        if rule and rule.fault == "truncate":
            length = answer.length = length // 2
            answer.headers.pop("Content-Range", None)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        sent = self._send_body(answer, rule) if body else 0
        self.server.note(
            method=self.command,
            about=answer.about,
            status=answer.status,
            sent=sent,
            authorized="Authorization" in self.headers,
            client=self.client_address[0],
        )

    def _send_body(self, answer: Answer, rule: Rule | None) -> int:
        """Send the content; return how many bytes were sent."""
        if answer.entry is None:
            self.wfile.write(answer.body)
            return len(answer.body)
        sent = 0
        end = _end(answer, rule)
        with io.BytesIO(answer.body) if answer.body else answer.entry.source.open("rb") as source:
            source.seek(answer.start)
            for size in self.server.throttle.pieces(min(end, answer.length)):
                piece = source.read(size)
                if rule and rule.fault == "flip" and sent <= answer.length // 2 < sent + size:
                    place = answer.length // 2 - sent
                    piece = piece[:place] + bytes([piece[place] ^ 1]) + piece[place + 1 :]
                try:
                    self.wfile.write(piece)
                except (BrokenPipeError, ConnectionResetError, TimeoutError):
                    # The client disconnected.
                    self.close_connection = True
                    return sent
                sent += size
        if end < answer.length:
            self.close_connection = True
            if rule and rule.fault == "stall":
                self._wait_for_disconnect()
        return sent

    def _wait_for_disconnect(self) -> None:
        self.wfile.flush()
        self.connection.settimeout(STALL_S)
        began = time.monotonic()
        while time.monotonic() - began < STALL_S:
            try:
                if not self.connection.recv(1):
                    return
            except OSError:
                return


def _end(answer: Answer, rule: Rule | None) -> int:
    """Return after how many bytes of the answer to stop sending."""
    if answer.entry is None or rule is None or rule.fault not in ("cut", "stall"):
        return answer.length
    if rule.fault == "stall":
        return answer.length // 2
    return max(1, answer.entry.size // 10)
