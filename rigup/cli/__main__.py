"""The entry point of `rigup`: Ctrl-C at any moment prints one line and exits with 130.

It imports little itself, so that this also holds while the commands are imported.
"""

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130


def main() -> int:
    """Run `rigup` and return its exit code."""
    # Nothing needs to be cleaned up before a command runs, and nothing after it.
    signal.signal(signal.SIGINT, quit_at_once)
    from rigup.cli.main import main as run

    signal.signal(signal.SIGINT, _interrupt)
    try:
        return run()
    except KeyboardInterrupt:
        # Not as Python exits, which waits for threads: they may wait for hosts.
        quit_at_once()
    finally:
        signal.signal(signal.SIGINT, quit_at_once)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """End the command; a second Ctrl-C does not wait until it has ended."""
    signal.signal(signal.SIGINT, quit_at_once)
    raise KeyboardInterrupt


def quit_at_once(number: int = 0, frame: FrameType | None = None) -> NoReturn:
    """End the process, without the cleanup of Python."""
    # The terminal shows ^C without a line feed.
    os.write(2, b"\nInterrupted.\n" if os.isatty(2) else b"Interrupted.\n")
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
