"""systemd units: their states, and whether they run with their present files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.facts import FactBase

from rigup.facts.reading import Value, reading
from rigup.paths import APT_UNIT

PROPERTIES = (
    "LoadState",
    "ActiveState",
    "SubState",
    "Result",
    "Job",
    "UnitFileState",
    "NeedDaemonReload",
    "MainPID",
    "InvocationID",
    "NRestarts",
    "ExecMainStartTimestamp",
    "FragmentPath",
)
MTIME = "mtime="


@dataclass(frozen=True)
class UnitStateValue(Value):
    """The output of `systemctl show`, and when the unit's inputs were last written.

    `started` is when the main process started, `inputs` when each input file was written, in seconds since 1970, UTC.
    `fragment` is the unit file that systemd has loaded.
    """

    load: str = "not-found"
    active: str = "inactive"
    sub: str = "dead"
    result: str = "success"
    job: bool = False
    enabled: str = ""
    needs_reload: bool = False
    main_pid: int = 0
    invocation: str = ""
    restarts: int = 0
    started: float | None = None
    fragment: str = ""
    inputs: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_waiting_to_retry(self) -> bool:
        """Whether it failed, and systemd will start it again after `RestartSec`."""
        return self.sub.startswith("auto-restart")

    @property
    def runs(self) -> bool:
        """Whether it is active or becoming active."""
        return self.active in ("active", "reloading", "refreshing") or (
            self.active == "activating" and not self.is_waiting_to_retry
        )

    @property
    def newer_inputs(self) -> list[str]:
        """Input files that were written after the main process started, so it has not read them."""
        if self.started is None:
            return []
        return sorted(path for path, written in self.inputs.items() if written >= self.started)


def parse_unit_state(lines: list[str]) -> UnitStateValue:
    """Parse `systemctl show --timestamp=us+utc` and `stat` lines `mtime=SECONDS PATH`."""
    values: dict[str, str] = {}
    inputs: dict[str, float] = {}
    for line in lines:
        if line.startswith(MTIME):
            seconds, _, path = line.removeprefix(MTIME).partition(" ")
            inputs[path] = float(seconds)
        else:
            key, _, value = line.partition("=")
            values[key] = value
    if "ActiveState" not in values:
        return UnitStateValue(inputs=inputs)
    return UnitStateValue(
        load=values["LoadState"],
        active=values["ActiveState"],
        sub=values["SubState"],
        result=values.get("Result", ""),
        job=values.get("Job", "") not in ("", "0"),
        enabled=values.get("UnitFileState", ""),
        needs_reload=values.get("NeedDaemonReload") == "yes",
        main_pid=int(values.get("MainPID") or 0),
        invocation=values.get("InvocationID", ""),
        restarts=int(values.get("NRestarts") or 0),
        started=_seconds(values.get("ExecMainStartTimestamp", "")),
        fragment=values.get("FragmentPath", ""),
        inputs=inputs,
    )


def _seconds(timestamp: str) -> float | None:
    """Convert `Mon 2026-11-23 19:09:11.123456 UTC` to seconds; None if there is no time."""
    if not timestamp or timestamp == "n/a":
        return None
    _, date, time, _ = timestamp.split()
    moment = datetime.strptime(f"{date} {time}", "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=UTC)
    return moment.timestamp()


def parse_active_units(lines: list[str]) -> list[str]:
    """Parse unit names from `systemctl list-units --plain --no-legend`."""
    return sorted(line.split()[0] for line in lines if line.strip())


class UnitState(FactBase[UnitStateValue]):
    """The state of `unit`, and when the files in `inputs`, which its process reads, were written."""

    @staticmethod
    def default() -> UnitStateValue:
        return UnitStateValue()

    def command(self, unit: str, inputs: Sequence[str] = ()) -> StringCommand:
        show = StringCommand(
            "systemctl show --no-pager --timestamp=us+utc",
            *(f"--property={name}" for name in PROPERTIES),
            "--",
            QuoteString(unit),
            "2>/dev/null",
        )
        if not inputs:
            return StringCommand(show, "|| true")
        # %.6Y has fractions of a second; without them a file written right after the start would seem older.
        ages = StringCommand(
            f"stat -L -c '{MTIME}%.6Y %n' --", *(QuoteString(path) for path in inputs), "2>/dev/null || true"
        )
        return StringCommand(show, ";", ages)

    @reading
    def process(self, output: list[str]) -> UnitStateValue:
        return parse_unit_state(output)


class ActiveUnits(FactBase[list[str]]):
    """Names of the units matching the glob `pattern` that are active or starting."""

    @staticmethod
    def default() -> list[str]:
        return []

    def command(self, pattern: str) -> StringCommand:
        return StringCommand(
            "systemctl list-units --plain --no-legend --no-pager --state=active,activating,reloading --",
            QuoteString(pattern),
            "2>/dev/null || true",
        )

    @reading
    def process(self, output: list[str]) -> list[str]:
        return parse_active_units(output)


@dataclass(frozen=True)
class Work(Value):
    """A program that a deploy left to systemd and that still runs: since when (seconds since 1970), how far it is."""

    unit: str
    since: float | None
    progress: str


def parse_works(lines: list[str]) -> list[Work]:
    """Parse for each unit a line `--- UNIT`, its start as `systemctl show` prints it, and its last line."""
    found: list[Work] = []
    starts = [at for at, line in enumerate(lines) if re.fullmatch(r"--- rigup-[\w.@-]+\.service", line)]
    for at, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        timestamp = lines[at + 1].removeprefix("ExecMainStartTimestamp=") if at + 1 < end else ""
        found.append(Work(lines[at].removeprefix("--- "), _seconds(timestamp), lines[end - 1] if end > at + 2 else ""))
    return found


def with_builds(works: Iterable[Work], builds: Sequence[str]) -> list[Work]:
    """Return the works; that of apt says how far `DkmsBuilds` are, if there are any, in place of its last line."""
    line = "; ".join(builds)
    return [replace(work, progress=line) if line and work.unit == APT_UNIT else work for work in works]


class Works(FactBase[list[Work]]):
    """Pulls, packages and switches under way: each runs as a unit of its own, and survives its deploy."""

    @staticmethod
    def default() -> list[Work]:
        return []

    def command(self) -> str:
        return (
            "systemctl list-units --plain --no-legend --no-pager --state=activating 'rigup-*.service' 2>/dev/null | "
            'while read -r unit rest; do echo "--- $unit"; '
            'systemctl show --timestamp=us+utc --property=ExecMainStartTimestamp -- "$unit"; '
            "journalctl --no-pager --quiet --output=cat --lines=1 "
            '"_SYSTEMD_INVOCATION_ID=$(systemctl show --value --property=InvocationID -- "$unit")"; done; true'
        )

    @reading
    def process(self, output: list[str]) -> list[Work]:
        return parse_works(output)


class ProcessCommand(FactBase[list[str]]):
    """The command line with which the process `pid` was started; empty if there is none."""

    @staticmethod
    def default() -> list[str]:
        return []

    def command(self, pid: int) -> str:
        return f"tr '\\0' '\\n' 2>/dev/null </proc/{int(pid)}/cmdline || true"

    @reading
    def process(self, output: list[str]) -> list[str]:
        return output
