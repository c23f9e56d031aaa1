"""The mirror's HTTP server: the lab's own repositories from disk, Debian's and Python's packages passed through.

usage: python -m lab.mirror.server --address A --port P --www DIR --cache DIR
"""

import argparse
import mimetypes
import sys
from dataclasses import replace
from email.utils import formatdate, mktime_tz, parsedate_tz
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lab.mirror import upstreams
from lab.mirror.identity import greeting
from lab.mirror.passthrough import CHUNK, Cache, Transfer, UpstreamError, client
from lab.mirror.pypi import Index, normalise, render

DISTS_MAX_AGE = 120.0
"""Seconds before Debian's indexes are revalidated; packages and by-hash indexes never change."""


class Mirror(ThreadingHTTPServer):
    """Serves `www` (the lab's own repositories) and, through `cache`, the servers in `sources`."""

    daemon_threads = True
    # Every host's apt opens several connections at once.
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], www: Path, cache: Path, sources: upstreams.Upstreams) -> None:
        super().__init__(address, Handler)
        self.www = www
        self.cache = Cache(cache, client(sources.certificates))
        self.index = Index(sources.pypi, self.cache)
        self.greeting = greeting()
        self.debian = {"debian": sources.debian, "debian-security": sources.debian_security}


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Mirror
    protocol_version = "HTTP/1.1"
    timeout = 120

    def do_GET(self) -> None:
        try:
            self._answer()
        except UpstreamError as error:
            self.close_connection = True
            self.log_message("%s", error)
            self.send_error(error.status, HTTPStatus(error.status).phrase, str(error))
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True

    do_HEAD = do_GET

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        # apt requests "./Packages" for a source with the suite "./".
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise UpstreamError(404, f"{path}: not there")
        if not parts:
            self._send_text(f"{self.server.greeting}\n")
        elif parts[:2] == ["ubuntu", "pool"] and parts[2:3] != ["lab"]:
            # The lab's Ubuntu offers Debian's packages.
            archive = "debian-security" if parts[2:3] == ["updates"] else "debian"
            self._send_transfer(self._debian(archive, "/".join(parts[1:])))
        elif parts[0] in self.server.debian and len(parts) > 1:
            self._send_transfer(self._debian(parts[0], "/".join(parts[1:])))
        elif parts[:2] == ["pypi", "simple"] and len(parts) == 3:
            self._send_index(parts[2], path)
        elif parts[:2] == ["pypi", "files"] and len(parts) == 4:
            self._send_python_file(parts[2], parts[3])
        else:
            self._send_file(self.server.www.joinpath(*parts))

    def _debian(self, archive: str, path: str) -> Transfer:
        changing = path.startswith("dists/") and "/by-hash/" not in path
        url = f"{self.server.debian[archive]}/{path}"
        return self.server.cache.get(f"{archive}/{path}", url, DISTS_MAX_AGE if changing else None)

    def _send_index(self, project: str, path: str) -> None:
        name = normalise(project)
        if path != f"/pypi/simple/{name}/":
            self.send_response(HTTPStatus.MOVED_PERMANENTLY)
            self.send_header("Location", f"/pypi/simple/{name}/")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self._send_text(render(name, self.server.index.links(name), "/pypi/files"), "text/html; charset=utf-8")

    def _send_python_file(self, project: str, filename: str) -> None:
        link = self.server.index.find(project, filename)
        if urlsplit(link.url).scheme == "file":
            self._send_file(Path(unquote(urlsplit(link.url).path)))
        else:
            self._send_transfer(self.server.cache.get(f"pypi/files/{project}/{filename}", link.url, None))

    def _send_text(self, text: str, content_type: str = "text/plain; charset=utf-8") -> None:
        body = text.encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_transfer(self, transfer: Transfer) -> None:
        transfer.wait_for_headers()
        if transfer.length is None or "Range" in self.headers or self.command == "HEAD":
            self._send_file(transfer.wait(), transfer.record.content_type)
        elif self._unchanged(transfer.record.modified):
            self._send_unchanged()
        else:
            self._send_head(HTTPStatus.OK, transfer.length, transfer.record.modified, transfer.record.content_type)
            try:
                for chunk in transfer.chunks():
                    self.wfile.write(chunk)
            except UpstreamError as error:
                # The client knows the length, so it cannot take the truncated file for the whole.
                self.log_message("%s", error)
                self.close_connection = True

    def _send_file(self, path: Path, content_type: str | None = None) -> None:
        try:
            file = path.open("rb")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise UpstreamError(404, f"{urlsplit(self.path).path}: not there") from None
        with file:
            status = path.stat()
            modified = formatdate(status.st_mtime, usegmt=True)
            kind = content_type or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
            if self._unchanged(modified):
                return self._send_unchanged()
            start, end = self._range(status.st_size, modified)
            if start is None:
                self._send_head(HTTPStatus.OK, status.st_size, modified, kind)
                start, end = 0, status.st_size
            elif start >= status.st_size:
                self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
                self.send_header("Content-Range", f"bytes */{status.st_size}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            else:
                span = f"bytes {start}-{end - 1}/{status.st_size}"
                self._send_head(HTTPStatus.PARTIAL_CONTENT, end - start, modified, kind, span)
            if self.command != "HEAD":
                file.seek(start)
                while start < end and (block := file.read(min(CHUNK, end - start))):
                    self.wfile.write(block)
                    start += len(block)
        return None

    def _range(self, size: int, modified: str) -> tuple[int | None, int]:
        """Return the requested half-open span; None for the whole file (no range, an ignored or outdated one)."""
        unit, _, span = self.headers.get("Range", "").partition("=")
        first, dash, last = span.partition("-")
        if unit != "bytes" or not dash or "," in span or self.headers.get("If-Range", modified) != modified:
            return None, size
        if not first:
            return (max(0, size - int(last)), size) if last.isdigit() else (None, size)
        if not first.isdigit() or (last and not last.isdigit()):
            return None, size
        return int(first), min(int(last) + 1, size) if last else size

    def _unchanged(self, modified: str) -> bool:
        asked, have = parsedate_tz(self.headers.get("If-Modified-Since", "")), parsedate_tz(modified)
        return asked is not None and have is not None and mktime_tz(have) <= mktime_tz(asked)

    def _send_unchanged(self) -> None:
        self.send_response(HTTPStatus.NOT_MODIFIED)
        self.end_headers()

    def _send_head(self, status: HTTPStatus, length: int, modified: str, content_type: str, span: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(length))
        self.send_header("Last-Modified", modified)
        self.send_header("Accept-Ranges", "bytes")
        if span:
            self.send_header("Content-Range", span)
        self.end_headers()


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="lab.mirror.server")
    parser.add_argument("--address", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--www", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    options = parser.parse_args(arguments)
    sources = upstreams.find()
    sources = replace(sources, pypi=(f"file://{options.www / 'python'}", *sources.pypi))
    Mirror((options.address, options.port), options.www, options.cache, sources).serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
