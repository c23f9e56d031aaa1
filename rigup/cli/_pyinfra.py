"""The program `pyinfra`, which Ctrl-C ends with one line and 130 from its first moment on.

pyinfra's own ends with a traceback while it is imported, and with 0 until it reads the inventory. From there on,
`rigup.run.interrupts` ends a run. It imports little itself, so that this also holds while pyinfra is imported.
"""

import signal
import sys

from rigup.cli.__main__ import quit_at_once

SIGINT = {signal.SIGINT}


def main() -> None:
    """Run pyinfra with the arguments of this process, which starts with SIGINT blocked."""
    signal.signal(signal.SIGINT, quit_at_once)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGINT)
    from pyinfra_cli import main as program

    command_line = program.cli

    def run() -> None:
        # pyinfra has set its own handler.
        signal.signal(signal.SIGINT, quit_at_once)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGINT)
        command_line(prog_name="pyinfra")

    program.cli = run
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGINT)
    program.main()


if __name__ == "__main__":
    sys.argv[0] = "pyinfra"
    main()
