"""A calm console: what changed and what is under way, step by step.

pyinfra prints three lines for every operation and host, and all of them again at the end: two hundred lines for a run
that changes nothing. Here a step is named once something happens in it, an operation that changed something is one
line, and the summary of `rigup.run.recorder` takes the place of the closing table. With `-v` pyinfra's output stays.
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
_DONE = re.compile(r"Success\b")
_FAILED = re.compile(r"Error: ((?:\x1b\[\d*m)?)executed \d+ commands?")


class Calm(logging.Filter):
    """Turns pyinfra's lines about operations into fewer, and lets all others through."""

    def __init__(self, handler: logging.Handler) -> None:
        super().__init__()
        self._handler = handler
        self._step = self._operation = self._shown_step = ""
        self._in_results = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to show this line; one about an operation's end names the operation instead of `Success`."""
        message = record.getMessage()
        line = _ANSI.sub("", message).strip()
        if line.startswith("--> "):
            self._in_results = line == _RESULTS
            if not line.startswith(_OPERATION):
                self._operation = ""
                return not self._in_results
            name = line.removeprefix(_OPERATION).strip()
            self._step, _, self._operation = name.rpartition(" | ")
            return False
        if self._in_results or _UNCHANGED.fullmatch(line):
            return False
        if self._operation:
            if self._step != self._shown_step:
                self._shown_step = self._step
                self._handler.emit(logging.makeLogRecord({"msg": f"--> {self._step}", "levelno": logging.INFO}))
            # As functions: an operation's name may hold a backslash.
            message = _DONE.sub(lambda _: self._operation, message, count=1)
            record.msg, record.args = _FAILED.sub(lambda end: f"{self._operation}: failed{end[1]}", message), ()
        return True


def calm() -> None:
    """Make pyinfra's console calm for this run, unless it was asked for more with `-v`."""
    if ctx_state.get().print_noop_info:  # type: ignore[no-untyped-call]
        return
    for handler in logging.getLogger("pyinfra").handlers:
        if not any(isinstance(each, Calm) for each in handler.filters):
            handler.addFilter(Calm(handler))
