"""What the files of a project directory call, one line each.

    deploy.py            from rigup.project import deploy; deploy()
    rebuild.py           from rigup.project import rebuild; rebuild()
    inventory/lab.py     from rigup.project import hosts; lab = hosts(__file__)
    group_data/all.py    from rigup.project import defaults; globals().update(defaults())

Projects stay as they are when rigup is upgraded: these names and arguments must keep their meaning.
"""

# ruff: noqa: E402 - Ctrl-C must end the run at once from here on, and the other imports take long.
from __future__ import annotations

from rigup.run import interrupts

interrupts.watch()

import os
import sys
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

from rigup.catalog.check_names import check_names
from rigup.catalog.loader import default_catalog
from rigup.config.inventory import find_inventory, load_inventory
from rigup.config.settings import Settings
from rigup.errors import RigupError
from rigup.resources import DEPLOY, REBUILD, ROOT
from rigup.run.recorder import prepare
from rigup.ssh.login import pyinfra_hosts


def deploy() -> None:
    """Take the steps of a deploy on the current host."""
    _run(DEPLOY)


def rebuild() -> None:
    """Reset the current host to bare."""
    _run(REBUILD)


def hosts(file: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the hosts for pyinfra: of `lab.yaml` next to `file` if it exists, else of the embedded lab.

    `RIGUP_INVENTORY` names another inventory. `RIGUP_CONNECTOR=ssh` selects pyinfra's own connector instead of `@rig`.
    """
    try:
        inventory = load_inventory(find_inventory(Path(file).resolve().parent))
        check_names(inventory, default_catalog())
        found = pyinfra_hosts(inventory, os.environ.get("RIGUP_CONNECTOR") or "rig")
    except RigupError as error:
        # pyinfra prints any other exception with a line of the file, which is not where the mistake is.
        raise SystemExit(f"--> The inventory cannot be used:\n{error}") from None
    # From here on, even a run that reaches no host writes its report.
    prepare(inventory)
    return found


def defaults() -> dict[str, Any]:
    """Return the defaults of all settings, as data for pyinfra; the inventory and `--data` override them."""
    return Settings.from_data({}).model_dump(mode="json")


def _run(file: Path) -> None:
    """Run a deploy file, once per host as pyinfra does. Its lines give the operations their order."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    exec(_code(file), {"__file__": str(file)})


@cache
def _code(file: Path) -> CodeType:
    return compile(file.read_text(encoding="utf-8"), str(file), "exec")
