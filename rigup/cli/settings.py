"""`rigup settings`: all settings with their defaults."""

from __future__ import annotations

import argparse

from rigup.cli._output import print_json
from rigup.cli._parser import Commands, add_json
from rigup.cli._table import Table, show
from rigup.config.settings import settings_rows

JSON = {"settings": "a list: key, default (as text), what (what it is)"}


def register(commands: Commands) -> None:
    """Add `rigup settings`."""
    parser = commands.add_parser("settings", help="list all settings with their defaults")
    add_json(parser, JSON)
    parser.set_defaults(run=_settings)


def _settings(options: argparse.Namespace) -> int:
    rows = list(settings_rows())
    if options.json:
        print_json({"settings": [dict(zip(("key", "default", "what"), row, strict=True)) for row in rows]})
    else:
        show(Table("key", "default", "what it is", rows=rows))
    return 0
