"""Preflight: everything that would stop a deploy half way, told before anything is touched. Pure.

What an earlier run of ours left is no problem: its own port, the part of a checkpoint that is there, packages that are
installed. Only what is still missing counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rigup.errors import Problem
from rigup.lock import Lock
from rigup.plan import Plan
from rigup.preflight import machine, room, software, ways
from rigup.preflight.room import disk_paths, holds
from rigup.preflight.seen import Case, Disk, HostFacts, Listener, PciDevice, Reachability, Slot
from rigup.preflight.software import FOREIGN
from rigup.preflight.ways import destinations
from rigup.settings import Settings

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
    machine.system,
    machine.privilege,
    software.packages,
    software.apt_sources,
    software.foreign,
    software.daemon_json,
    machine.gpus,
    machine.memory,
    room.disk,
    room.own_disk,
    room.source,
    machine.secure_boot,
    machine.kernel_args,
    machine.iommu,
    ways.public_addresses,
    ways.ports,
    software.failed,
    software.driver_cuda,
    software.driver_change,
    ways.network,
)
"""Each adds the problems that it finds to a case; the table shows them in this order."""


REMARKS = (machine.slots, software.cdi)
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
