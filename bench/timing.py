"""Run and time commands: whole programs from start to end, as a user at a terminal waits for them."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
DEPLOY = (str(BIN / "pyinfra"), "inventory/lab.py", "deploy.py", "-y")


class BenchError(Exception):
    """A measurement failed or does not count; the message says why."""


@dataclass(frozen=True)
class Command:
    """A command line with its environment, and a pattern that its output must match for the run to count."""

    argv: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    expect: str = ""


@dataclass
class Case:
    """The times of one tool for one job, at one distance, with so many hosts."""

    job: str
    tool: str
    hosts: int = 1
    round_trip_ms: int = 0
    seconds: list[float] = field(default_factory=list)
    executions: float | None = None
    """Remote executions per host, if the tool counts them."""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def as_json(self) -> dict[str, Any]:
        rounded = [round(seconds, 3) for seconds in self.seconds]
        return {**asdict(self), "seconds": rounded, "median": round(self.median, 3)}


def run(command: Command) -> tuple[float, str]:
    """Return the seconds and the output. Raises BenchError when the command fails or its output does not match."""
    # As at a user's terminal, where Python caches bytecode.
    usual = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    began = time.monotonic()
    done = subprocess.run(
        list(command.argv),
        cwd=ROOT,
        env={**usual, **command.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    seconds = time.monotonic() - began
    shown = " ".join(command.argv)
    if done.returncode:
        raise BenchError(f"`{shown}` exited with {done.returncode}:\n{done.stdout[-6000:]}")
    if not re.search(command.expect, done.stdout):
        raise BenchError(f"`{shown}` printed nothing that matches {command.expect!r}:\n{done.stdout[-6000:]}")
    return seconds, done.stdout


def plural(count: int, word: str) -> str:
    """Return `1 host`, `8 hosts`."""
    return f"{count} {word}{'' if count == 1 else 's'}"
