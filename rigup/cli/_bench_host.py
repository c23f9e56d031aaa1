"""The host's side of `rigup bench`: what serves there, and what the measurement prints."""

from __future__ import annotations

import argparse
import hashlib
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from pyinfra.api.exceptions import FactProcessError

from rigup import commands
from rigup.cli._facts import Facts
from rigup.config.inventory import Host, Inventory
from rigup.errors import RigupError
from rigup.facts.endpoints import Endpoints
from rigup.facts.files import FileText
from rigup.facts.nvidia import DriverState, GpuList, GpuPower
from rigup.measure import schedule
from rigup.measure.evidence import Card, Evidence
from rigup.measure.figures import Targets, level_figures, tool_calls
from rigup.measure.records import End, Loop, Reader, Record, Repeat, Request
from rigup.paths import PLAN
from rigup.plan.model import EndpointPlan, kept_endpoint
from rigup.ssh.client import Client
from rigup.text import duration


@dataclass(frozen=True)
class Start:
    """What is measured, and on what; `known` are fields of the evidence."""

    plan: EndpointPlan
    targets: Targets
    known: dict[str, object]

    def evidence(self, records: list[Record], complete: bool) -> Evidence:
        """Return the evidence of these records."""
        kept = [each.model_dump() for each in records]
        figures = {"levels": level_figures(records, self.targets), "tool_calls": tool_calls(records)}
        return Evidence.model_validate(
            {**self.known, **figures, "targets": self.targets, "complete": complete, "records": kept}
        )


def look(client: Client, host: Host, name: str, inventory: Inventory, options: argparse.Namespace) -> Start:
    """Read what serves, and on which cards, in one round trip.

    Raises RigupError if what the host keeps of its plan is not what runs: the evidence would be about something else.
    """
    facts = Facts(client)
    text, found = facts.add(FileText(), path=PLAN), facts.add(Endpoints())
    driver, gpus, power = facts.add(DriverState()), facts.add(GpuList()), facts.add(GpuPower())
    facts.read()
    try:
        plan, endpoints = kept_endpoint(text(), name), found()
        limits = {each.uuid: each.watts for each in power()}
        cards = [
            Card(index=gpu.index, name=gpu.name, uuid=gpu.uuid, power_limit=limits.get(gpu.uuid)) for gpu in gpus()
        ]
        loaded = driver().loaded
    except FactProcessError as error:
        raise RigupError(f"{host.name}: {error}") from error
    where = f"{host.name}/{name}"
    if name in endpoints.on_trial:
        raise RigupError(f"{where}: a switch is under way", "wait until it has ended")
    if plan is None or endpoints.in_force.get(name) != plan.generation:
        why = "is not deployed" if name not in endpoints.in_force else "runs something else than the host's plan says"
        raise RigupError(f"{where} {why}", f"`{commands.deploy([host.name])}`")
    words = [*(f"--workload={each}" for each in options.workloads or ()), f"--max-users={options.max_users}"]
    words += [f"--tool-calls={options.tool_calls}"] if options.tool_calls is not None else []
    words += [f"--ttft={options.ttft}", f"--tpot={options.tpot}"]
    known = {
        "method": schedule.METHOD,
        "rigup": version("rigup"),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": commands.rigup("bench", where, *words),
        "host": host.name,
        "endpoint": name,
        "engine": plan.engine,
        "recipe": plan.recipe,
        "generation": plan.digest,
        "image": plan.image,
        "image_tag": plan.image_tag,
        "packages": list(plan.venv.packages) if plan.venv else [],
        "repo": plan.checkpoint.repo,
        "revision": plan.checkpoint.revision,
        "drafter": plan.drafter.source if plan.drafter else None,
        "driver": loaded,
        "cards": [card for card in cards if plan.gpus == "all" or card.index in plan.gpus or card.uuid in plan.gpus],
        "lock": _digest(inventory.lock),
    }
    return Start(plan, Targets(ttft=options.ttft, tpot=options.tpot), known)


def _digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


@dataclass
class Measured:
    """What a host has printed so far; progress goes to standard error."""

    reader: Reader
    levels: list[schedule.Level] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    at_end: bool = False

    def write(self, chunk: bytes) -> None:
        """Take output of the host. Raises RigupError for what is not a record."""
        for record in self.reader.read(chunk):
            self.at_end = isinstance(record, End)
            if not self.at_end:
                self.records.append(record)
            if isinstance(record, Repeat):
                self._tell(record)
            elif isinstance(record, Loop):
                print(f"tool calls: try {record.number + 1}: {record.error or 'right'}", file=sys.stderr, flush=True)

    def _tell(self, repeat: Repeat) -> None:
        requests = [each for each in self.records if isinstance(each, Request)]
        own = [each for each in requests if (each.workload, each.concurrency) == (repeat.workload, repeat.concurrency)]
        failed = sum(bool(each.error) for each in own if each.repeat == repeat.repeat)
        what = f"repeat {repeat.repeat} of {schedule.REPEATS}" if repeat.repeat else "warm-up"
        left = schedule.seconds_left(self.levels, requests)
        parts = [f"{repeat.workload}, {repeat.concurrency} at a time, {what}"]
        parts += [f"{failed} failed"] if failed else []
        parts += [f"about {duration(left)} left"] if left is not None else []
        print(", ".join(parts), file=sys.stderr, flush=True)
