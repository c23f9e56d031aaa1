"""The `rigup` command: parse the command line and run one command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version

from rigup.cli import (
    accept,
    audit,
    check,
    connect,
    deploy,
    diagnose,
    init,
    key,
    lock,
    models,
    plan,
    rebuild,
    recipes,
    report,
    settings,
    show,
    status,
    topology,
    update,
)
from rigup.cli._parser import Parser
from rigup.cli._terminal import safe_streams
from rigup.errors import RigupError

# In the order of the help.
COMMANDS = (
    *(init, plan, deploy, audit, status, report, recipes, check, show, lock, update, models, key, connect),
    *(diagnose, topology, rebuild, accept, settings),
)

EXIT_CODES = (
    "Exit codes: 0 success, 1 failure (including wrong usage). 2 is a result: changes are pending (`plan`), the audit "
    "has findings (`audit`), the run did not succeed (`report`), something does not serve (`status`), the lock would "
    "change (`update --check`)."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        with safe_streams():
            options = parser().parse_args(arguments)
            try:
                return int(options.run(options))
            except RigupError as error:
                print(error, file=sys.stderr)
                return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # `rigup recipes | head`
        sys.stderr.close()
        return 1


def parser() -> Parser:
    """Build the parser of all commands."""
    top = Parser(prog="rigup", description="From bare GPU machines to a served model.", epilog=EXIT_CODES)
    top.add_argument("--version", action="version", version=f"rigup {version('rigup')}")
    commands = top.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    for command in COMMANDS:
        command.register(commands)
    return top
