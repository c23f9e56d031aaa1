"""End an interrupted run at once, with the exit code that shells use: 130 for Ctrl-C, 143 for SIGTERM.

pyinfra itself exits with 0 after Ctrl-C, as if the run had succeeded, and waits for running commands before it
disconnects.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType

import gevent
import pyinfra
from pyinfra.api.state import State
from pyinfra.context import ctx_state

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def watch(note: Callable[[signal.Signals], None] | None = None) -> None:
    """Replace the signal handlers of pyinfra's command line; a second signal ends the process immediately.

    `note` is called first; without it, Ctrl-C prints one line. The last call wins. Does nothing if pyinfra is used as a
    library.
    """
    if not pyinfra.is_cli:
        return
    state: State = ctx_state.get()  # type: ignore[no-untyped-call]

    def stop(number: int, frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        if note is not None:
            note(signal.Signals(number))
        elif number == signal.SIGINT:
            # The terminal shows ^C without a line feed. The buffered stream may be in use.
            os.write(2, b"\nInterrupted.\n" if os.isatty(2) else b"Interrupted.\n")
        if state.initialised:
            # pyinfra disconnects in the same pool, which is as large as the fleet: it would wait for what is running.
            state.pool.kill(block=False)
        # In the main greenlet, whichever runs now: raised in one of paramiko's threads, it would end that thread alone.
        gevent.get_hub().handle_system_error(SystemExit, SystemExit(128 + number))

    for each in SIGNALS:
        signal.signal(each, stop)
