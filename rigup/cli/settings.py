"""`rigup settings`: all settings with their defaults, one of them explained, or a JSON schema for editors."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from rigup.catalog.schema import recipe_schema
from rigup.cli._parser import Commands
from rigup.config.schema import inventory_schema
from rigup.config.settings_help import explained, settings_table

SCHEMAS = {"inventory": inventory_schema, "recipes": recipe_schema}
AUDIT = Path("tests/audit")
_CHECK = re.compile(r"@check\(([^)]*)\)\s+def test_([a-z]+)_")


def register(commands: Commands) -> None:
    """Add `rigup settings`."""
    parser = commands.add_parser(
        "settings", help="list all settings with their defaults, explain one, or print a schema for editors"
    )
    parser.add_argument("key", nargs="?", metavar="KEY", help="explain this setting (default: a Markdown table of all)")
    parser.add_argument(
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
    elif options.key:
        print(explained(options.key, steps_of), end="")
    else:
        print(settings_table(), end="")
    return 0


def steps_of(key: str) -> list[str]:
    """Return the steps whose result the audit compares with a setting; none outside a checkout."""
    found = (match for path in sorted(AUDIT.glob("test_*.py")) for match in _CHECK.finditer(path.read_text()))
    return list(dict.fromkeys(match[2] for match in found if f'"{key}"' in match[1]))
