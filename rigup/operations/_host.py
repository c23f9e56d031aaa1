"""How the operations here work on a host while the deploy is being executed.

An operation decides in its generator, from facts, and yields one `work(...)` command when something is to be done. The
work is Python that runs commands, looks at the answers and says what it waits for. What it raises as `OperationError`
is shown as a message; anything else would be shown by pyinfra as a traceback.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from paramiko import SSHException
from pyinfra import logger
from pyinfra.api.arguments import CONNECTOR_ARGUMENT_KEYS
from pyinfra.api.command import FunctionCommand, QuoteString, StringCommand
from pyinfra.api.exceptions import ConnectError, OperationError
from pyinfra.api.host import Host
from pyinfra.api.state import State

from rigup.text import duration

__all__ = [
    "SAY_EVERY_S",
    "Answer",
    "Clock",
    "ConnectionLost",
    "alone",
    "check",
    "duration",
    "pause",
    "refusal",
    "run",
    "say",
    "try_reconnect",
    "work",
]

BROKEN_CONNECTION = (ConnectError, EOFError, OSError, SSHException, TimeoutError)
SAY_EVERY_S = 10.0


class ConnectionLost(OperationError):
    """The host did not take a command; whether it ran is unknown."""


@dataclass(frozen=True)
class Answer:
    """What a command came to."""

    ok: bool
    lines: tuple[str, ...]
    errors: tuple[str, ...]

    @property
    def complaint(self) -> str:
        """The last thing it said, on standard error if it spoke there."""
        said = [line for line in (*self.lines, *self.errors) if line.strip()]
        complaints = [line for line in self.errors if line.strip()]
        return (complaints or said or ["it said nothing"])[-1].strip()


def alone(directory: str, *bits: Any) -> StringCommand:
    """A program that has `directory` to itself.

    What a killed run has begun goes on on the host; the next run waits for its end rather than work beside it.
    """
    return StringCommand("flock", QuoteString(directory), *bits)


def run(host: Host, *bits: Any, stdin: str | None = None) -> Answer:
    """Run one command the way the current operation runs its commands (sudo and so on).

    Raises `ConnectionLost` where the connection breaks.
    """
    arguments: dict[str, Any] = dict(host.current_op_global_arguments or {})
    arguments = {key: value for key, value in arguments.items() if key in CONNECTOR_ARGUMENT_KEYS}
    if stdin is not None:
        arguments["_stdin"] = stdin
    try:
        ok, output = host.run_shell_command(StringCommand(*bits), **arguments)
    except BROKEN_CONNECTION as error:
        raise ConnectionLost(
            f"the connection to {host.name} broke: {error or type(error).__name__}. Run the deploy again: it goes on "
            "where this one stopped."
        ) from error
    return Answer(bool(ok), tuple(output.stdout_lines), tuple(output.stderr_lines))


def check(host: Host, *bits: Any, failing: str, stdin: str | None = None) -> Answer:
    """Run a command that must succeed; raises `OperationError` with `failing` and what the command said."""
    answer = run(host, *bits, stdin=stdin)
    if not answer.ok:
        raise OperationError(f"{failing}: {answer.complaint}")
    return answer


def work(what: Callable[[Host], None], title: str) -> FunctionCommand:
    """A command that does `what` on the host. `title` is what `-v` shows for it."""

    def act(state: State, host: Host) -> bool:
        try:
            what(host)
        except OperationError as error:
            for line in str(error).splitlines():
                host.log_styled(line, fg="red", log_func=logger.error)
            return False
        return True

    act.__name__ = title
    return FunctionCommand(act, (), {})


def refusal(message: str) -> FunctionCommand:
    """A command that fails on this host alone, with a message; an exception in a generator would end all hosts' run."""

    def refuse(host: Host) -> None:
        raise OperationError(message)

    return work(refuse, "refuse")


def say(host: Host, message: str) -> None:
    """One calm line about a thing that takes its time."""
    host.log(f"    {message}")


def pause(seconds: float) -> None:
    """Wait; pyinfra's command line makes `sleep` let other hosts' work go on."""
    time.sleep(seconds)


def try_reconnect(host: Host) -> bool:
    """Drop what is left of the connection and make a new one; false where the host does not answer yet."""
    try:
        host.disconnect()
        host.connect(show_errors=False)
    except BROKEN_CONNECTION as error:
        logger.debug("%s is not back yet: %s", host.name, error)
        return False
    return bool(host.connected)


class Clock:
    """Counts the time of one wait, against its limit, and says when another line is due."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.began = time.monotonic()
        self.spoke = self.began
        self._nap = 0.2

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.began

    @property
    def is_up(self) -> bool:
        return self.elapsed_s >= self.limit_s

    def is_due(self) -> bool:
        """Whether it is time to say something; if so, the next time is counted from now."""
        now = time.monotonic()
        if now - self.spoke < SAY_EVERY_S:
            return False
        self.spoke = now
        return True

    def nap(self) -> None:
        """Sleep a little: short at first, for things that are done at once, then two seconds."""
        pause(self._nap)
        self._nap = min(2.0, self._nap * 1.6)

    def __str__(self) -> str:
        return f"{duration(self.elapsed_s)} of at most {duration(self.limit_s)}"
