"""What the commands about recipes share."""

from __future__ import annotations

import sys

from rigup.catalog.loader import Catalog


def show_problems(catalog: Catalog) -> None:
    """Tell which of the user's recipes cannot be used, and why."""
    if notice := catalog.notice():
        print(notice, file=sys.stderr)
