"""HTTP without proxies: everything that these programs ask is on this host."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException

MAX_BYTES = 16 * 1024 * 1024
"""Bytes of an answer that are read; the largest real ones, metrics, have some hundred kilobytes."""


class NoAnswer(Exception):
    """No complete HTTP answer came; the message names the URL and the reason."""


@dataclass(frozen=True)
class Answer:
    """The answer to a GET; the body is read only if the status is a success, and not beyond MAX_BYTES."""

    status: int
    body: bytes = b""


def get(url: str, timeout_s: float, headers: Mapping[str, str] | None = None) -> Answer:
    """Return the answer to a GET, whatever its status. Raise NoAnswer if there is none."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, headers=dict(headers or {})), timeout=timeout_s) as response:
            return Answer(int(response.status), bytes(response.read(MAX_BYTES)))
    except urllib.error.HTTPError as error:
        return Answer(error.code)
    except (OSError, HTTPException) as error:
        raise NoAnswer(f"{url}: {getattr(error, 'reason', None) or error or type(error).__name__}") from error
