"""Set what GPUs and PCIe ports lose at a boot or when the driver is reloaded: power limits and access control (ACS).

`hardware apply` sets what the configuration file says; `hardware restore` puts back what was there before the first
`apply` since the boot. The file is JSON: `power` has watts for all GPUs (`all`), or by index or UUID; `acs` is false to
clear the access control of the ports above the GPUs.

Exit status: 0 all is set, 1 something is not, which is reported.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rigup_host import files, paths

NVIDIA, DISPLAY_CONTROLLER = 0x10DE, 0x03
SMI_S = 60

# PCI Express Base Specification: extended capabilities begin at 0x100; ACS has ID 0x000d, its control register is at 6.
FIRST_EXTENDED, ACS, ACS_CONTROL = 0x100, 0x000D, 6


class NotSet(Exception):
    """A setting could not be made."""


def main(argv: list[str]) -> int:
    """Run `apply` or `restore`; return the exit status."""
    parser = argparse.ArgumentParser(prog="rigup-host hardware", description="Set power limits and access control.")
    parser.add_argument("what", choices=("apply", "restore"))
    what = parser.parse_args(argv).what
    before = read(paths.HARDWARE_BEFORE)
    wanted = read(paths.HARDWARE) if what == "apply" else {}
    problems: list[str] = []
    for setting in (power, access_control):
        try:
            setting(wanted, before)
        except NotSet as error:
            problems.append(str(error))
    # Also after a failure: some values may be set.
    files.write(paths.HARDWARE_BEFORE, json.dumps(before) + "\n")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def read(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one if there is no such file."""
    try:
        found = files.from_json(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def power(wanted: Mapping[str, Any], before: dict[str, Any]) -> None:
    """Set the power limits, or put back those from before. Raise NotSet with all cards that refused."""
    limits: Mapping[str, int] = wanted.get("power") or {}
    kept: dict[str, str] = before.setdefault("power", {})
    if not limits and not kept:
        return
    problems = []
    for index, uuid, now in cards():
        target = limits.get(uuid, limits.get(index, limits.get("all")))
        if target is not None:
            kept.setdefault(uuid, now)
        watts = kept.pop(uuid, None) if target is None else target
        if watts is not None and float(watts) != float(now):
            try:
                smi("-i", uuid, f"--power-limit={watts}")
            except NotSet as error:
                problems.append(f"GPU {index}: {watts} W: {error}")
    if problems:
        raise NotSet("\n".join(problems))


def cards() -> list[tuple[str, str, str]]:
    """Return index, UUID and power limit in watts of each GPU. Raise NotSet without a driver."""
    lines = smi("--query-gpu=index,uuid,power.limit", "--format=csv,noheader,nounits").splitlines()
    rows = [[cell.strip() for cell in line.split(",")] for line in lines]
    return [(index, uuid, limit) for index, uuid, limit in (row for row in rows if len(row) == 3)]


def smi(*arguments: str) -> str:
    """Return what nvidia-smi prints. Raise NotSet with its words if it fails."""
    try:
        done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=SMI_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotSet(f"nvidia-smi: {error}") from error
    if done.returncode:
        raise NotSet((done.stdout.strip() or done.stderr.strip() or f"exit code {done.returncode}").splitlines()[0])
    return done.stdout


def access_control(wanted: Mapping[str, Any], before: dict[str, Any]) -> None:
    """Clear the access control of the ports above the GPUs, or put it back. Raise NotSet if a port refuses."""
    kept: dict[str, int] = before.setdefault("acs", {})
    clear = wanted.get("acs") is False
    ports = ports_above_gpus() if clear else [path for name in kept if (path := paths.PCI_DEVICES / name).is_dir()]
    refused = []
    for port in ports:
        config = (port / "config").read_bytes()
        at = control_register(config)
        if at is None:
            continue
        now = int.from_bytes(config[at : at + 2], "little")
        value = 0 if clear else kept.get(port.name, now)
        if clear and now:
            kept.setdefault(port.name, now)
        if value != now and not written(port / "config", at, value):
            refused.append(port.name)
    if refused:
        raise NotSet(
            f"access control (ACS) of {', '.join(refused)} cannot be changed. With Secure Boot the kernel forbids it: "
            "turn ACS off in the firmware, and remove `acs` from the inventory."
        )
    if not clear:
        kept.clear()


def ports_above_gpus() -> list[Path]:
    """Return the bridges above all GPUs, each once."""
    found, bus = set(), paths.PCI_DEVICES
    for device in bus.iterdir():
        if number(device / "vendor") == NVIDIA and number(device / "class") >> 16 == DISPLAY_CONTROLLER:
            # /sys/devices/pci0000:40/0000:40:01.1/0000:41:00.0: above are the root bus and the bridges.
            found |= {parent.name for parent in device.resolve().parents if (bus / parent.name).is_symlink()}
    return sorted(bus / name for name in found)


def number(path: Path) -> int:
    """Return the hexadecimal number in a file; 0 if it cannot be read."""
    try:
        return int(path.read_text(), 16)
    except (OSError, ValueError):
        return 0


def control_register(config: bytes) -> int | None:
    """Return where the control register of access control is in a configuration space; None if there is none."""
    at, seen = FIRST_EXTENDED, set[int]()
    while FIRST_EXTENDED <= at <= len(config) - 8 and at not in seen:
        seen.add(at)
        header = int.from_bytes(config[at : at + 4], "little")
        if header & 0xFFFF == ACS:
            return at + ACS_CONTROL
        at = header >> 20 & ~3
    return None


def written(config: Path, at: int, value: int) -> bool:
    """Write a register; return whether the device took it."""
    word = value.to_bytes(2, "little")
    try:
        with config.open("r+b", buffering=0) as file:
            file.seek(at)
            file.write(word)
    except OSError:
        return False
    return config.read_bytes()[at : at + 2] == word
