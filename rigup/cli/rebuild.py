"""`rigup rebuild`: reset hosts to bare, by pyinfra."""

from __future__ import annotations

import argparse

from rigup.cli._hosts import add_host
from rigup.cli._parser import Commands
from rigup.cli._project import REBUILD, add_pyinfra_options, run_pyinfra


def register(commands: Commands) -> None:
    """Add `rigup rebuild`."""
    parser = commands.add_parser(
        "rebuild",
        help="reset hosts to bare; checkpoints stay",
        description="Runs `pyinfra inventory/lab.py rebuild.py` in the project directory, with --limit for each host. "
        "--dry lists what would be removed; --data remove_store=yes removes the checkpoints too.",
        epilog="Exit codes: 0 success, 1 failure.",
    )
    add_host(parser, "+")
    add_pyinfra_options(parser)
    parser.set_defaults(run=_rebuild)


def _rebuild(options: argparse.Namespace) -> int:
    """Run `rigup rebuild`. Raises RigupError for an unknown host, and outside a project directory."""
    run_pyinfra(REBUILD, options)
