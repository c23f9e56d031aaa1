"""Which run holds a host's lock. The program that takes it is `run_lock.pl` next to this file."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.facts import FactBase

from rigup.facts.reading import Value, reading
from rigup.paths import RUN_LOCK, RUN_LOCK_COPY
from rigup.text import duration

__all__ = ["RunLock", "RunLockValue", "lock_command", "parse_run_lock"]


@dataclass(frozen=True)
class RunLockValue(Value):
    """The lock of a host. `run` identifies the last run that took it, empty if none has since the host's last boot.

    If it is `held`: who holds it on which machine, the process of its ssh connection on the host, since when (Unix
    time), and for how many seconds.
    """

    run: str = ""
    held: bool = False
    user: str = ""
    machine: str = ""
    pid: int = 0
    since: int = 0
    seconds: int = 0

    @property
    def holder(self) -> str:
        """Who holds it, and when that run took it."""
        return f"{self.user} on {self.machine}, started {duration(self.seconds)} ago"


def lock_command(*arguments: str) -> StringCommand:
    """Return the command that does something with the lock; `run_lock.pl` says what."""
    program = files("rigup.facts").joinpath("run_lock.pl").read_text()
    words = (program, RUN_LOCK, RUN_LOCK_COPY, *arguments)
    return StringCommand("perl -e", *map(QuoteString, words))


def parse_run_lock(lines: list[str]) -> RunLockValue:
    """Parse the answer of the program. Raises ValueError if it is something else."""
    match " ".join(lines).split():
        case ["free", run]:
            return RunLockValue("" if run == "-" else run)
        case ["held", run, user, machine, pid, since, now]:
            return RunLockValue(run, True, user, machine, int(pid), int(since), max(0, int(now) - int(since)))
    raise ValueError(f"expected the state of the lock, not {lines!r}")


class RunLock(FactBase[RunLockValue]):
    """The run that holds the host's lock."""

    @staticmethod
    def default() -> RunLockValue:
        return RunLockValue()

    def command(self) -> StringCommand:
        return lock_command("look")

    @reading
    def process(self, output: list[str]) -> RunLockValue:
        return parse_run_lock(output)
