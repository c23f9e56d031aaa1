"""Paths on the host. `rigup/paths.py` has the same ones for the control machine; a unit test compares them."""

from __future__ import annotations

import os
from pathlib import Path

# Tests set this to a directory that stands in for a host's root.
ROOT = Path(os.environ.get("RIGUP_ROOT", "/"))

ENVIRONMENT = ROOT / "etc/environment"
PLAN = ROOT / "etc/rigup/plan.json"
ENDPOINTS = ROOT / "etc/rigup/endpoints"
HARDWARE = ROOT / "etc/rigup/hardware.json"
BALANCERS_CONFIG = ROOT / "etc/rigup/load-balancers.json"
LEDGER = ROOT / "var/lib/rigup/ledger"
DAILY_AUDIT = ROOT / "var/lib/rigup/daily-audit.json"

# Units of endpoints: in force; on trial, where systemd prefers them and a boot forgets them; enabled at boot.
UNITS = ROOT / "usr/local/lib/systemd/system"
TRIAL_UNITS = ROOT / "run/systemd/system"
BOOT_UNITS = ROOT / "etc/systemd/system/multi-user.target.wants"

SWITCHES = ROOT / "var/lib/rigup/switch.json"
COMMIT = ROOT / "var/lib/rigup/commit.json"
SWITCH_LOCK = ROOT / "run/rigup/switch.lock"
SWITCH_UNDER_WAY = ROOT / "run/rigup/switch.json"

DRAINING = ROOT / "run/rigup-draining"
HARDWARE_BEFORE = ROOT / "run/rigup/hardware-before.json"
PCI_DEVICES = ROOT / "sys/bus/pci/devices"

FETCH_HOME = ROOT / "var/lib/rigup-fetch"
