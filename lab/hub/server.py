"""The Hugging Face hub's HTTP protocol for models, as far as huggingface_hub 2.x downloads and verifies with it.

Answers, redirects and error headers follow the real hub: branch names resolve to a commit, small files come over a
redirect on the same host, LFS files over one to a content-addressed URL, and errors carry `X-Error-Code`. With `xet`
LFS files are announced as stored by xet as well, and `/cas` is the storage service (lab.hub.cas).
"""

import io
import json
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from lab.hub.answers import Answer, Refused, as_json, byte_range
from lab.hub.cas import Cas, file_id
from lab.hub.faults import Faults, Rule
from lab.hub.repository import Entry, Repository
from lab.hub.throttle import Throttle

_API = re.compile(r"/api/models/(?P<repository>[^/]+/[^/]+)(?:/(?P<verb>revision|tree)/(?P<revision>[^/]+))?")
_XET_TOKEN = re.compile(r"/api/models/(?P<repository>[^/]+/[^/]+)/xet-read-token/(?P<revision>[^/]+)")
_CACHED = re.compile(r"/api/resolve-cache/models/(?P<repository>[^/]+/[^/]+)/(?P<revision>[0-9a-f]{40})/(?P<path>.+)")
_RESOLVE = re.compile(r"/(?P<repository>[^/]+/[^/]+)/(?:resolve|raw)/(?P<revision>[^/]+)/(?P<path>.+)")
_CDN = re.compile(r"/cdn/(?P<repository>[^/]+/[^/]+)/(?P<revision>[0-9a-f]{40})/(?P<sha256>[0-9a-f]{64})")
STALL_S = 600


class Hub:
    """The hub's answers, apart from the connection they travel on."""

    def __init__(self, repositories: Sequence[Repository], xet: bool = False) -> None:
        self._repositories = {repository.name: repository for repository in repositories}
        self._by_sha256 = {
            entry.sha256: entry
            for repository in repositories
            for entry in repository.entries.values()
            if entry.sha256 is not None
        }
        self._cas = Cas(self._by_sha256.values()) if xet else None

    def answer(self, url: str, host: str, token: str | None, wanted: str | None) -> Answer:
        """The answer to a GET or HEAD of `url`. `wanted` is the Range header. Raises Refused."""
        parts = urlsplit(url)
        if self._cas and parts.path.startswith("/cas/"):
            return self._cas.answer(parts.path.removeprefix("/cas"), f"http://{host}/cas", token, wanted)
        if self._cas and (match := _XET_TOKEN.fullmatch(parts.path)):
            self._check_revision(self._open(match, token), unquote(match["revision"]))
            return replace(self._cas.connection(f"http://{host}/cas"), about="/api")
        if match := _CDN.fullmatch(parts.path):
            entry = self._by_sha256.get(match["sha256"])
            if entry is None:
                raise Refused(HTTPStatus.FORBIDDEN, "AccessDenied")
            # The client follows a redirect to the same host, and takes commit and way to xet from where it ends.
            announced = self._announcement(entry, match["repository"], match["revision"], host)
            return self._content(entry, wanted, {"X-Repo-Commit": match["revision"], **announced})
        if match := _CACHED.fullmatch(parts.path):
            entry = self._entry(self._open(match, token), match)
            return self._content(entry, wanted, {"X-Repo-Commit": match["revision"]})
        if match := _API.fullmatch(parts.path):
            answer = self._api(match, parse_qs(parts.query), token)
            answer.about = "/api"
            return answer
        if match := _RESOLVE.fullmatch(parts.path):
            return self._resolve(match, host, token)
        raise Refused(HTTPStatus.NOT_FOUND, "Sorry, we can't find the page you are looking for.")

    def _repository(self, match: re.Match[str], token: str | None) -> Repository:
        repository = self._repositories.get(unquote(match["repository"]))
        if repository is not None:
            return repository
        if token is None:
            # The real hub does not tell a stranger whether a repository exists.
            raise Refused(HTTPStatus.UNAUTHORIZED, "Invalid username or password.", "RepoNotFound")
        raise Refused(HTTPStatus.NOT_FOUND, "Repository not found", "RepoNotFound")

    def _open(self, match: re.Match[str], token: str | None) -> Repository:
        repository = self._repository(match, token)
        if repository.token is not None and token is None:
            message = (
                f"Access to model {repository.name} is restricted. "
                "You must have access to it and be authenticated to access it. Please log in."
            )
            raise Refused(HTTPStatus.UNAUTHORIZED, message, "GatedRepo")
        if repository.token not in (None, token):
            message = f"Access to model {repository.name} is restricted and you are not in the authorized list."
            raise Refused(HTTPStatus.FORBIDDEN, message, "GatedRepo")
        return repository

    def _check_revision(self, repository: Repository, revision: str) -> None:
        if not repository.resolves(revision):
            raise Refused(HTTPStatus.NOT_FOUND, f"Invalid rev id: {revision}", "RevisionNotFound")

    def _entry(self, repository: Repository, match: re.Match[str]) -> Entry:
        self._check_revision(repository, unquote(match["revision"]))
        entry = repository.entries.get(unquote(match["path"]))
        if entry is None:
            raise Refused(HTTPStatus.NOT_FOUND, "Entry not found", "EntryNotFound")
        return entry

    def _api(self, match: re.Match[str], query: dict[str, list[str]], token: str | None) -> Answer:
        repository = self._repository(match, token)
        if match["revision"] is not None:
            self._check_revision(repository, unquote(match["revision"]))
        if match["verb"] == "tree":
            return as_json([self._listing(entry) for entry in repository.entries.values()])
        return as_json(repository.info(blobs=query.get("blobs", [""])[0].lower() in ("true", "1")))

    def _listing(self, entry: Entry) -> dict[str, Any]:
        return {**entry.listing(), **({"xetHash": file_id(entry)} if self._cas and entry.sha256 else {})}

    def _resolve(self, match: re.Match[str], host: str, token: str | None) -> Answer:
        repository = self._open(match, token)
        entry = self._entry(repository, match)
        headers = {"X-Repo-Commit": repository.commit, "Accept-Ranges": "bytes"}
        if entry.sha256 is None:
            location = f"/api/resolve-cache/models/{repository.name}/{repository.commit}/{quote(entry.path)}"
            return Answer(HTTPStatus.TEMPORARY_REDIRECT, {**headers, "Location": location}, about=entry.path)
        headers |= {
            "X-Linked-Size": str(entry.size),
            "X-Linked-ETag": f'"{entry.sha256}"',
            "Location": f"http://{host}/cdn/{repository.name}/{repository.commit}/{entry.sha256}?filename={quote(entry.path)}",
        }
        headers |= self._announcement(entry, repository.name, repository.commit, host)
        return Answer(HTTPStatus.FOUND, headers, about=entry.path)

    def _announcement(self, entry: Entry, repository: str, commit: str, host: str) -> dict[str, str]:
        if self._cas is None:
            return {}
        route = f"http://{host}/api/models/{repository}/xet-read-token/{commit}"
        return {"X-Xet-Hash": file_id(entry), "Link": f'<{route}>; rel="xet-auth"'}

    def _content(self, entry: Entry, wanted: str | None, headers: dict[str, str] | None = None) -> Answer:
        headers = {
            "Content-Type": "application/octet-stream" if entry.sha256 else "text/plain; charset=utf-8",
            "ETag": f'"{entry.etag}"',
            "Accept-Ranges": "bytes",
            **(headers or {}),
        }
        asked = byte_range(wanted, entry.size)
        if asked is None:
            return Answer(HTTPStatus.OK, headers, entry=entry, length=entry.size, about=entry.path)
        start, end = asked
        if start > end:
            headers["Content-Range"] = f"bytes */{entry.size}"
            return Answer(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, headers)
        headers["Content-Range"] = f"bytes {start}-{end}/{entry.size}"
        length = end - start + 1
        return Answer(HTTPStatus.PARTIAL_CONTENT, headers, entry=entry, start=start, length=length, about=entry.path)


