"""The model store of a host: its checkpoints, who uses them, and the progress of downloads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, cast

from pydantic import Field
from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.facts import FactBase
from typing_extensions import TypedDict

from rigup.facts.reading import ONE_LINE_EACH, Value, read_object, reading
from rigup.paths import FETCH_UNIT, TRIAL_UNITS, fetch_progress, instance_of
from rigup.paths import PLAN as KEPT_PLAN
from rigup.paths import UNITS as IN_FORCE
from rigup.text import from_json

STAMP, PLAN, UNITS, RUNNING = "--- stamp ", "--- plan", "--- units", "--- running"
FILE = re.compile(r"(\d+) ([^/]+/[^/]+)/(\.?)([0-9a-f]{40})(\.incoming)?/.+")
# `grep -o` in the units of endpoints; a unit on trial takes precedence over the installed one (systemd.unit(5)).
THERE = "--- there"
USE = re.compile(r"(?P<place>/.*)/llm@(?P<name>.+)\.service:(?P<repo>[^/]+/[^/]+)/(?P<revision>[0-9a-f]{40})")
UNIT = re.compile(r"(llm|model-fetch)@(.+)\.service ")


@dataclass(frozen=True)
class Stored(Value):
    """A checkpoint in the store: `state` is verified, unverified or arriving; `used_by` names endpoints.

    `fetching` says whether its download is running. `unclear` are running endpoints that may use it: neither the
    plan nor their unit says which checkpoint they use.
    """

    repo: str
    revision: str
    bytes: int
    state: str
    verified_at: str = ""
    used_by: tuple[str, ...] = ()
    fetching: bool = False
    unclear: tuple[str, ...] = ()

    @property
    def instance(self) -> str:
        """As `CheckpointPlan.instance`."""
        return instance_of(self.repo, self.revision)


def parse_stored_models(lines: list[str]) -> list[Stored]:
    """Parse the output of the commands below (files, stamps, plan, uses, running units), by repository and commit."""
    sections: dict[str, list[str]] = {"": []}
    section = sections[""]
    for line in lines:
        if line.startswith(STAMP) or line in (PLAN, UNITS, RUNNING):
            section = sections.setdefault(line, [])
        else:
            section.append(line)
    sizes: dict[tuple[str, str, bool], int] = {}
    for line in sections[""]:
        if match := FILE.fullmatch(line):
            key = (match[2], match[4], bool(match[3] and match[5]))
            sizes[key] = sizes.get(key, 0) + int(match[1])
    records = [read_object("\n".join(text)) for name, text in sections.items() if name.startswith(STAMP)]
    stamps = {(stamp.get("repo"), stamp.get("revision")): stamp for stamp in records}
    uses = _planned(read_object("\n".join(sections.get(PLAN, []))))
    for line in sections.get(UNITS, []):
        if match := USE.match(line):
            trial = ", on trial" if match["place"] == TRIAL_UNITS else ""
            uses.add((match["repo"], match["revision"], match["name"] + trial))
    running = {(match[1], match[2]) for line in sections.get(RUNNING, []) if (match := UNIT.match(line))}
    known = {name.removesuffix(", on trial") for _, _, name in uses}
    unclear = sorted(name for kind, name in running if kind == "llm" and name not in known)
    found = []
    for (repo, revision, arriving), size in sorted(sizes.items()):
        stamp = stamps.get((repo, revision), {})
        complete = bool(stamp) and stamp.get("bytes") == size
        state = "arriving" if arriving else "verified" if complete else "unverified"
        verified_at = str(stamp["verified_at"]) if state == "verified" else ""
        used_by = tuple(sorted(name for *which, name in uses if which == [repo, revision]))
        stored = Stored(repo, revision, size, state, verified_at, used_by, unclear=tuple(unclear))
        found.append(replace(stored, fetching=("model-fetch", stored.instance) in running))
    return found


def _planned(plan: Mapping[str, Any]) -> set[tuple[str, str, str]]:
    """Return repository, commit and endpoint of everything that the plan uses; empty if it is damaged."""
    try:
        uses = [
            (checkpoint, each["name"])
            for each in plan.get("endpoints", [])
            for checkpoint in (each["checkpoint"], each.get("drafter"))
            if checkpoint is not None
        ]
        return {(str(checkpoint["repo"]), str(checkpoint["revision"]), str(name)) for checkpoint, name in uses}
    except (AttributeError, KeyError, TypeError):
        return set()


class FileSizes(FactBase[Mapping[str, int] | None]):
    """The bytes of each existing file of `names` in `directory`; None if there is no such directory."""

    @staticmethod
    def default() -> None:
        return None

    def command(self, directory: str, names: Sequence[str]) -> StringCommand:
        sizes = StringCommand("stat -L --printf '%s %n\\0' --", *map(QuoteString, names)) if names else "true"
        return StringCommand(
            "cd --", QuoteString(directory), f"2>/dev/null && {{ echo '{THERE}';", sizes, ONE_LINE_EACH, "; } || true"
        )

    @reading
    def process(self, output: list[str]) -> Mapping[str, int] | None:
        if output[:1] != [THERE]:
            return None
        return {name: int(size) for size, _, name in (line.partition(" ") for line in output[1:])}


class Progress(TypedDict, total=False):
    """What a download reports; see `rigup.text.progress_line`."""

    checkpoint: str
    step: str
    doing: str
    bytes_done: int
    bytes_total: int
    rate: Annotated[float, Field(allow_inf_nan=False)]


class FetchProgress(FactBase[Progress]):
    """What the download of `instance` (`CheckpointPlan.instance`) reported last; empty before its first report.

    `rigup.text.progress_line` formats it.
    """

    @staticmethod
    def default() -> Progress:
        return {}

    def command(self, instance: str) -> StringCommand:
        return StringCommand("cat --", QuoteString(fetch_progress(instance)), "2>/dev/null || true")

    @reading
    def process(self, output: list[str]) -> Progress:
        return cast(Progress, read_object("\n".join(output)))


class StoredModels(FactBase[list[Stored]]):
    """Every checkpoint in the directory `store`: its size, whether it was verified, and who uses it, as `Stored`."""

    @staticmethod
    def default() -> list[Stored]:
        return []

    def command(self, store: str) -> StringCommand:
        place = QuoteString(store)
        return StringCommand(
            "find", place, f"-mindepth 4 -type f -printf '%s %P\\0' {ONE_LINE_EACH};",
            "find", place, "-mindepth 3 -maxdepth 3 -regex '.*/[A-Za-z0-9._-]+[.]verified[.]json'",
            f"-printf '{STAMP}%P\\n' -exec cat -- {{}} ';' 2>/dev/null;",
            f"echo; echo '{PLAN}'; cat {KEPT_PLAN} 2>/dev/null; echo; echo '{UNITS}';",
            "grep -HoE '[^/=: ]+/[^/]+/[0-9a-f]{40}'",
            f"{IN_FORCE}/llm@*.service {TRIAL_UNITS}/llm@*.service 2>/dev/null; echo '{RUNNING}';",
            "systemctl list-units --plain --no-legend --no-pager --state=active,activating,reloading --",
            f"'llm@*.service' '{FETCH_UNIT}*.service' 2>/dev/null || true",
        )  # fmt: skip

    @reading
    def process(self, output: list[str]) -> list[Stored]:
        return parse_stored_models(output)


def parse_downloads(lines: list[str]) -> list[Progress]:
    """Parse units, lines `PATH:JSON` with the progress of each download, and `last FETCH_UNIT LINE` of failed units.

    Returns one object for each unit, with `checkpoint` and, after its first report, `step`, `bytes_done` and
    `bytes_total`. A failed one has the step `given up`, and its last line as `doing`.
    """
    reports: dict[str, dict[str, Any]] = {}
    last: dict[str, str] = {}
    units: dict[str, bool] = {}
    for line in lines:
        if line.startswith(FETCH_UNIT):
            name, _, active, *_ = line.split()
            units[_instance(name)] = active == "failed"
        elif line.startswith(f"last {FETCH_UNIT}"):
            name, _, text = line.removeprefix("last ").partition(" ")
            last[_instance(name)] = text
        elif line.startswith("/"):
            path, _, text = line.partition(":")
            reports[path.split("/")[-2]] = from_json(text)
    found = list[Progress]()
    for checkpoint, failed in sorted(units.items()):
        end = {"step": "given up", "doing": last.get(checkpoint, ""), "rate": 0} if failed else {}
        found.append(cast(Progress, {**reports.get(checkpoint, {}), "checkpoint": checkpoint, **end}))
    return found


def _instance(unit: str) -> str:
    return unit.removeprefix(FETCH_UNIT).removesuffix(".service")


class Downloads(FactBase[list[Progress]]):
    """The running downloads and their progress; also those that have given up, and why."""

    @staticmethod
    def default() -> list[Progress]:
        return []

    def command(self) -> str:
        units = f"systemctl list-units --plain --no-legend --no-pager '{FETCH_UNIT}*' 2>/dev/null --state"
        return (
            f"{units}=active,activating,failed; {units}=failed | while read -r unit rest; do "
            "printf 'last %s %s\\n' \"$unit\" "
            '"$(journalctl --no-pager --quiet --output=cat --lines=1 "_SYSTEMD_UNIT=$unit")"; done; '
            f"find {fetch_progress('*')} -maxdepth 0 -regex '[A-Za-z0-9._/-]+' -exec grep -H . {{}} + 2>/dev/null; true"
        )

    @reading
    def process(self, output: list[str]) -> list[Progress]:
        return parse_downloads(output)
