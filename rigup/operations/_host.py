"""Running commands on a host while the deploy executes.

An operation decides in its generator, from facts, and yields one `work(...)` command if something must be done. The
work is Python that runs commands, reads their results and waits. If it raises `OperationError`, the message is
shown; any other exception would be shown by pyinfra as a traceback.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar, cast

from paramiko import SSHException
from pyinfra import logger
from pyinfra.api.arguments import CONNECTOR_ARGUMENT_KEYS
from pyinfra.api.command import FunctionCommand, QuoteString, StringCommand
from pyinfra.api.exceptions import ConnectError, OperationError
from pyinfra.api.facts import FactBase
from pyinfra.api.host import Host
from pyinfra.api.state import State

from rigup.facts.reading import Fact

BROKEN_CONNECTION = (ConnectError, EOFError, OSError, SSHException, TimeoutError)

Commands: TypeAlias = Generator[FunctionCommand, None, None]
T = TypeVar("T")


class ConnectionLost(OperationError):
    """The connection broke; it is unknown whether the command ran."""


@dataclass(frozen=True)
class Result:
    """The result of a command: whether it succeeded, and its lines on standard output and standard error."""

    ok: bool
    lines: tuple[str, ...]
    errors: tuple[str, ...]

    @property
    def message(self) -> str:
        """The last line of its standard error, or else of its output."""
        lines = [line for line in (*self.lines, *self.errors) if line.strip()]
        errors = [line for line in self.errors if line.strip()]
        return (errors or lines or ["it printed nothing"])[-1].strip()


def exclusive(directory: str, *bits: Any) -> StringCommand:
    """Return a command that holds a lock on `directory`.

    A command that a killed run started continues; the next run waits until it ends.
    """
    return StringCommand("flock", QuoteString(directory), *bits)


def run(host: Host, *bits: Any, stdin: str | None = None) -> Result:
    """Run one command with the connection arguments (sudo and so on) of the current operation.

    Raises `ConnectionLost` if the connection breaks.
    """
    arguments: dict[str, Any] = dict(host.current_op_global_arguments or {})
    arguments = {key: value for key, value in arguments.items() if key in CONNECTOR_ARGUMENT_KEYS}
    if stdin is not None:
        arguments["_stdin"] = stdin
    try:
        ok, output = host.run_shell_command(StringCommand(*bits), **arguments)
    except OperationError:
        # A refused lock of this run is an SSHException too, and says what to do.
        raise
    except BROKEN_CONNECTION as error:
        raise ConnectionLost(
            f"the connection to {host.name} broke: {error or type(error).__name__}. Run the deploy again: it continues "
            "where this one stopped."
        ) from error
    return Result(bool(ok), tuple(output.stdout_lines), tuple(output.stderr_lines))


def check(host: Host, *bits: Any, failing: str, stdin: str | None = None) -> Result:
    """Run a command that must succeed. Raises `OperationError` with `failing` and the command's message."""
    result = run(host, *bits, stdin=stdin)
    if not result.ok:
        raise OperationError(f"{failing}: {result.message}")
    return result


def read_now(host: Host, kind: Callable[[], Fact[T]], *arguments: Any, **named: Any) -> T:
    """Read a fact while the deploy executes; pyinfra's own are those from before the run."""
    fact = cast(FactBase[T], kind())
    value: T = fact.process(list(run(host, fact.command(*arguments, **named)).lines))
    return value


def work(what: Callable[[Host], None], title: str) -> FunctionCommand:
    """Return a command that calls `what` with the host. `-v` shows `title` for it."""

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
    """Return a command that fails with a message on this host; an exception in a generator would stop all hosts."""

    def refuse(host: Host) -> None:
        raise OperationError(message)

    return work(refuse, "refuse")


def try_reconnect(host: Host) -> bool:
    """Replace the broken connection by a new one. Returns False if the host does not answer yet."""
    try:
        host.disconnect()
        host.connect(show_errors=False)
    except BROKEN_CONNECTION as error:
        logger.debug("%s is not back yet: %s", host.name, error)
        return False
    return bool(host.connected)
