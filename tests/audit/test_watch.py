"""The watch step: the host's own daily audit."""

from __future__ import annotations

from rigup.audit.check import check
from rigup.audit.expect import expect, expect_files
from rigup.audit.subject import PROGRAMS, UNITS, Subject


@check("minor", "daily_audit")
def test_watch_timer(rig: Subject) -> None:
    """The daily audit must run, or not, as configured."""
    shown = rig.unit("rigup-audit.timer")
    expected = "active, enabled" if rig.settings.daily_audit else "inactive, "
    expect(expected, f"{shown.get('ActiveState')}, {shown.get('UnitFileState')}")
    if rig.settings.daily_audit:
        expect_files(rig, UNITS, "rigup-audit.service", "rigup-audit.timer")
        expect_files(rig, PROGRAMS, "daily_audit.py")
