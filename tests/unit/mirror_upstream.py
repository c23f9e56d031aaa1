"""An upstream server for the mirror: counts requests, and can break, change and disappear."""

import threading
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from lab.mirror.server import Mirror
from lab.mirror.upstreams import Upstreams

TIME = 1_700_000_000


@dataclass
class Upstream:
    """Files by path, each with a content type; `asked` counts requests, `truncated` paths end half way.

    The second half of a file is sent while `goes_on` is set.
    """

    files: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    answered_unchanged: Counter[str] = field(default_factory=Counter)
    truncated: set[str] = field(default_factory=set)
    goes_on: threading.Event = field(default_factory=threading.Event)
    url: str = ""
    server: Any = None
    away: bool = False

    def add(self, path: str, content: bytes, content_type: str = "application/octet-stream") -> None:
        self.files[path] = (content, content_type)

    def go_away(self) -> None:
        """Stop answering, also on open connections."""
        self.away = True
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def upstream() -> Iterator[Upstream]:
    """Run an upstream on loopback."""
    world = Upstream()
    world.goes_on.set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if world.away:
                self.close_connection = True
                return
            world.asked[self.path] += 1
            if self.path not in world.files:
                self.send_error(404)
                return
            content, content_type = world.files[self.path]
            etag = f'"{zlib.crc32(content)}"'
            if self.headers.get("If-None-Match") == etag:
                world.answered_unchanged[self.path] += 1
                self.send_response(304)
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", etag)
            self.send_header("Last-Modified", formatdate(TIME, usegmt=True))
            self.end_headers()
            half = len(content) // 2
            self.wfile.write(content[:half])
            world.goes_on.wait()
            if self.path in world.truncated:
                self.close_connection = True
                return
            self.wfile.write(content[half:])

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    world.server = server
    world.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield world
    finally:
        world.goes_on.set()
        server.shutdown()
        server.server_close()


@contextmanager
def mirror(directory: Path, sources: Upstreams) -> Iterator[Mirror]:
    """Run a mirror on loopback with `www` and `cache` below a directory."""
    (directory / "www").mkdir(parents=True, exist_ok=True)
    server = Mirror(("127.0.0.1", 0), directory / "www", directory / "cache", sources)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
