"""`rigup deploy`: bring hosts to their plan, by pyinfra."""

from __future__ import annotations

import argparse

from rigup.cli._hosts import add_host
from rigup.cli._parser import Commands
from rigup.cli._project import DEPLOY, add_pyinfra_options, run_pyinfra


def register(commands: Commands) -> None:
    """Add `rigup deploy`."""
    parser = commands.add_parser(
        "deploy",
        help="deploy: from a bare host to a served endpoint",
        description="Runs `pyinfra inventory/lab.py deploy.py` in the project directory, with --limit for each host. "
        "pyinfra itself has more options.",
        epilog="Exit codes: 0 success, 1 failure.",
    )
    add_host(parser, "*")
    add_pyinfra_options(parser)
    parser.set_defaults(run=_deploy)


def _deploy(options: argparse.Namespace) -> int:
    """Run `rigup deploy`. Raises RigupError for an unknown host, and outside a project directory."""
    run_pyinfra(DEPLOY, options)
