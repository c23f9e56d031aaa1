"""The hosts for pyinfra: from `inventory/lab.yaml` if it exists, else from the embedded lab.

`RIGUP_INVENTORY` names another file. `RIGUP_CONNECTOR=ssh` selects pyinfra's own connector instead of `@rig`.
"""

import os
from pathlib import Path

from rigup.catalog.check_names import check_names
from rigup.catalog.loader import default_catalog
from rigup.config.inventory import find_inventory, load_inventory
from rigup.errors import RigupError
from rigup.run.recorder import prepare
from rigup.ssh.login import pyinfra_hosts

try:
    inventory = load_inventory(find_inventory(Path(__file__).resolve().parent))
    check_names(inventory, default_catalog())
    lab = pyinfra_hosts(inventory, os.environ.get("RIGUP_CONNECTOR") or "rig")
except RigupError as error:
    # pyinfra prints any other exception with a line of this file, which is not where the mistake is.
    raise SystemExit(f"--> The inventory cannot be used:\n{error}") from None

# From here on, even a run that reaches no host writes its report.
prepare()
