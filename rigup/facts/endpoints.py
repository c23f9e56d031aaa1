"""The endpoints on a host: which generations have files there, which one is installed, and which failed before."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, cast

from pyinfra.api.facts import FactBase
from typing_extensions import TypedDict

from rigup.facts.reading import ONE_LINE_EACH, Value, read_object, reading
from rigup.paths import CHECKED_ARGUMENTS, ENDPOINTS, SWITCHES, TRIAL_UNITS, UNITS

PARTS = ("checked", "units", "active", "switches")
UNIT_LINE = re.compile(r"(?P<place>/.*)/llm@(?P<name>.+)\.service:Generation=(?P<generation>\w+)$")


@dataclass(frozen=True)
class Tried(Value):
    """A generation that was rolled back: its recipe, when (ISO 8601), and why."""

    recipe: str
    at: str
    why: str


class Record(TypedDict):
    """What `rigup.render.verify.record_text` wrote, as far as it is read here."""

    name: str
    generation: str
    recipe: str
    gpus: Literal["all"] | list[int | str]
    address: str
    port: int
    ready_path: str
    served_name: NotRequired[str]


@dataclass(frozen=True)
class EndpointsValue(Value):
    """The endpoints and their generations, by `(endpoint, generation)` or by endpoint.

    `records` has what `rigup.render.verify.record_text` wrote for each generation whose files exist. `checked` are
    the generations whose engine accepted their arguments. `in_force` is the generation of each installed unit,
    `on_trial` that of a running switch. `active` are the endpoints that serve or start. `failed` are the generations
    that were rolled back here, and `last` is the result of the last switch.
    """

    records: Mapping[tuple[str, str], Record] = field(default_factory=dict)
    checked: frozenset[tuple[str, str]] = frozenset()
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
        """The ports that active endpoints may listen on."""
        return {port for (name, _), port in self.ports.items() if name in self.active}

    def port_in_force(self, name: str) -> int | None:
        """Return the port of the endpoint's installed generation."""
        return self.ports.get((name, self.in_force.get(name, "")))

    @property
    def names(self) -> set[str]:
        """All endpoints with anything on the host."""
        return {name for name, _ in self.ports} | set(self.in_force)


def parse_endpoints(lines: list[str]) -> EndpointsValue:
    """Parse the generations' records, one per line, and after `--- PART` lines the output of the commands below."""
    parts: dict[str, list[str]] = {"records": []}
    here = parts["records"]
    for line in lines:
        if line.startswith("--- ") and line[4:] in PARTS:
            here = parts.setdefault(line[4:], [])
        else:
            here.append(line)
    records = [found for line in parts["records"] if (found := read_object(line))]
    marks = (line.split("/") for line in parts.get("checked", []) if line.startswith(f"{CHECKED_ARGUMENTS}/"))
    units = [match for line in parts.get("units", []) if (match := UNIT_LINE.match(line))]
    active = (re.match(r"llm@(.+)\.service ", line) for line in parts.get("active", []))
    switches = read_object("\n".join(parts.get("switches", [])))
    return EndpointsValue(
        records={(record["name"], record["generation"]): cast(Record, record) for record in records},
        checked=frozenset((words[-2], words[-1]) for words in marks),
        in_force={match["name"]: match["generation"] for match in units if match["place"] == UNITS},
        on_trial={match["name"]: match["generation"] for match in units if match["place"] == TRIAL_UNITS},
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
            f"echo '--- checked'; find {CHECKED_ARGUMENTS}/*/* -maxdepth 0 -print0 {ONE_LINE_EACH}; "
            f"echo '--- units'; grep -H '^Generation=' {UNITS}/llm@*.service {TRIAL_UNITS}/llm@*.service 2>/dev/null; "
            "echo '--- active'; systemctl list-units --plain --no-legend --no-pager "
            "--state=active,activating,reloading -- 'llm@*.service' 2>/dev/null; "
            f"echo '--- switches'; cat {SWITCHES} 2>/dev/null || true"
        )

    @reading
    def process(self, output: list[str]) -> EndpointsValue:
        return parse_endpoints(output)
