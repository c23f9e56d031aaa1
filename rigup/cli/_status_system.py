"""`rigup status --system`: whether each host runs the kernel, the driver and the settings that it should."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyinfra.api.exceptions import FactProcessError
from rich.text import Text

from rigup.cli._facts import Facts
from rigup.cli._hosts import Target, on_each
from rigup.cli._table import Table
from rigup.config.inventory import Host
from rigup.facts.kernel import KernelState, KernelStateValue, ModuleParameters, ModuleParametersValue
from rigup.facts.nvidia import DriverState, DriverStateValue
from rigup.operations.reboot import reasons
from rigup.ssh.client import Client, Unreachable


@dataclass(frozen=True)
class Row:
    """One thing: what was found, and whether it is as it should be; `expected` is empty if nothing certain is."""

    what: str
    found: str
    expected: str = ""

    @property
    def ok(self) -> bool:
        """Whether it is as it should be."""
        return not self.expected or self.found == self.expected


@dataclass(frozen=True)
class SystemStatus:
    """The rows of a host, and why it needs a reboot; `error` is why nothing is known."""

    error: str | None = None
    rows: tuple[Row, ...] = ()
    reboot: tuple[str, ...] = ()


def look_at_systems(targets: Sequence[Target]) -> dict[str, SystemStatus]:
    """Read all hosts in parallel."""
    return on_each({target.host.name: target.host for target in targets}, _read)


def _read(host: Host) -> SystemStatus:
    try:
        with Client(host) as client:
            facts = Facts(client)
            kernel, driver = facts.add(KernelState()), facts.add(DriverState())
            parameters = facts.add(ModuleParameters(), modules=sorted(host.settings.modprobe_options))
            facts.read()
        return system_of(host, kernel(), driver(), parameters())
    except Unreachable as error:
        return SystemStatus(error.why)
    except FactProcessError as error:
        return SystemStatus(f"it answered something unexpected: {error}")


def system_of(
    host: Host, kernel: KernelStateValue, driver: DriverStateValue, parameters: ModuleParametersValue
) -> SystemStatus:
    """Return what a host's kernel and driver are, beside what the inventory says."""
    settings = host.settings
    on_disk = driver.on_disk.get(kernel.release)
    rows = [
        Row("kernel that runs", kernel.release),
        Row("kernel that boots next", kernel.boots_next, kernel.release),
        Row("driver, loaded", driver.loaded or "none", on_disk or ""),
        Row("driver, on disk for this kernel", on_disk or "none", driver.loaded or ""),
        Row("driver, for the next kernel", driver.on_disk.get(kernel.boots_next) or "none", on_disk or ""),
        Row("driver, libraries", driver.userspace or "none", driver.loaded or ""),
        Row("open kernel modules", "yes" if driver.open_module else "no", "yes"),
        Row("nouveau", "loaded" if driver.nouveau else "not loaded", "not loaded"),
    ]
    rows += [
        Row(f"kernel argument {argument}", "in effect" if argument in kernel.arguments else "missing", "in effect")
        for argument in settings.kernel_args
    ]
    for module, options in sorted(settings.modprobe_options.items()):
        for name, value in sorted(options.items()):
            found = parameters.parameters.get(module, {}).get(name, "not loaded")
            effective = parameters.in_effect(module, name, value)
            rows.append(Row(f"{module} {name}", str(value) if effective else found, str(value)))
    why = reasons(kernel, driver, parameters, settings.kernel_args, settings.modprobe_options)
    return SystemStatus(rows=tuple(rows), reboot=tuple(why))


def systems_table(systems: dict[str, SystemStatus]) -> Table:
    """Return a row for each thing, and for each reason to reboot."""
    made = Table("host", "what", "found", "should be")
    for name, system in systems.items():
        first = name
        if system.error:
            made.add_row(name, "unreachable", Text(system.error, "red"), "")
        for row in system.rows:
            made.add_row(first, row.what, Text(row.found, "" if row.ok else "red"), "" if row.ok else row.expected)
            first = ""
        for why in system.reboot or (("not needed",) if system.rows else ()):
            made.add_row(first, "reboot", Text(why, "yellow" if system.reboot else ""), "")
    return made


def exit_code(systems: dict[str, SystemStatus]) -> int:
    """Return 0 if all hosts run what they should, 2 if some do not, 1 if one is unreachable."""
    if any(system.error for system in systems.values()):
        return 1
    fine = all(not system.reboot and all(row.ok for row in system.rows) for system in systems.values())
    return 0 if fine else 2
