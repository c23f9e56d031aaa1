"""The hardware step: power limits and PCIe settings, which a boot or a reloaded driver forgets."""

from __future__ import annotations

from pathlib import PurePath

from rigup.audit.check import check
from rigup.audit.expect import expect, expect_none, expect_units
from rigup.audit.subject import Subject
from rigup.hardware.power import wanted
from rigup.hardware.topology import access_control
from rigup.paths import HARDWARE_UNIT


@check("major", "gpu_power")
def test_hardware_power(rig: Subject) -> None:
    """The GPUs must have the configured power limits."""
    limits = rig.settings.gpu_power
    cards = zip(rig.gpus("index"), rig.gpus("uuid"), rig.gpus("power.limit"), strict=True)
    expected, found = {}, {}
    for index, uuid, limit in cards:
        watts = wanted(limits, int(index), uuid)
        if watts is not None:
            expected[f"GPU {index}"], found[f"GPU {index}"] = f"{watts}.00 W", limit
    expect(expected, found)


@check("major", "acs", root=True)
def test_hardware_acs(rig: Subject) -> None:
    """Access control must be off at the ports above the GPUs if the settings say so."""
    if rig.settings.acs:
        return
    # /sys/devices/pci0000:40/0000:40:01.1/0000:41:00.0: below the root bus, and above the GPU.
    ports = {str(parent) for path in rig.gpu_paths for parent in list(PurePath(path).parents)[:-4]}
    controlled = []
    for port in sorted(ports):
        bits = access_control(bytes.fromhex(rig.output("od -An -v -tx1 -w4096 %s/config", port)))
        controlled += [f"on at {port.rpartition('/')[2]}"] if bits else []
    expect_none("no access control", controlled)


@check("major", "gpu_power", "acs")
def test_hardware_unit(rig: Subject) -> None:
    """The unit that makes these settings must be enabled and have run, or not exist."""
    shown = rig.unit(HARDWARE_UNIT)
    wanted = rig.settings.gpu_power or not rig.settings.acs
    expect("active, enabled" if wanted else "inactive, ", f"{shown.get('ActiveState')}, {shown.get('UnitFileState')}")
    if wanted:
        expect_units(rig, HARDWARE_UNIT)
