"""The host's own daily audit."""

from __future__ import annotations

from subject import PROGRAMS, UNITS, Subject, check, expect, expect_files


@check("minor", "daily_audit")
def test_watch_timer(rig: Subject) -> None:
    """The host looks at itself every day, or does not, as the setting says."""
    shown = rig.unit("rigup-audit.timer")
    due = "active, enabled" if rig.settings.daily_audit else "inactive, "
    expect(due, f"{shown.get('ActiveState')}, {shown.get('UnitFileState')}")
    if rig.settings.daily_audit:
        expect_files(rig, UNITS, "rigup-audit.service", "rigup-audit.timer")
        expect_files(rig, PROGRAMS, "daily_audit.py")
