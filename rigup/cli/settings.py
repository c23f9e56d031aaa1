"""`rigup settings`: all settings with their defaults, one of them explained, or a JSON schema for editors."""

from __future__ import annotations

import argparse
import json
import re

from rigup.catalog.schema import recipe_schema
from rigup.cli._output import print_json
from rigup.cli._parser import Commands, add_json
from rigup.cli._table import Table, show
from rigup.config.schema import inventory_schema
from rigup.config.settings_help import explained, settings_rows
from rigup.resources import AUDIT

JSON = {"settings": "a list: key, default (as text), what (what it is)"}
SCHEMAS = {"inventory": inventory_schema, "recipes": recipe_schema}
_CHECK = re.compile(r"@check\(([^)]*)\)\s+def test_([a-z]+)_")


def register(commands: Commands) -> None:
    """Add `rigup settings`."""
    parser = commands.add_parser(
        "settings", help="list all settings with their defaults, explain one, or print a schema for editors"
    )
    parser.add_argument("key", nargs="?", metavar="KEY", help="explain this setting (default: list all)")
    form = parser.add_mutually_exclusive_group()
    add_json(parser, JSON, form)
    form.add_argument(
        "--schema",
        nargs="?",
        const="inventory",
        choices=SCHEMAS,
        help="print the JSON schema of the inventory, or of recipe files",
    )
    parser.set_defaults(run=_settings)


def _settings(options: argparse.Namespace) -> int:
    """Run `rigup settings`. Raises RigupError for an unknown setting."""
    if options.schema:
        print(json.dumps(SCHEMAS[options.schema](), indent=2))
        return 0
    if options.key and not options.json:
        print(explained(options.key, steps_of), end="")
        return 0
    rows = [row for row in settings_rows() if options.key in (None, row[0], row[0].rpartition(".")[2])]
    if options.json:
        print_json({"settings": [dict(zip(("key", "default", "what"), row, strict=True)) for row in rows]})
    else:
        show(Table("key", "default", "what it is", rows=rows))
    return 0


def steps_of(key: str) -> list[str]:
    """Return the steps whose result the audit compares with a setting; none outside a checkout."""
    found = (match for path in sorted(AUDIT.glob("test_*.py")) for match in _CHECK.finditer(path.read_text()))
    return list(dict.fromkeys(match[2] for match in found if f'"{key}"' in match[1]))
