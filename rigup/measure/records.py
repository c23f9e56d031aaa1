"""What `rigup-host bench` and `rigup-host tool-calls` print, as checked values. Times are seconds since their start."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from rigup.errors import RigupError
from rigup.text import printable

MAX_LINE = 1 << 16
MAX_BYTES = 256 << 20
"""Of all records of a host; an hour has some megabytes."""
Number = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=1 << 40)]
Text = Annotated[str, Field(max_length=2000)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Request(_Record):
    """One request. `first` and `last` are when its first and its last text came; `error` is the kind of its failure."""

    kind: Literal["request"] = "request"
    workload: Text
    concurrency: Count
    repeat: Count
    began: Number
    first: Number | None
    last: Number | None
    ended: Number
    prompt_tokens: Count | None
    tokens: Count | None
    error: Text = ""
    detail: Text = ""

    @model_validator(mode="after")
    def _check(self) -> Request:
        if self.error:
            return self
        if self.first is None or self.last is None or not self.tokens:
            raise ValueError("a request without failure has times and tokens")
        if not self.began <= self.first <= self.last <= self.ended:
            raise ValueError("times are not in order")
        return self

    @property
    def ttft(self) -> float:
        """Seconds from sending the request to its first text; only for one without failure."""
        return (self.first or 0.0) - self.began

    @property
    def duration(self) -> float:
        """Seconds from sending the request to its last text; only for one without failure."""
        return (self.last or 0.0) - self.began

    @property
    def tpot(self) -> float | None:
        """Seconds for each token after the first; None for an answer of one token, or of one piece."""
        seconds = self.duration - self.ttft
        return seconds / (self.tokens - 1) if self.tokens and self.tokens > 1 and seconds > 0 else None


class Repeat(_Record):
    """One repeat of a level, and how many tokens were drafted and accepted meanwhile. Repeat 0 warms up."""

    kind: Literal["repeat"] = "repeat"
    workload: Text
    concurrency: Count
    repeat: Count
    began: Number
    ended: Number
    drafted: Number | None = None
    accepted: Number | None = None


class Sample(_Record):
    """What all cards of the endpoint draw together, and the used share of the KV cache."""

    kind: Literal["sample"] = "sample"
    at: Number
    watts: Number | None = None
    kv_cache: Number | None = None


class Loop(_Record):
    """One try of the task with several tool calls; `error` is the kind of what went wrong."""

    kind: Literal["loop"] = "loop"
    number: Count
    stream: bool
    error: Text = ""
    detail: Text = ""


class End(_Record):
    """The last record of a program that was not interrupted."""

    kind: Literal["end"] = "end"


Record = Request | Repeat | Sample | Loop | End
_RECORD: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])


class Reader:
    """Makes records of the output of a program as it arrives."""

    def __init__(self, host: str) -> None:
        self._host, self._left, self._bytes = host, b"", 0

    def read(self, chunk: bytes) -> Iterator[Record]:
        """Yield the records that are complete now. Raises RigupError for what is not a record."""
        *lines, self._left = (self._left + chunk).split(b"\n")
        self._bytes += len(chunk)
        if len(self._left) > MAX_LINE or self._bytes > MAX_BYTES:
            limit = f"{MAX_BYTES} bytes" if self._bytes > MAX_BYTES else f"{MAX_LINE} bytes in a line"
            raise RigupError(f"{self._host}: the measurement printed more than {limit}")
        for line in lines:
            try:
                yield _RECORD.validate_json(line, strict=True)
            except ValidationError as error:
                said = printable(line[:120].decode(errors="replace"))
                why = error.errors()[0]["msg"]
                raise RigupError(
                    f"{self._host}: the measurement printed what is not a record ({why}): {said!r}",
                    "deploy, so that the host has the programs of this rigup",
                ) from error