class HubServer(ThreadingHTTPServer):
    """Serves one `Hub`; `journal` gets a JSON line for every answer."""

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
        return self._spoilt(answer)

    def _spoilt(self, answer: Answer) -> Answer:
        """The answer, with what goes wrong before any content is sent."""
        take = self.server.faults.take
        if rule := take(("403", "429", "503"), answer.about, count=True):
            headers = {"Retry-After": rule.value or "1"} if rule.fault == "429" else {}
            return as_json({"error": "not now"}, HTTPStatus(int(rule.fault)), headers)
        if (rule := take(("moved",), answer.about, count=True)) and answer.about == "/api":
            content = json.loads(answer.body)
            return as_json({**content, "sha": rule.value} if isinstance(content, dict) else content)
        if rule := take(("etag",), answer.about, count=True):
            wrong = {name: f'"{"0" * 64}"' for name in ("ETag", "X-Linked-ETag") if name in answer.headers}
            answer.headers = {**answer.headers, **wrong}
        location = urlsplit(answer.headers.get("Location", ""))
        if location.netloc and (rule := take(("redirect",), answer.about, count=True)):
            answer.headers["Location"] = f"{rule.value}{location.path}?{location.query}"
        return answer

    def _send(self, answer: Answer, *, body: bool) -> None:
        length = answer.length if answer.entry else len(answer.body)
        rule = None
        if body and answer.entry is not None:
            rule = self.server.faults.take(("cut", "truncate", "flip", "stall"), answer.about, count=True)
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
        """Send the content; returns how many bytes of it went out."""
        if answer.entry is None:
            self.wfile.write(answer.body)
            return len(answer.body)
        sent = 0
        ends = _end(answer, rule)
        with io.BytesIO(answer.body) if answer.body else answer.entry.source.open("rb") as source:
            source.seek(answer.start)
            for size in self.server.throttle.pieces(min(ends, answer.length)):
                piece = source.read(size)
                if rule and rule.fault == "flip" and sent <= answer.length // 2 < sent + size:
                    place = answer.length // 2 - sent
                    piece = piece[:place] + bytes([piece[place] ^ 1]) + piece[place + 1 :]
                try:
                    self.wfile.write(piece)
                except (BrokenPipeError, ConnectionResetError, TimeoutError):
                    # The client went away in the middle; what it got so far is its own affair.
                    self.close_connection = True
                    return sent
                sent += size
        if ends < answer.length:
            self.close_connection = True
            if rule and rule.fault == "stall":
                self._wait_until_the_client_has_gone()
        return sent

    def _wait_until_the_client_has_gone(self) -> None:
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
    """After how many bytes of the answer the sending ends."""
    if answer.entry is None or rule is None or rule.fault not in ("cut", "stall"):
        return answer.length
    if rule.fault == "stall":
        return answer.length // 2
    return max(1, answer.entry.size // 10)
