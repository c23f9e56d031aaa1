"""The endpoints on a host: the generations whose files lie there, which of them is in force, and what failed before."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyinfra.api.facts import FactBase

from rigup.facts._reading import Value, read_object, reading
from rigup.plan.model import ENDPOINTS, UNITS

__all__ = ["JUDGED", "Endpoints", "EndpointsValue", "Tried", "parse_endpoints"]

SWITCHES = "/var/lib/rigup/switch.json"
# Until the next boot: a verdict is a matter of seconds.
JUDGED = "/run/rigup/judged"
PARTS = ("judged", "units", "active", "switches")
# A unit that is being tried comes before the one in force (systemd.unit(5)).
TRIALS = "/run/systemd/system"
UNIT_LINE = re.compile(r"(?P<place>/.*)/llm@(?P<name>.+)\.service:Generation=(?P<generation>\w+)$")


@dataclass(frozen=True)
class Tried(Value):
    """A generation that gave way to the one before it: its recipe, when (ISO 8601), and why."""

    recipe: str
    at: str
    why: str


@dataclass(frozen=True)
class EndpointsValue(Value):
    """Generations are named `(endpoint, generation)`.

    `records` has what `rigup.render.verify.record_text` wrote of each generation whose files are there, `judged`
    those whose
    image's parser took their arguments, `in_force` the generation of each endpoint's unit, `on_trial` that of a switch
    under way, `active` the endpoints that serve or start, `failed` what was tried here in vain, and `last` what the
    last switch came to.
    """

    records: Mapping[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)
    judged: frozenset[tuple[str, str]] = frozenset()
    in_force: Mapping[str, str] = field(default_factory=dict)
    on_trial: Mapping[str, str] = field(default_factory=dict)
    active: frozenset[str] = frozenset()
    failed: Mapping[tuple[str, str], Tried] = field(default_factory=dict)
    last: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ports(self) -> dict[tuple[str, str], int]:
        """The port of each generation."""
        return {generation: int(record["port"]) for generation, record in self.records.items()}

    @property
    def busy_ports(self) -> set[int]:
        """Ports that may be taken by endpoints of ours."""
        return {port for (name, _), port in self.ports.items() if name in self.active}

    def port_in_force(self, name: str) -> int | None:
        """The port of the endpoint's generation that is in force."""
        return self.ports.get((name, self.in_force.get(name, "")))

    @property
    def names(self) -> set[str]:
        """All endpoints that left anything on the host."""
        return {name for name, _ in self.ports} | set(self.in_force)


def parse_endpoints(lines: list[str]) -> EndpointsValue:
    """From the generations' records, one a line, and after `--- PART` lines what the command below prints."""
    parts: dict[str, list[str]] = {"records": []}
    here = parts["records"]
    for line in lines:
        if line.startswith("--- ") and line[4:] in PARTS:
            here = parts.setdefault(line[4:], [])
        else:
            here.append(line)
    records = [found for line in parts["records"] if (found := read_object(line))]
    marks = (line.split("/") for line in parts.get("judged", []) if line.startswith(f"{JUDGED}/"))
    units = [match for line in parts.get("units", []) if (match := UNIT_LINE.match(line))]
    active = (re.match(r"llm@(.+)\.service ", line) for line in parts.get("active", []))
    switches = read_object("\n".join(parts.get("switches", [])))
    return EndpointsValue(
        records={(record["name"], record["generation"]): record for record in records},
        judged=frozenset((words[-2], words[-1]) for words in marks),
        in_force={match["name"]: match["generation"] for match in units if match["place"] == UNITS},
        on_trial={match["name"]: match["generation"] for match in units if match["place"] == TRIALS},
        active=frozenset(match[1] for match in active if match),
        failed={
            (name, generation): Tried(entry["recipe"], entry["at"], entry["why"])
            for name, entries in switches.get("failed", {}).items()
            for generation, entry in entries.items()
        },
        last=switches.get("last", {}),
    )


class Endpoints(FactBase[EndpointsValue]):
    """See `EndpointsValue`."""

    @staticmethod
    def default() -> EndpointsValue:
        return EndpointsValue()

    def command(self) -> str:
        return (
            f"cat {ENDPOINTS}/*/*/endpoint.json 2>/dev/null; "
            f"echo '--- judged'; ls -d {JUDGED}/*/* 2>/dev/null; "
            f"echo '--- units'; grep -H '^Generation=' {UNITS}/llm@*.service {TRIALS}/llm@*.service 2>/dev/null; "
            "echo '--- active'; systemctl list-units --plain --no-legend --no-pager "
            "--state=active,activating,reloading -- 'llm@*.service' 2>/dev/null; "
            f"echo '--- switches'; cat {SWITCHES} 2>/dev/null || true"
        )

    @reading
    def process(self, output: list[str]) -> EndpointsValue:
        return parse_endpoints(output)
