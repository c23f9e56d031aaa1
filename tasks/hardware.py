"""Power limits and PCIe settings, which a boot or a reloaded driver forgets."""

from __future__ import annotations

import json

from pyinfra.api.deploy import deploy
from pyinfra.api.operation import OperationMeta

from rigup.config.settings import Settings
from rigup.operations import files, systemd
from rigup.operations import hardware as hardware_operations
from rigup.paths import HARDWARE, HARDWARE_UNIT, SYSTEM_UNITS
from rigup.render.systemd import hardware_unit_text
from tasks.context import Context


@deploy("hardware")
def hardware(context: Context, persistence: OperationMeta) -> None:
    """Set power limits and access control now and at each boot, or put back the cards' own values.

    + persistence: the operation that restarts the persistence daemon. systemd starts the unit of these settings again
      with it, but does not wait for it.
    """
    settings, unit = context.settings, f"{SYSTEM_UNITS}/{HARDWARE_UNIT}"
    if not settings.gpu_power and settings.acs:
        systemd.absent(name="Remove the GPUs' settings", unit=HARDWARE_UNIT, files=[unit, HARDWARE])
        return
    written = [
        files.install(name="Write the GPUs' settings", dest=HARDWARE, content=hardware_text(settings)),
        files.install(name="Write the unit of the GPUs' settings", dest=unit, content=hardware_unit_text()),
    ]
    hardware_operations.applied(
        name="Apply the GPUs' settings",
        unit=HARDWARE_UNIT,
        power=settings.gpu_power,
        acs=settings.acs,
        reload_for=[*written, persistence],
    )


def hardware_text(settings: Settings) -> str:
    """Return the configuration of `rigup-host hardware`."""
    return json.dumps({"power": settings.gpu_power, "acs": settings.acs}, sort_keys=True) + "\n"
