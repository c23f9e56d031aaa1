"""The environment of a host program: an HTTP server on loopback, and stand-ins for other programs."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.unit.waiting import HANG_S

FILES = Path(__file__).resolve().parents[2] / "files"
# Begins a command line of a host program, as its shebang line does on a host.
LAUNCH = (sys.executable, "-IB", str(FILES / "rigup-host"))


@dataclass
class Page:
    """An answer; `cut` sends only so many bytes of the body and then disconnects."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] | None = None
    cut: int | None = None


Answers = Callable[[str, str, bytes], Page]


@contextmanager
def site(answers: Answers) -> Iterator[str]:
    """Run a server that answers each (method, path, body) with `answers`; yield its address."""
    with site_with_headers(lambda method, path, body, headers: answers(method, path, body)) as url:
        yield url


@contextmanager
def site_with_headers(answers: Callable[[str, str, bytes, Mapping[str, str]], Page]) -> Iterator[str]:
    """Like `site`, for answers that also depend on the request's headers."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            page = answers(self.command, self.path, body, dict(self.headers))
            self.send_response(page.status)
            headers = dict(page.headers or {})
            headers.setdefault("Content-Length", str(len(page.body)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(page.body if page.cut is None else page.body[: page.cut])
            if page.cut is not None:
                self.close_connection = True

        do_GET = do_HEAD = do_POST = answer

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def program(directory: Path, name: str, script: str) -> None:
    """Write a stand-in for a tool: a shell script that also logs its command line to `NAME.calls`."""
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(f'#!/bin/sh\necho "$*" >> {shlex.quote(str(path))}.calls\n{script}\n')
    path.chmod(0o755)


def run_program(
    name: str, *arguments: str, tools: Path | None = None, timeout: float = HANG_S, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a host program as a host does, with the stand-ins in `tools` first on the PATH."""
    path = f"{tools}:{os.environ['PATH']}" if tools else os.environ["PATH"]
    # Host programs must not use this machine's proxy.
    kept = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    return subprocess.run(
        [*LAUNCH, name, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**kept, "PATH": path, **env},
    )
