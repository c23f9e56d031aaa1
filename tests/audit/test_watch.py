"""The watch step: the host's own daily audit."""

from __future__ import annotations

from rigup.audit.check import check
from rigup.audit.expect import expect, expect_units
from rigup.audit.subject import Subject
from rigup.paths import AUDIT_TIMER, AUDIT_UNIT


@check("minor", "daily_audit")
def test_watch_timer(rig: Subject) -> None:
    """The daily audit must run, or not, as configured."""
    shown = rig.unit(AUDIT_TIMER)
    expected = "active, enabled" if rig.settings.daily_audit else "inactive, "
    expect(expected, f"{shown.get('ActiveState')}, {shown.get('UnitFileState')}")
    if rig.settings.daily_audit:
        expect_units(rig, AUDIT_UNIT, AUDIT_TIMER)
