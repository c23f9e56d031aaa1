"""A timer on the control machine that writes the status page: units of the user's own systemd."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from rigup import atomic
from rigup.config.inventory import Inventory
from rigup.errors import RigupError
from rigup.render.systemd import systemd_command, systemd_quote
from rigup.templates import filled

UNIT = "rigup-status"


def install_timer(inventory: Inventory) -> None:
    """Write the units, and print how to start them. Raises RigupError if the inventory names no page."""
    if inventory.status_page is None:
        raise RigupError(f"{inventory.path} sets no `status_page`", "set it to the path of the page, then try again")
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd/user"
    texts = {
        "service": filled(
            "rigup-status.service.j2",
            command=systemd_command([sys.executable, "-m", "rigup.cli", "status", "--html"]),
            inventory=systemd_quote(f"RIGUP_INVENTORY={inventory.path}"),
            directory=str(Path.cwd()).replace("%", "%%"),
        ),
        "timer": filled("rigup-status.timer.j2"),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for kind, text in texts.items():
            atomic.write(folder / f"{UNIT}.{kind}", text, 0o644)
    except OSError as error:
        raise RigupError(f"cannot write units to {folder}: {error.strerror}", "set XDG_CONFIG_HOME") from error
    print(f"wrote {folder}/{UNIT}.service and {UNIT}.timer. To write {inventory.status_page} every five minutes:")
    print("    systemctl --user daemon-reload")
    print(f"    systemctl --user enable --now {UNIT}.timer")
    print("    loginctl enable-linger     # also while you are not logged in")
