"""What the hub sends back, apart from the connection it travels on."""

import json
import re
from dataclasses import dataclass, field
from http import HTTPStatus

from lab.hub.repository import Entry

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class Refused(Exception):
    """A request that gets an error for an answer."""

    def __init__(self, status: HTTPStatus, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code


@dataclass
class Answer:
    """What is sent back. With `entry` it is content of that file: its own, or `body` where there is one."""

    status: HTTPStatus = HTTPStatus.OK
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    entry: Entry | None = None
    start: int = 0
    length: int = 0
    about: str = ""
    """The file that this is about, `xet:` before it where xet stores it; or `/api`, or `/cas`."""


def as_json(content: object, status: HTTPStatus = HTTPStatus.OK, headers: dict[str, str] | None = None) -> Answer:
    """An answer with a JSON body."""
    body = json.dumps(content).encode()
    return Answer(status, {"Content-Type": "application/json; charset=utf-8", **(headers or {})}, body)


def byte_range(wanted: str | None, size: int) -> tuple[int, int] | None:
    """First and last byte that a Range header asks for of so many; None where it asks for all.

    The first comes after the last where there is nothing to send.
    """
    match = _RANGE.fullmatch(wanted) if wanted else None
    if match is None or match.groups() == ("", ""):
        return None
    if match[1]:
        return int(match[1]), min(int(match[2] or size), size - 1)
    return max(0, size - int(match[2])), size - 1
