"""The command line of `rigup-host`: the name of a program and its arguments."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

# Only the module that was asked for is imported: some need packages that others run without.
PROGRAMS = {
    "bench": "bench.run",
    "cards": "cards",
    "drift": "drift",
    "fetch": "fetch.run",
    "hardware": "hardware",
    "hub-worker": "fetch.hub_worker",
    "load": "load",
    "may-serve": "fetch.may_serve",
    "pull": "pull",
    "smoke": "smoke",
    "switch": "switch.run",
    "tool-calls": "tool_loop",
    "verify": "verify",
    "wait-ready": "wait_ready",
}


def main(argv: list[str] | None = None) -> int:
    """Run the program named by the first word; return its exit status."""
    words = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="rigup-host", description="Run one of rigup's host programs.")
    parser.add_argument("program", choices=PROGRAMS, help="the program; `rigup-host PROGRAM --help` shows its options")
    program = parser.parse_args(words[:1]).program
    return int(import_module(f"rigup_host.{PROGRAMS[program]}").main(words[1:]))


if __name__ == "__main__":
    sys.exit(main())
