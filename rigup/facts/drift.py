"""The last result of the host's daily audit."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from pyinfra.api.facts import FactBase

from rigup.facts.reading import Value, reading
from rigup.paths import DAILY_AUDIT
from rigup.text import from_json

LATE_AFTER_H = 50


@dataclass(frozen=True)
class DailyAuditValue(Value):
    """When it ran (ISO 8601, UTC; empty: never), for which plan, and its findings, as `CHECK: FOUND`."""

    at: str = ""
    plan: str = ""
    findings: tuple[str, ...] = ()

    def words(self, now: datetime) -> str:
        """Return the result for a status line: `clean 3 h ago`, `2 findings 3 h ago`, with `late` if one was missed."""
        if not self.at:
            return "never"
        hours = int((now - datetime.fromisoformat(self.at)).total_seconds() // 3600)
        count = len(self.findings)
        result = "clean" if not count else f"{count} finding{'s' if count != 1 else ''}"
        return f"{result} {hours} h ago{', late' if hours >= LATE_AFTER_H else ''}"


def parse_daily_audit(lines: list[str]) -> DailyAuditValue:
    """Parse the JSON of the result; an empty value if it is missing or damaged."""
    try:
        record = from_json("\n".join(lines))
        findings = tuple(f"{finding['check']}: {finding['found']}" for finding in record["findings"])
        if datetime.fromisoformat(record["at"]).tzinfo is None:
            return DailyAuditValue()
        return DailyAuditValue(record["at"], str(record["plan"]), findings)
    except (ValueError, KeyError, TypeError):
        return DailyAuditValue()


class DailyAudit(FactBase[DailyAuditValue]):
    """The last result of the daily audit; only root can read it."""

    @staticmethod
    def default() -> DailyAuditValue:
        return DailyAuditValue()

    def command(self) -> str:
        return f"cat {DAILY_AUDIT} 2>/dev/null || true"

    @reading
    def process(self, output: list[str]) -> DailyAuditValue:
        return parse_daily_audit(output)
