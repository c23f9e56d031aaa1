"""An interrupted run ends at once, and with the exit code that shells count: 130 for Ctrl-C, 143 for SIGTERM.

pyinfra itself exits with 0 after Ctrl-C, as if all had gone well, and waits for what runs before it disconnects.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType

import pyinfra
from pyinfra.api.state import State

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def watch(state: State, note: Callable[[signal.Signals], None] | None = None) -> None:
    """Take over the signals of pyinfra's command line; a second one ends the process without ceremony.

    `note` is called first. Called again, the later `note` holds. Does nothing where pyinfra is used as a library.
    """
    if not pyinfra.is_cli:
        return

    def stop(number: int, frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        if note is not None:
            note(signal.Signals(number))
        if state.initialised:
            # pyinfra disconnects in the same pool, which is as large as the fleet: it would wait for what runs.
            state.pool.kill(block=False)
        sys.exit(128 + number)

    for each in SIGNALS:
        signal.signal(each, stop)
