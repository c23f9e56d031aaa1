"""The `rigup` command: parse the command line and run one command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import metadata

from rigup.cli import (
    accept,
    audit,
    bench,
    check,
    completion,
    connect,
    deploy,
    diagnose,
    doctor,
    init,
    key,
    lock,
    logs,
    models,
    new_recipe,
    plan,
    rebuild,
    recipes,
    report,
    settings,
    show,
    status,
    topology,
    update,
    version,
)
from rigup.cli._parser import Parser
from rigup.cli._terminal import safe_streams
from rigup.errors import RigupError

# In the order of the help.
COMMANDS = (
    *(
        init,
        plan,
        deploy,
        audit,
        status,
        logs,
        diagnose,
        report,
        recipes,
        new_recipe,
        check,
        show,
        lock,
        update,
        models,
        key,
    ),
    *(connect, bench, topology, rebuild, accept, settings, doctor, completion, version),
)

EXIT_CODES = (
    "Exit codes: 0 success, 1 failure (including wrong usage), 130 Ctrl-C. 2 is a result: changes are pending "
    "(`plan`), the audit has findings or nothing is deployed (`audit`), the run did not succeed (`report`), "
    "something does not serve (`status`), no cause is known (`diagnose`), nothing matches (`recipes`, `logs`), "
    "the lock would change (`update --check`), something is worse than before (`bench --against`)."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser())
    try:
        with safe_streams():
            options = parser().parse_args(arguments)
            try:
                return int(options.run(options))
            except RigupError as error:
                print(error, file=sys.stderr)
                return 1
    except BrokenPipeError:
        # `rigup recipes | head`
        sys.stderr.close()
        return 1


def parser() -> Parser:
    """Build the parser of all commands."""
    top = Parser(prog="rigup", description="From bare GPU machines to a served model.", epilog=EXIT_CODES)
    top.add_argument("--version", action="version", version=f"rigup {metadata.version('rigup')}")
    commands = top.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    for command in COMMANDS:
        command.register(commands)
    return top
