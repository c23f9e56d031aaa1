"""The commands that messages tell the user to run: with the inventory that this process uses."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence


def inventory() -> str | None:
    """Return the inventory file that was named for this process; None for the one that commands find by themselves."""
    return os.environ.get("RIGUP_INVENTORY") or None


def with_inventory(words: Sequence[str], named: str | None) -> str:
    """Return a command line that uses an inventory."""
    return (f"RIGUP_INVENTORY={shlex.quote(named)} " if named else "") + shlex.join(words)


def rigup(*words: str) -> str:
    """Return a command line of rigup."""
    return with_inventory(("rigup", *words), inventory())


def deploy(hosts: Sequence[str] = ()) -> str:
    """Return the command line that deploys to these hosts, or to all."""
    return rigup("deploy", *hosts)
