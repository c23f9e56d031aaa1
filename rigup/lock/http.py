"""HTTP requests from the control machine: one client, and errors that name the setting, the URL and a remedy.

It uses the proxies of the environment (`http_proxy`, `https_proxy`, `no_proxy`). Each request has one deadline and a
limit of bytes, and asks for an uncompressed answer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rigup.text import from_json

if TYPE_CHECKING:
    # Imported at the first request: most runs make none.
    import httpx

STALL_S = 30.0
"""Seconds for a connection and for each chunk of a response."""

DEADLINE_S = 300.0
"""Seconds for a request with all its redirects, to the last byte of the response."""

MAX_BYTES = 64 << 20
"""Bytes of a response: the largest real ones, package indexes and lists of files, have a few megabytes."""


class Unresolved(Exception):
    """One thing that could not be resolved: the setting that led there, the URL, the reason, and what to do."""

    def __init__(self, setting: str, url: str, reason: str, remedy: str = ""):
        super().__init__(setting, url, reason, remedy)
        self.setting, self.url, self.reason, self.remedy = setting, url, reason, remedy


class Web:
    """An HTTP client that requests each URL only once. Use it in a `with` block."""

    def __init__(self) -> None:
        self._answers: dict[tuple[str, tuple[tuple[str, str], ...]], httpx.Response] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if "_client" in vars(self):
            self._client.close()

    @cached_property
    def _client(self) -> httpx.Client:
        import httpx

        # httpx drops the Authorization header when a redirect leads to another host.
        return httpx.Client(follow_redirects=True, timeout=STALL_S, headers={"Accept-Encoding": "identity"})

    def ask(self, setting: str, url: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
        """Return the server's response, whatever its status.

        Raises Unresolved if there is none, if it is late, longer than MAX_BYTES, or compressed.
        """
        import httpx

        key = (url, tuple(sorted((headers or {}).items())))
        if key not in self._answers:
            request = _Request(self._client, url, dict(headers or {}))
            try:
                self._answers[key] = request.answer()
            except _Refused as error:
                raise Unresolved(setting, url, str(error), f"check that {setting} names the right server") from error
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                reason = str(error) or type(error).__name__
                raise Unresolved(
                    setting, url, f"no answer: {reason}", f"check {setting} and this machine's network"
                ) from error
        return self._answers[key]

    def get(self, setting: str, url: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
        """Return a successful response. Raises Unresolved for any other."""
        answer = self.ask(setting, url, headers)
        if answer.is_success:
            return answer
        remedy = f"check {setting}"
        if answer.status_code == 429:
            remedy = "the server limits requests: run it again later, or use a mirror"
        raise Unresolved(setting, url, f"answered {answer.status_code} {answer.reason_phrase}".rstrip(), remedy)

    def json(self, setting: str, url: str, headers: Mapping[str, str] | None = None) -> Any:
        """Return the JSON of a successful response. Raises Unresolved."""
        try:
            return from_json(self.get(setting, url, headers).content)
        except ValueError as error:
            raise Unresolved(
                setting, url, "did not answer with JSON", f"check that {setting} names the right server"
            ) from error


class _Refused(Exception):
    """A response that is not read to its end, and why."""


class _Request(threading.Thread):
    """One request in a thread: a server that sends a header byte by byte would hold up any other reader for hours."""

    def __init__(self, client: httpx.Client, url: str, headers: dict[str, str]) -> None:
        super().__init__(daemon=True)
        self._client, self._url, self._headers = client, url, headers
        self._deadline = time.monotonic() + DEADLINE_S
        self._answer: httpx.Response | None = None
        self._error: BaseException | None = None

    def answer(self) -> httpx.Response:
        """Make the request and return the response. Raises _Refused and what httpx raises."""
        self.start()
        self.join(DEADLINE_S)
        if self._error is not None:
            raise self._error
        if self._answer is None:
            raise _Refused(f"did not answer completely within {DEADLINE_S:.0f} s")
        return self._answer

    def run(self) -> None:
        import httpx

        try:
            try:
                self._answer = self._read()
            except httpx.ConnectError:
                # Once more: a load balancer may have lost one of its servers.
                self._answer = self._read()
        except BaseException as error:
            self._error = error

    def _read(self) -> httpx.Response:
        import httpx

        body = bytearray()
        with self._client.stream("GET", self._url, headers=self._headers) as response:
            if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
                raise _Refused(f"answered with Content-Encoding {encoding!r}, which was not asked for")
            for chunk in response.iter_raw():
                body += chunk
                if len(body) > MAX_BYTES:
                    raise _Refused(f"answered with more than {MAX_BYTES} bytes")
                if time.monotonic() > self._deadline:
                    raise _Refused("the deadline has passed")
        return httpx.Response(
            response.status_code, headers=response.headers, content=bytes(body), request=response.request
        )
