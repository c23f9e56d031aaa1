"""The daily audit of a host, if the settings ask for it."""

from __future__ import annotations

from pyinfra.api.deploy import deploy

from rigup.operations import files, systemd
from rigup.paths import AUDIT_TIMER, AUDIT_UNIT, SYSTEM_UNITS
from rigup.render.systemd import audit_service_text, audit_timer_text
from tasks.context import Context


@deploy("watch")
def watch(context: Context) -> None:
    """Audit the host once a day with a timer, or remove the timer."""
    units = {f"{SYSTEM_UNITS}/{AUDIT_UNIT}": audit_service_text(), f"{SYSTEM_UNITS}/{AUDIT_TIMER}": audit_timer_text()}
    if not context.settings.daily_audit:
        systemd.absent(name="Remove the daily audit", unit=AUDIT_TIMER, files=list(units))
        return
    written = [
        files.install(name=f"Write {path.rpartition('/')[2]}", dest=path, content=content)
        for path, content in units.items()
    ]
    systemd.converge(name="Enable the daily audit", unit=AUDIT_TIMER, reload_for=written)
