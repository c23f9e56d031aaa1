"""A calm console: pyinfra's own output, less what says that nothing happened.

pyinfra prints three lines for every operation and host, and all of them again at the end: two hundred lines for a run
that changes nothing. Here an operation is shown once something is to be said about it; the summary of `rigup.events`
takes the place of the closing table. With `-v` pyinfra's output stays as it is.
"""

from __future__ import annotations

import logging
import re

from pyinfra.context import ctx_state

__all__ = ["Calm", "calm"]

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_OPERATION = "--> Starting operation:"
_RESULTS = "--> Results:"
_UNCHANGED = re.compile(r"\[[^\]]+\] +(No changes|Skipped)$")


class Calm(logging.Filter):
    """Holds back an operation's heading until something but `No changes` follows it, and drops the closing table."""

    def __init__(self, handler: logging.Handler) -> None:
        super().__init__()
        self._handler = handler
        self._heading: logging.LogRecord | None = None
        self._in_results = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to show this line now."""
        line = _ANSI.sub("", record.getMessage()).strip()
        if line.startswith("--> "):
            self._in_results = line == _RESULTS
            self._heading = record if line.startswith(_OPERATION) else None
            return self._heading is None and not self._in_results
        if self._in_results or _UNCHANGED.fullmatch(line):
            return False
        if self._heading is not None:
            heading, self._heading = self._heading, None
            self._handler.emit(heading)
        return True


def calm() -> None:
    """Make pyinfra's console calm for this run, unless it was asked for more with `-v`."""
    if ctx_state.get().print_noop_info:  # type: ignore[no-untyped-call]
        return
    for handler in logging.getLogger("pyinfra").handlers:
        if not any(isinstance(each, Calm) for each in handler.filters):
            handler.addFilter(Calm(handler))
