"""A cache of other servers' files: stored completely or not at all, served while they arrive, stale if necessary.

Safe for many threads and for several processes on the same directory.
"""

import contextlib
import json
import os
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from email.utils import formatdate, mktime_tz, parsedate_tz
from pathlib import Path
from typing import BinaryIO

import httpx

CHUNK = 256 * 1024
RETRY_AFTER = 30.0
"""For this many seconds an unreachable server is not asked again about a stored file."""


class UpstreamError(Exception):
    """The file is unavailable; `status` is the HTTP status to answer with, the message says why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class _Record:
    """Metadata of a stored file, in a file next to it."""

    checked: float
    etag: str = ""
    modified: str = ""
    content_type: str = "application/octet-stream"


class Transfer:
    """A file that is in the cache or being downloaded: read it from the start while the rest arrives."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # Named after this process, since another may download the same file.
        self._part = path.with_name(f"{path.name}.{os.getpid()}.part")
        self._changed = threading.Condition()
        self._settled = False
        self._ended = False
        self._arrived = 0
        self.length: int | None = None
        self.record = _Record(0)
        self.error: UpstreamError | None = None

    def _note(self, arrived: int | None = None, *, settled: bool = False, ended: bool = False) -> None:
        with self._changed:
            self._arrived = self._arrived if arrived is None else arrived
            self._settled |= settled or ended
            self._ended |= ended
            self._changed.notify_all()

    def wait_for_headers(self) -> None:
        """Wait for the response's headers. Raises UpstreamError when the file is unavailable."""
        with self._changed:
            self._changed.wait_for(lambda: self._settled)
        if self.error is not None:
            raise self.error

    def wait(self) -> Path:
        """Wait for the whole file and return its path. Raises UpstreamError when the download failed."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended)
        if self.error is not None:
            raise self.error
        return self._path

    def chunks(self) -> Iterator[bytes]:
        """Yield the content as it arrives. Raises UpstreamError when it ends early."""
        self.wait_for_headers()
        position = 0
        with self._open() as file:
            while True:
                with self._changed:
                    while self._arrived <= position and not self._ended:
                        self._changed.wait()
                    ended = self._ended
                while block := file.read(CHUNK):
                    position += len(block)
                    yield block
                if ended:
                    break
        if self.error is not None:
            raise self.error

    def _open(self) -> BinaryIO:
        try:
            return self._part.open("rb")
        except FileNotFoundError:
            return self._path.open("rb")


def _record_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.meta")


def client(certificates: str | None = None) -> httpx.Client:
    """Return an HTTP client that trusts this machine's authorities (SSL_CERT_FILE and the system's store)."""
    context = ssl.create_default_context(cafile=certificates)
    return httpx.Client(verify=context, timeout=httpx.Timeout(30.0, connect=10.0), follow_redirects=True)


class Cache:
    """Files of other servers below a directory, by a key that the caller chooses."""

    def __init__(self, directory: Path, http: httpx.Client) -> None:
        self._directory = directory
        self._http = http
        self._lock = threading.Lock()
        self._running: dict[str, Transfer] = {}
        self._away: dict[str, float] = {}

    def get(self, key: str, url: str, max_age: float | None, accept: str = "*/*") -> Transfer:
        """Return the file at `url`, stored as `key`.

        After `max_age` seconds the server is asked whether the file changed; None means never.
        If it does not answer, the stored file is used.
        """
        path = self._directory / key
        with self._lock:
            if (running := self._running.get(key)) is not None:
                return running
            transfer = Transfer(path)
            record = _read_record(path)
            if record is not None and (max_age is None or self._fresh(record, max_age, url)):
                _stored(transfer, path, record)
                return transfer
            self._running[key] = transfer
        threading.Thread(target=self._fetch, args=(transfer, key, url, path, record, accept), daemon=True).start()
        return transfer

    def _fresh(self, record: _Record, max_age: float, url: str) -> bool:
        away = time.monotonic() - self._away.get(httpx.URL(url).host, -RETRY_AFTER) < RETRY_AFTER
        return away or time.time() - record.checked < max_age

    def _fetch(self, transfer: Transfer, key: str, url: str, path: Path, record: _Record | None, accept: str) -> None:
        try:
            self._receive(transfer, url, path, record, accept)
        except UpstreamError as error:
            transfer.error = error
        except (httpx.HTTPError, OSError) as error:
            transfer.error = UpstreamError(502, f"{url}: {type(error).__name__}: {error}")
        finally:
            with self._lock:
                self._running.pop(key, None)
            transfer._part.unlink(missing_ok=True)
            transfer._note(ended=True)

    def _receive(self, transfer: Transfer, url: str, path: Path, record: _Record | None, accept: str) -> None:
        headers = {"Accept": accept, "Accept-Encoding": "identity"}
        if record is not None and record.etag:
            headers["If-None-Match"] = record.etag
        if record is not None and record.modified:
            headers["If-Modified-Since"] = record.modified
        try:
            with self._http.stream("GET", url, headers=headers) as response:
                if record is not None and (response.status_code == 304 or response.status_code >= 500):
                    self._keep(transfer, path, record)
                elif response.status_code != 200:
                    raise UpstreamError(
                        404 if response.status_code in (401, 403, 404, 410) else 502,
                        f"{url}: answered {response.status_code} {response.reason_phrase}",
                    )
                else:
                    self._store(transfer, path, response)
        except httpx.TransportError:
            # If nothing arrived yet, use the stored file; otherwise the transfer has failed half way.
            if record is None or transfer._settled:
                raise
            self._away[httpx.URL(url).host] = time.monotonic()
            _stored(transfer, path, record)

    def _keep(self, transfer: Transfer, path: Path, record: _Record) -> None:
        record.checked = time.time()
        _write_record(path, record)
        _stored(transfer, path, record)

    def _store(self, transfer: Transfer, path: Path, response: httpx.Response) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        announced = response.headers.get("content-length")
        transfer.length = int(announced) if announced is not None else None
        transfer.record = _Record(
            time.time(),
            response.headers.get("etag", ""),
            response.headers.get("last-modified", formatdate(usegmt=True)),
            response.headers.get("content-type", "application/octet-stream"),
        )
        arrived = 0
        with transfer._part.open("wb", buffering=0) as file:
            transfer._note(settled=True)
            for block in response.iter_raw():
                file.write(block)
                arrived += len(block)
                transfer._note(arrived)
        # httpx raises if fewer bytes arrive than announced.
        transfer.length = arrived
        parsed = parsedate_tz(transfer.record.modified)
        if parsed is not None:
            os.utime(transfer._part, (time.time(), mktime_tz(parsed)))
        # Remove the record first: a file with a record is complete.
        _record_file(path).unlink(missing_ok=True)
        transfer._part.replace(path)
        _write_record(path, transfer.record)


def _stored(transfer: Transfer, path: Path, record: _Record) -> None:
    transfer.record = record
    transfer.length = path.stat().st_size
    transfer._note(transfer.length, ended=True)


def _read_record(path: Path) -> _Record | None:
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError, TypeError):
        record = _Record(**json.loads(_record_file(path).read_text()))
        return record if path.is_file() else None
    return None


def _write_record(path: Path, record: _Record) -> None:
    beside = path.with_name(f"{path.name}.meta.new")
    beside.write_text(json.dumps(asdict(record)))
    beside.replace(_record_file(path))
