"""The hub's responses, independent of the connection."""

import json
import re
from dataclasses import dataclass, field
from http import HTTPStatus

from lab.hub.repository import Entry

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class Refused(Exception):
    """A request answered with an error."""

    def __init__(self, status: HTTPStatus, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code


@dataclass
class Answer:
    """A response. With `entry` it is content of that file: the file's bytes, or `body` if set."""

    status: HTTPStatus = HTTPStatus.OK
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    entry: Entry | None = None
    start: int = 0
    length: int = 0
    about: str = ""
    """The path of the file, with the prefix `xet:` for a xorb; or `/api`, or `/cas`."""


def as_json(content: object, status: HTTPStatus = HTTPStatus.OK, headers: dict[str, str] | None = None) -> Answer:
    """Return an answer with a JSON body."""
    body = json.dumps(content).encode()
    return Answer(status, {"Content-Type": "application/json; charset=utf-8", **(headers or {})}, body)


def byte_range(wanted: str | None, size: int) -> tuple[int, int] | None:
    """Return the first and last byte that a Range header requests of `size` bytes; None for all of them.

    The first is larger than the last when the range is empty.
    """
    match = _RANGE.fullmatch(wanted) if wanted else None
    if match is None or match.groups() == ("", ""):
        return None
    if match[1]:
        return int(match[1]), min(int(match[2] or size), size - 1)
    return max(0, size - int(match[2])), size - 1
