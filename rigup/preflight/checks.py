"""The order of preflight's checks and warnings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import date

from rigup.errors import Problem
from rigup.preflight import disk, docker, hardware, kernel, network, software
from rigup.preflight.snapshot import HostCheck

CHECKS = (
    hardware.system,
    hardware.container,
    hardware.privilege,
    software.packages,
    software.headers,
    software.held,
    software.apt_sources,
    software.apt,
    software.builds,
    software.foreign,
    software.replaced,
    docker.daemon_json,
    docker.flags,
    hardware.gpus,
    hardware.bound,
    hardware.mig,
    hardware.power,
    hardware.memory,
    disk.disk,
    disk.own_disk,
    disk.source,
    hardware.secure_boot,
    kernel.disabled,
    kernel.kernel_args,
    kernel.iommu,
    network.public_addresses,
    network.ports,
    software.failed,
    software.driver_cuda,
    software.driver_change,
    network.network,
)
"""Each adds the problems that it finds to a `HostCheck`; the table shows them in this order."""

WARNINGS = (hardware.slots, software.interrupted, docker.cdi)
"""Like CHECKS, for problems that do not stop a deploy."""


def check(host: HostCheck, today: date) -> tuple[list[Problem], list[Problem]]:
    """Return the problems of one host that stop a deploy, and what its owner should know nevertheless.

    The latter are problems that a waiver accepts, and warnings; there are no warnings once an endpoint serves there.
    """
    problems, known = _judged(CHECKS, host, today)
    if not host.facts.endpoints.active_units:
        known += _judged(WARNINGS, host, today)[0]
    return problems, known


def _judged(
    checks: Iterable[Callable[[HostCheck], None]], host: HostCheck, today: date
) -> tuple[list[Problem], list[Problem]]:
    """Return what the checks find: first what no waiver accepts, then what one does."""
    before = len(host.problems)
    for each in checks:
        each(host)
    standing, accepted = list[Problem](), list[Problem]()
    for problem in host.problems[before:]:
        if waiver := host.settings.waivers.get(problem.id):
            noted = replace(problem, found=f"{problem.found} ({waiver.note(today)})")
            (accepted if waiver.holds(today) else standing).append(noted)
        else:
            standing.append(problem)
    return standing, accepted
