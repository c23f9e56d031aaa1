"""The Hugging Face hub's HTTP protocol for models, as far as huggingface_hub 2.x needs it to download and verify.

Answers, redirects and error headers follow the real hub: branch names resolve to a commit, small files redirect to
the same host, LFS files to a content-addressed URL, and errors have an `X-Error-Code`. With `xet`, LFS files are also
announced as stored by xet, and `/cas` is the storage service (lab.hub.cas).
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from lab.hub.answers import Answer, Refused, as_json, byte_range
from lab.hub.cas import Cas, file_id
from lab.hub.repository import Entry, Repository

_API = re.compile(r"/api/models/(?P<repository>[^/]+/[^/]+)(?:/(?P<verb>revision|tree)/(?P<revision>[^/]+))?")
_XET_TOKEN = re.compile(r"/api/models/(?P<repository>[^/]+/[^/]+)/xet-read-token/(?P<revision>[^/]+)")
_CACHED = re.compile(r"/api/resolve-cache/models/(?P<repository>[^/]+/[^/]+)/(?P<revision>[0-9a-f]{40})/(?P<path>.+)")
_RESOLVE = re.compile(r"/(?P<repository>[^/]+/[^/]+)/(?:resolve|raw)/(?P<revision>[^/]+)/(?P<path>.+)")
_CDN = re.compile(r"/cdn/(?P<repository>[^/]+/[^/]+)/(?P<revision>[0-9a-f]{40})/(?P<sha256>[0-9a-f]{64})")


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
        """Answer a GET or HEAD of `url`. `wanted` is the Range header. Raises Refused."""
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
            # The client follows a redirect to the same host, and reads commit and xet headers of the last response.
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
            # Without a token the real hub does not reveal whether a repository exists.
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
        span = byte_range(wanted, entry.size)
        if span is None:
            return Answer(HTTPStatus.OK, headers, entry=entry, length=entry.size, about=entry.path)
        start, end = span
        if start > end:
            headers["Content-Range"] = f"bytes */{entry.size}"
            return Answer(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, headers)
        headers["Content-Range"] = f"bytes {start}-{end}/{entry.size}"
        length = end - start + 1
        return Answer(HTTPStatus.PARTIAL_CONTENT, headers, entry=entry, start=start, length=length, about=entry.path)
