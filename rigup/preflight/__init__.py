"""Preflight: everything that would stop a deploy half way, told before anything is touched. Pure.

What an earlier run of ours left is no problem: its own port, the part of a checkpoint that is there, packages that are
installed. Only what is still missing counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rigup.config.settings import Settings
from rigup.errors import Problem
from rigup.lock.lockfile import Lock
from rigup.plan.model import Plan
from rigup.preflight import disk, hardware, network, software
from rigup.preflight.disk import disk_paths, holds
from rigup.preflight.network import destinations
from rigup.preflight.snapshot import Case, Disk, HostFacts, Listener, PciDevice, Reachability, Slot
from rigup.preflight.software import FOREIGN

__all__ = [
    "FOREIGN",
    "Disk",
    "HostFacts",
    "Listener",
    "PciDevice",
    "Reachability",
    "Slot",
    "check",
    "destinations",
    "disk_paths",
    "holds",
    "remarks",
]

LOOKS = (
    hardware.system,
    hardware.privilege,
    software.packages,
    software.apt_sources,
    software.foreign,
    software.daemon_json,
    hardware.gpus,
    hardware.memory,
    disk.disk,
    disk.own_disk,
    disk.source,
    hardware.secure_boot,
    hardware.kernel_args,
    hardware.iommu,
    network.public_addresses,
    network.ports,
    software.failed,
    software.driver_cuda,
    software.driver_change,
    network.network,
)
"""Each adds the problems that it finds to a case; the table shows them in this order."""


REMARKS = (hardware.slots, software.cdi)
"""Likewise, of what nothing need stop for."""


def check(plan: Plan, settings: Settings, facts: HostFacts, lock: Lock) -> list[Problem]:
    """All problems of one host; an empty list means that a deploy may begin."""
    return _told(LOOKS, Case(plan, settings, facts, lock))


def remarks(plan: Plan, settings: Settings, facts: HostFacts, lock: Lock) -> list[Problem]:
    """What its owner should know of a host where nothing serves yet, though a deploy may begin."""
    return [] if facts.serving else _told(REMARKS, Case(plan, settings, facts, lock))


def _told(looks: Iterable[Callable[[Case], None]], case: Case) -> list[Problem]:
    for look in looks:
        look(case)
    return case.problems
