"""What the commands print: text of hosts is shown, never obeyed by the terminal, nor read as markup."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from rigup.text import printable

PIPE_WIDTH = 100_000


class _SafeStream:
    """A stream that writes what `printable` returns."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        return self.stream.write(printable(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def safe_streams() -> Iterator[None]:
    """Make everything printable that is written to standard output and standard error meanwhile."""
    with redirect_stdout(_SafeStream(sys.stdout)), redirect_stderr(_SafeStream(sys.stderr)):
        yield


class SafeConsole(Console):
    """A console on standard output whose colors are its own: it makes text printable before it adds them.

    `file` is another stream, and `width` the width, if it is not a terminal's. A pipe has no width: nothing is wrapped.
    """

    def __init__(self, *, file: Any = None, width: int | None = None, soft_wrap: bool = False) -> None:
        stream = file or sys.stdout
        super().__init__(
            file=stream.stream if isinstance(stream, _SafeStream) else stream,
            width=width or (None if stream.isatty() else PIPE_WIDTH),
            soft_wrap=soft_wrap,
            markup=False,
            emoji=False,
            highlight=False,
        )

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))
