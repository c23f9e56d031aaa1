"""The order of preflight's checks and warnings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import date

from rigup.errors import Problem
from rigup.preflight import disk, hardware, network, software
from rigup.preflight.snapshot import HostCheck

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


def check(host: HostCheck, today: date) -> list[Problem]:
    """Return the problems of one host that no waiver accepts; a deploy may start if there are none."""
    return [problem for problem in _judged(CHECKS, host, today) if not _is_accepted(problem, host, today)]


def warnings(host: HostCheck, today: date) -> list[Problem]:
    """Return what the owner of a host should know although a deploy may start: accepted problems, and warnings.

    There are no warnings once an endpoint serves there.
    """
    accepted = [problem for problem in _judged(CHECKS, host, today) if _is_accepted(problem, host, today)]
    if host.facts.endpoints.active_units:
        return accepted
    return [*accepted, *(each for each in _judged(WARNINGS, host, today) if not _is_accepted(each, host, today))]


def _judged(checks: Iterable[Callable[[HostCheck], None]], host: HostCheck, today: date) -> list[Problem]:
    """Return what the checks find, with what is to be said about its waiver."""
    host.problems = []
    for each in checks:
        each(host)
    return [_with_note(problem, host, today) for problem in host.problems]


def _with_note(problem: Problem, host: HostCheck, today: date) -> Problem:
    waiver = host.settings.waivers.get(problem.id)
    return replace(problem, found=f"{problem.found} ({waiver.note(today)})") if waiver else problem


def _is_accepted(problem: Problem, host: HostCheck, today: date) -> bool:
    waiver = host.settings.waivers.get(problem.id)
    return waiver is not None and today <= waiver.until
