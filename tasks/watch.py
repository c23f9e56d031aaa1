"""The host looks at itself every day, where the setting says so."""

from __future__ import annotations

from pathlib import Path

from pyinfra.api.deploy import deploy

from rigup.operations import files, systemd
from rigup.resources import FILES
from tasks.preflight import Context

__all__ = ["watch"]

SERVICE = "/etc/systemd/system/rigup-audit.service"
TIMER = "/etc/systemd/system/rigup-audit.timer"
PROGRAM = "/usr/local/lib/rigup/daily_audit.py"


@deploy("watch")
def watch(context: Context) -> None:
    """A timer audits the host once a day, or there is none."""
    if not context.settings.daily_audit:
        systemd.absent(name="Have no daily audit", unit="rigup-audit.timer", files=[TIMER, SERVICE])
        return
    files.install(
        name="Install the daily audit",
        dest=PROGRAM,
        content=(FILES / "daily_audit.py").read_text(),
        mode="755",
    )
    written = [
        files.install(name=f"Write {dest.rpartition('/')[2]}", dest=dest, content=(FILES / Path(dest).name).read_text())
        for dest in (SERVICE, TIMER)
    ]
    systemd.converge(name="Audit every day", unit="rigup-audit.timer", reload_for=written)
