"""Processes that commands start to do their work."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence
from typing import Any


def run_for_us(argv: Sequence[str], **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a program, as `subprocess.run` does, that Ctrl-C reaches only through this process.

    The terminal sends Ctrl-C to both. The program would print its own words about it and exit with its own code; so it
    ignores it, and is killed as this process ends. It only reads.
    """
    return subprocess.run(argv, preexec_fn=_ignore_ctrl_c, **more)


def _ignore_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
