"""Settings of GPUs and PCIe ports, which a boot or a reloaded driver forgets and anybody with root can change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyinfra.api.command import QuoteString
from pyinfra.api.host import Host
from pyinfra.api.operation import OperationMeta, operation
from pyinfra.context import host

from rigup.facts.nvidia import GpuPower, PowerLimit
from rigup.facts.pci import AccessControl, PciTopology, PciTopologyValue
from rigup.facts.units import UnitState, UnitStateValue
from rigup.hardware.power import wanted
from rigup.operations._host import Commands, check, work
from rigup.operations.systemd import ENABLED, changed, start


@operation()
def applied(unit: str, power: Mapping[str, int], acs: bool, reload_for: Sequence[OperationMeta] = ()) -> Commands:
    """Make `unit` set power limits and access control at each boot, and now where they differ.

    + power: watts for all GPUs (`all`), or by index or UUID
    + acs: whether access control stays as the firmware set it
    + reload_for: operations that write the unit or its configuration, or restart what forgets these settings
    """
    state: UnitStateValue = host.get_fact(UnitState, unit=unit)
    forgotten = any(changed(meta) for meta in reload_for)
    wrong = _wrong(power, acs)
    if state.active == "active" and state.enabled in ENABLED and not state.needs_reload and not forgotten and not wrong:
        host.noop("power limits and PCIe settings are as configured")
        return

    def apply(host: Host) -> None:
        name = QuoteString(unit)
        failing = f"could not enable {unit} on {host.name}"
        check(host, "systemctl daemon-reload && systemctl enable --quiet --", name, failing=failing)
        start(host, unit, timeout=180, verb="restart")

    yield work(apply, f"apply {unit}")


def _wrong(power: Mapping[str, int], acs: bool) -> bool:
    """Return whether the host differs now."""
    limits: list[PowerLimit] = host.get_fact(GpuPower) if power else []
    if any(wanted(power, each.index, each.uuid) not in (None, each.watts) for each in limits):
        return True
    if acs:
        return False
    topology: PciTopologyValue = host.get_fact(PciTopology)
    return any(host.get_fact(AccessControl, ports=topology.ports).values())
