"""What the commands about recipes share."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from rigup.catalog.loader import Catalog, default_catalog
from rigup.errors import RigupError


def add_recipe(parser: argparse.ArgumentParser, nargs: str | None = None, **more: Any) -> None:
    """Add RECIPE: `name` in the options, or a list `names` for the nargs `*`."""
    action = parser.add_argument(
        "names" if nargs == "*" else "name",
        nargs=nargs,
        metavar="RECIPE",
        **{"help": "a recipe of the catalog", **more},
    )
    action.completer = _names  # type: ignore[attr-defined]


def _names(**_: Any) -> list[str]:
    """Return the names of all recipes, for argcomplete."""
    try:
        return list(default_catalog().recipes)
    except RigupError:
        return []


def show_problems(catalog: Catalog) -> None:
    """Tell which of the user's recipes cannot be used, and why."""
    if notice := catalog.notice():
        print(notice, file=sys.stderr)
