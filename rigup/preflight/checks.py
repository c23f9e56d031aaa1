"""The order of preflight's checks and warnings."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rigup.config.settings import Settings
from rigup.errors import Problem
from rigup.lock.lockfile import Lock
from rigup.plan.model import Plan
from rigup.preflight import disk, hardware, network, software
from rigup.preflight.snapshot import HostCheck, HostFacts

CHECKS = (
    hardware.system,
    hardware.privilege,
    software.packages,
    software.headers,
    software.held,
    software.apt_sources,
    software.foreign,
    software.replaced,
    software.daemon_json,
    hardware.gpus,
    hardware.mig,
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
"""Each adds the problems that it finds to a `HostCheck`; the table shows them in this order."""

WARNINGS = (hardware.slots, software.interrupted, software.cdi)
"""Like CHECKS, for problems that do not stop a deploy."""


def check(plan: Plan, settings: Settings, facts: HostFacts, lock: Lock) -> list[Problem]:
    """Return all problems of one host; a deploy may start if there are none."""
    return _run(CHECKS, HostCheck(plan, settings, facts, lock))


def warnings(plan: Plan, settings: Settings, facts: HostFacts, lock: Lock) -> list[Problem]:
    """Return what the owner of a host should know although a deploy may start; empty once an endpoint serves there."""
    return [] if facts.endpoints.active_units else _run(WARNINGS, HostCheck(plan, settings, facts, lock))


def _run(checks: Iterable[Callable[[HostCheck], None]], host: HostCheck) -> list[Problem]:
    for each in checks:
        each(host)
    return host.problems
