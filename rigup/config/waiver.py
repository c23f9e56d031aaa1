"""Waivers: findings that the owner of a host accepts for a limited time."""

from __future__ import annotations

from datetime import date
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

from rigup.config.findings import AUDIT_CHECKS, CANNOT_WORK, FINDINGS, RECIPE_FINDINGS
from rigup.config.types import Date, Line
from rigup.config.yaml_file import complaint
from rigup.errors import suggestion

MIN_REASON = 8
"""Characters of a waiver's reason."""


def _reason(value: str) -> str:
    if len(value) < MIN_REASON:
        raise complaint(
            f"{value!r} is too short: a reason has at least {MIN_REASON} characters",
            "say why the finding does no harm, for whoever reads it when the waiver ends",
        )
    return value


def _finding_id(value: str) -> str:
    known = {*FINDINGS, *RECIPE_FINDINGS, *AUDIT_CHECKS}
    if value not in known:
        raise complaint(
            f"there is no finding {value!r}",
            suggestion(value, known, "preflight, `rigup check` and `rigup audit` print the id of each finding"),
        )
    if FINDINGS.get(value) is CANNOT_WORK:
        raise complaint(
            f"no waiver accepts {value}: the deploy could not work",
            "remove it, and solve the problem that preflight names",
        )
    return value


WAIVABLE = [
    *(id for id, is_at_own_risk in FINDINGS.items() if is_at_own_risk),
    *RECIPE_FINDINGS,
    *AUDIT_CHECKS,
]
"""The ids of findings that a waiver may accept."""

FindingId = Annotated[str, AfterValidator(_finding_id), WithJsonSchema({"type": "string", "enum": WAIVABLE})]


class Waiver(BaseModel):
    """Why a finding is accepted, and until when."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: Annotated[Line, AfterValidator(_reason)] = Field(
        description="Why it is accepted; shown with the finding.",
        examples=["old disks until spring"],
        json_schema_extra={"minLength": MIN_REASON},
    )
    until: Date = Field(description="Last day of the waiver, such as 2027-01-31.", examples=["2027-01-31"])

    def holds(self, today: date) -> bool:
        """Return whether the waiver still accepts its finding."""
        return today <= self.until

    def note(self, today: date) -> str:
        """Return what is said about a finding with this waiver."""
        return f"{'waived until' if self.holds(today) else 'the waiver expired on'} {self.until}: {self.reason}"
