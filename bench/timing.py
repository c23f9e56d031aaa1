"""Timing commands: whole programs, from start to end, as somebody at a terminal waits for them."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["BenchError", "Case", "Command", "run"]

ROOT = Path(__file__).resolve().parent.parent


class BenchError(Exception):
    """A measurement that is none; the message says why."""


@dataclass(frozen=True)
class Command:
    """A command line with its environment, and what its output must hold for the run to count."""

    argv: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    proves: str = ""


@dataclass
class Case:
    """What one tool took for one job, at one distance, for so many hosts."""

    job: str
    tool: str
    hosts: int = 1
    round_trip_ms: int = 0
    seconds: list[float] = field(default_factory=list)
    executions: float | None = None
    """Remote executions per host, where the tool counts them."""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def as_json(self) -> dict[str, Any]:
        rounded = [round(seconds, 3) for seconds in self.seconds]
        return {**asdict(self), "seconds": rounded, "median": round(self.median, 3)}


def run(command: Command) -> tuple[float, str]:
    """Seconds, and what was printed. Raises BenchError when it fails or does not prove what it must."""
    # As at a user's terminal, where Python keeps what it has compiled.
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
        raise BenchError(f"`{shown}` ended with {done.returncode}:\n{done.stdout[-6000:]}")
    if not re.search(command.proves, done.stdout):
        raise BenchError(f"`{shown}` printed nothing like {command.proves!r}:\n{done.stdout[-6000:]}")
    return seconds, done.stdout
