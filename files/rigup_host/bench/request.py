"""One streamed chat request, and when its tokens came."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any
from urllib.parse import urlsplit

from rigup_host import files
from rigup_host.http import MAX_BYTES


@dataclass
class Outcome:
    """What became of a request; times are of `time.monotonic`.

    `first` and `last` are when the first and the last text came. Tokens are counted by the engine: a chunk of a stream
    may have several. `error` is the kind of failure, empty if there is none, and `detail` says more.
    """

    began: float
    first: float | None = None
    last: float | None = None
    ended: float = 0.0
    prompt_tokens: int | None = None
    tokens: int | None = None
    error: str = ""
    detail: str = ""
    text: str = ""


class _Bad(Exception):
    """An answer that is not what was asked for."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(detail)
        self.kind = kind


def ask(url: str, body: Mapping[str, Any], limit_s: float) -> Outcome:
    """Send a chat request and read its answer, for at most `limit_s` seconds. Never raises."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=limit_s)
    outcome, late = Outcome(time.monotonic()), threading.Event()
    timer = None
    try:
        connection.connect()
        # A timeout of the socket would begin again with every byte that comes.
        timer = threading.Timer(limit_s, _cut, (connection.sock, late))
        timer.daemon = True
        timer.start()
        data = {**body, "stream": True, "stream_options": {"include_usage": True}}
        headers = {"Content-Type": "application/json", "Connection": "close"}
        connection.request("POST", "/v1/chat/completions", json.dumps(data), headers)
        with connection.getresponse() as response:
            _read(response, outcome)
    except _Bad as bad:
        outcome.error, outcome.detail = bad.kind, str(bad)
    except TimeoutError as error:
        outcome.error, outcome.detail = "timeout", str(error)
    except (OSError, HTTPException, ValueError) as error:
        outcome.error = "no connection" if timer is None else "broken answer"
        outcome.detail = f"{type(error).__name__}: {error}"
    finally:
        if timer is not None:
            timer.cancel()
        connection.close()
    if late.is_set() and outcome.error:
        outcome.error, outcome.detail = "timeout", f"after {limit_s:.0f} s"
    outcome.ended = time.monotonic()
    return outcome


def _cut(connection: socket.socket, late: threading.Event) -> None:
    late.set()
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        # It was closed a moment before.
        return


def _read(response: HTTPResponse, outcome: Outcome) -> None:
    """Read the events of an answer into `outcome`. Raise _Bad."""
    if response.status != 200:
        raise _Bad(f"status {response.status}", response.read(2000).decode(errors="replace"))
    for chunk in _events(response):
        if not isinstance(chunk, dict) or "error" in chunk:
            raise _Bad("error in the stream", str(chunk))
        usage, choices = chunk.get("usage"), chunk.get("choices")
        if isinstance(usage, dict):
            outcome.prompt_tokens, outcome.tokens = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
        for choice in choices if isinstance(choices, list) else ():
            text, content = _texts(choice)
            if text:
                outcome.last = time.monotonic()
                outcome.first = outcome.first or outcome.last
                outcome.text += content
    if outcome.tokens is None:
        raise _Bad("no usage", "the engine does not say how many tokens the answer has")
    if outcome.first is None or outcome.tokens == 0:
        raise _Bad("no text", f"{outcome.tokens} tokens")


def _count(usage: Mapping[str, Any], name: str) -> int | None:
    value = usage.get(name)
    return value if type(value) is int and 0 <= value < 1 << 40 else None


def _texts(choice: Any) -> tuple[bool, str]:
    """Return whether a piece of an answer has any text or call, and its content without the reasoning."""
    delta = choice.get("delta") if isinstance(choice, dict) else None
    if not isinstance(delta, dict):
        return False, ""
    names = ("content", "reasoning", "reasoning_content", "tool_calls")
    return any(delta.get(name) for name in names), str(delta.get("content") or "")


def _events(response: HTTPResponse) -> Iterator[Any]:
    """Yield the data of server-sent events up to `[DONE]`. Raise _Bad for another end and for what is not JSON."""
    left, size = b"", 0
    while chunk := response.read1(1 << 16):
        size += len(chunk)
        if size > MAX_BYTES:
            raise _Bad("broken stream", f"more than {MAX_BYTES} bytes")
        *lines, left = (left + chunk).split(b"\n")
        for line in lines:
            name, _, value = line.strip().partition(b":")
            if name != b"data":
                continue
            if value.strip() == b"[DONE]":
                return
            try:
                yield files.from_json(value)
            except ValueError as error:
                raise _Bad("broken stream", f"{error}: {value[:100]!r}") from error
    raise _Bad("broken stream", "it ends without [DONE]")
