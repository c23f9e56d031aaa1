"""The hosts for pyinfra: from `inventory/lab.yaml` if it exists, else from the embedded lab.

`RIGUP_INVENTORY` names another file. `RIGUP_CONNECTOR=ssh` selects pyinfra's own connector instead of `@rig`.
"""

# ruff: noqa: E402 - Ctrl-C must end the run at once from here on, and the other imports take long.
from rigup.run import interrupts

interrupts.watch()

import os
from pathlib import Path

from rigup.config.inventory import find_inventory, load_inventory
from rigup.errors import RigupError
from rigup.run.recorder import prepare
from rigup.ssh.login import pyinfra_hosts

try:
    _inventory = load_inventory(find_inventory(Path(__file__).resolve().parent))
    lab = pyinfra_hosts(_inventory, os.environ.get("RIGUP_CONNECTOR") or "rig")
except RigupError as error:
    # pyinfra prints any other exception with a line of this file, which is not where the mistake is.
    raise SystemExit(f"--> The inventory cannot be used:\n{error}") from None

# From here on, even a run that reaches no host writes its report.
prepare(_inventory)
