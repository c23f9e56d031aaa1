"""`rigup diagnose`: explain an engine's failure from its log."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rigup.cli._parser import Commands
from rigup.diagnosis.explain import explain
from rigup.errors import RigupError


def register(commands: Commands) -> None:
    """Add `rigup diagnose`."""
    parser = commands.add_parser(
        "diagnose",
        help="explain an engine's failure from its log",
        description="Searches a log for known failures: `ssh HOST journalctl -u llm@main | rigup diagnose`.",
        epilog="Exit codes: 0 a known cause was found, 1 no known cause was found.",
    )
    parser.add_argument("log", nargs="?", type=Path, metavar="FILE", help="the log (default: standard input)")
    parser.set_defaults(run=_diagnose)


def _diagnose(options: argparse.Namespace) -> int:
    """Run `rigup diagnose`. Raises RigupError if the log cannot be read."""
    try:
        log = options.log.read_bytes() if options.log else sys.stdin.buffer.read()
    except OSError as error:
        raise RigupError(f"{options.log}: {error.strerror}") from error
    causes = explain(log.decode(errors="replace").splitlines())
    print("\n".join(causes or ["No known failure in this log."]))
    return 0 if causes else 1
