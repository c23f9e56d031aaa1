"""Shorter console output: what changed and what is running, step by step.

pyinfra prints three lines for every operation and host, and all of them again at the end: two hundred lines for a run
that changes nothing. Here a step is printed once something happens in it, an operation that changed something is one
line, and the summary of `rigup.run.summary` replaces the closing table. With `-v` pyinfra's output stays.
"""

from __future__ import annotations

import logging
import re

from pyinfra.api import output
from pyinfra.context import ctx_state

from rigup.text import printable

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_OPERATION = "--> Starting operation:"
_RESULTS = "--> Results:"
_UNCHANGED = re.compile(r"\[[^\]]+\] +(No changes|Skipped)$")
_DONE = re.compile(r"Success\b")
_FAILED = re.compile(r"Error: ((?:\x1b\[\d*m)?)executed \d+ commands?")


class ShortLines(logging.Filter):
    """Reduce pyinfra's lines about operations, and let all others pass."""

    def __init__(self, handler: logging.Handler) -> None:
        super().__init__()
        self._handler = handler
        self._step = self._operation = self._shown_step = ""
        self._is_in_results = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to print this line. A line about an operation's end gets its name instead of `Success`."""
        message = record.getMessage()
        line = _ANSI.sub("", message).strip()
        if line.startswith("--> "):
            self._is_in_results = line == _RESULTS
            if not line.startswith(_OPERATION):
                self._operation = ""
                return not self._is_in_results
            name = line.removeprefix(_OPERATION).strip()
            self._step, _, self._operation = name.rpartition(" | ")
            return False
        if self._is_in_results or _UNCHANGED.fullmatch(line):
            return False
        if self._operation:
            if self._step != self._shown_step:
                self._shown_step = self._step
                self._handler.emit(logging.makeLogRecord({"msg": f"--> {self._step}", "levelno": logging.INFO}))
            # Functions, because an operation's name may contain a backslash.
            message = _DONE.sub(lambda _: self._operation, message, count=1)
            record.msg, record.args = _FAILED.sub(lambda end: f"{self._operation}: failed{end[1]}", message), ()
        return True


class _Printable(logging.Filter):
    """Make what hosts said printable in pyinfra's lines."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = printable(record.getMessage(), colors=True), ()
        return True


def make_printable() -> None:
    """Keep the terminal from obeying what hosts print: pyinfra passes it on as it is."""
    for handler in logging.getLogger("pyinfra").handlers:
        handler.addFilter(_Printable())
    echo = output._echo
    output.set_echo(lambda message=None, **more: echo(message and printable(str(message), colors=True), **more))


def shorten_output() -> None:
    """Shorten the console output of this run, unless it was started with `-v`."""
    if ctx_state.get().print_noop_info:  # type: ignore[no-untyped-call]
        return
    for handler in logging.getLogger("pyinfra").handlers:
        if not any(isinstance(each, ShortLines) for each in handler.filters):
            handler.addFilter(ShortLines(handler))
