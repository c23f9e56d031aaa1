"""Queries and commands to systemd."""

from __future__ import annotations

import subprocess


def show(unit: str, *properties: str) -> dict[str, str]:
    """Return these properties of a unit, empty if systemd reports none. Raise CalledProcessError if it fails."""
    argv = ["systemctl", "show", f"--property={','.join(properties)}", "--", unit]
    shown = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    found = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    return {name: found.get(name, "") for name in properties}


def systemctl(*words: str) -> None:
    """Run systemctl. Raise CalledProcessError if it fails."""
    subprocess.run(["systemctl", *words], check=True)
