"""`rigup settings`: all settings with their defaults."""

from __future__ import annotations

import argparse

from rigup.cli._parser import Commands
from rigup.config.settings import settings_table


def register(commands: Commands) -> None:
    """Add `rigup settings`."""
    parser = commands.add_parser("settings", help="print all settings with their defaults, as a Markdown table")
    parser.set_defaults(run=_settings)


def _settings(options: argparse.Namespace) -> int:
    print(settings_table(), end="")
    return 0
