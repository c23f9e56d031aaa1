"""Run a program in a network namespace with nothing in it but the stand-in engine, and record what it asks.

    unshare --net python -m tests.clients.engine --url URL --model NAME --record FILE -- PROGRAM ARGUMENT...

The engine obeys: `Reply with exactly: WORD` in a message, and `--call TOOL ARGUMENTS` once, if it is offered that tool.
FILE gets one JSON object for each request: method, path, headers and body. The exit code is the program's.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lab.standin_engine.server import Engine, Handler, Mind, said
from tests.clients.messages import as_chat, as_events, as_message

CONTEXT = 262144
THOUGHT = "I was told what to do."


class Obedient(Mind):
    """The stand-in's mind, for clients that bring tools and long prompts of their own."""

    def __init__(self, call: list[str] | None) -> None:
        super().__init__("none")
        self.ordered = call

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        messages = body["messages"]
        results = [said(message) for message in messages if message["role"] == "tool"]
        if results:
            return {"content": f"The tool answered: {results[-1]}", "reasoning": THOUGHT}
        offered = [entry["function"]["name"] for entry in body.get("tools") or ()]
        if self.ordered and self.ordered[0] in offered:
            return {"calls": [tuple(self.ordered)], "reasoning": THOUGHT}
        words = (re.search(r"Reply with exactly: (\w+)", said(message)) for message in messages)
        return {"content": next((word[1] for word in words if word), "I have no orders."), "reasoning": THOUGHT}


class Recording(Handler):
    """The stand-in's API, and Anthropic's Messages API as vLLM has it; every request is recorded."""

    record: Path

    def do_GET(self) -> None:
        self.note(None)
        super().do_GET()

    def do_HEAD(self) -> None:
        self.note(None)
        self.reply(404, b"")

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        body = json.loads(raw)
        self.note(body)
        path = self.path.partition("?")[0]
        if path == "/v1/chat/completions":
            self.rfile = io.BytesIO(raw)
            return super().do_POST()
        if path != "/v1/messages":
            return self.reply(404, b'{"detail": "Not Found"}')
        message = as_message(self.server.mind.answer(as_chat(body)), self.server.model)
        if not body.get("stream"):
            return self.reply(200, json.dumps(message).encode())
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        for event in as_events(message):
            self.wfile.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())

    def note(self, body: Any) -> None:
        """Append this request to the record."""
        headers = {name.lower(): value for name, value in self.headers.items()}
        line = json.dumps({"method": self.command, "path": self.path, "headers": headers, "body": body})
        with self.record.open("a") as file:
            file.write(f"{line}\n")

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: the output is the program's."""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--call", nargs=2)
    parser.add_argument("program", nargs="+")
    options = parser.parse_args()
    Recording.record = options.record
    address = urlsplit(options.url)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    if address.hostname != "127.0.0.1":
        # The address of the host, which is nowhere else in this namespace.
        subprocess.run(["ip", "address", "add", f"{address.hostname}/32", "dev", "lo"], check=True)
    engine = Engine((str(address.hostname), int(address.port or 80)), options.model, CONTEXT, "none", 0.0)
    engine.RequestHandlerClass = Recording
    engine.mind = Obedient(options.call)
    threading.Thread(target=engine.serve_forever, daemon=True).start()
    return subprocess.run(options.program, stdin=subprocess.DEVNULL).returncode


if __name__ == "__main__":
    sys.exit(main())
