"""HTTP requests from the control machine: one client, and errors that name the setting, the URL and a remedy."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    # Imported at the first request: most runs make none.
    import httpx

__all__ = ["Unresolved", "Web"]

# Seconds for a connection and for each chunk of a response.
TIMEOUT = 30.0


class Unresolved(Exception):
    """One thing that could not be resolved: the setting that led there, the URL, the reason, and what to do."""

    def __init__(self, setting: str, url: str, reason: str, remedy: str = ""):
        super().__init__(setting, url, reason, remedy)
        self.setting, self.url, self.reason, self.remedy = setting, url, reason, remedy


class Web:
    """An HTTP client that requests each URL only once. Use it in a `with` block."""

    def __init__(self, timeout: float = TIMEOUT) -> None:
        self._timeout = timeout
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
        return httpx.Client(
            follow_redirects=True, timeout=self._timeout, transport=httpx.HTTPTransport(retries=1), trust_env=True
        )

    def ask(self, setting: str, url: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
        """Return the server's response, whatever its status. Raises Unresolved if there is none."""
        import httpx

        key = (url, tuple(sorted((headers or {}).items())))
        if key not in self._answers:
            try:
                self._answers[key] = self._client.get(url, headers=dict(headers or {}))
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
            return self.get(setting, url, headers).json()
        except ValueError as error:
            raise Unresolved(
                setting, url, "did not answer with JSON", f"check that {setting} names the right server"
            ) from error
