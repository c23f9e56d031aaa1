"""`rigup status`: what serves on each host, since when, how full its GPUs are, and what is downloading.

It only reads, over ssh: the host's copy of the plan, the endpoints and what is on trial, the units, the GPUs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from rich.live import Live
from rich.text import Text

from rigup.cli._facts import Facts
from rigup.cli._hosts import Target, add_host, add_inventory, find_targets, on_each, read_inventory
from rigup.cli._output import print_json
from rigup.cli._parser import Commands, add_json
from rigup.cli._table import Table
from rigup.cli._terminal import SafeConsole
from rigup.config.inventory import Host
from rigup.facts.drift import DailyAudit, DailyAuditValue
from rigup.facts.endpoints import Endpoints, EndpointsValue
from rigup.facts.files import FileText
from rigup.facts.network import HttpStatus
from rigup.facts.nvidia import GpuUse
from rigup.facts.serving import Verification
from rigup.facts.store import Downloads
from rigup.facts.units import UnitState, UnitStateValue
from rigup.paths import PLAN, endpoint_unit, verification_of
from rigup.plan.model import kept_plan
from rigup.ssh.client import Client, Unreachable
from rigup.text import progress_line

EVERY_S = 2.0

STYLES = {"serving": "green", "starting": "yellow", "stopped": "yellow", "not verified": "yellow"}

JSON = {
    "at": "when the hosts were read (ISO 8601, UTC)",
    "hosts": "by name: error, endpoints (name, recipe, gpus, url, state, on_trial, health, since, restarts, verified), "
    "gpus (index, used, total, busy; memory in MiB), downloads (checkpoint, step, doing, bytes_done, bytes_total, "
    "rate), audit (at, plan, findings; null if there is no daily audit)",
}

Status = dict[str, Any]
T = TypeVar("T")


def register(commands: Commands) -> None:
    """Add `rigup status`."""
    parser = commands.add_parser(
        "status",
        help="show what serves on each host and what is downloading",
        description="Reads the hosts and changes nothing.",
        epilog="Exit codes: 0 all endpoints serve, 2 some do not, 1 a host is unreachable.",
    )
    add_host(parser, "*", endpoints=True)
    add_json(parser, JSON)
    parser.add_argument(
        "--watch", action="store_true", help="refresh every two seconds until Ctrl-C; with --json, one line each"
    )
    add_inventory(parser)
    parser.set_defaults(run=_status)


def _status(options: argparse.Namespace) -> int:
    """Run `rigup status`. Raises RigupError for an unknown host or endpoint."""
    targets = find_targets(read_inventory(options), options.hosts)
    if not options.watch:
        status = look(targets)
        if options.json:
            print_json(status)
        else:
            render(status, SafeConsole())
        return exit_code(status)
    if options.json:
        while True:
            print_json(look(targets), indent=None)
            time.sleep(EVERY_S)
    with Live(auto_refresh=False, screen=True, console=SafeConsole()) as live:
        while True:
            live.update(table(look(targets)), refresh=True)
            time.sleep(EVERY_S)


def exit_code(status: Status) -> int:
    """Return 0 if all endpoints serve, 2 if some do not, 1 if a host is unreachable."""
    hosts = status["hosts"].values()
    if any(host["error"] for host in hosts):
        return 1
    serving = all(endpoint["state"] == "serving" for host in hosts for endpoint in host["endpoints"])
    return 0 if serving and all(host["endpoints"] for host in hosts) else 2


def look(targets: Sequence[Target]) -> Status:
    """Read the status of all hosts in parallel; of a host whose endpoints are named, only these."""
    hosts = {target.host.name: target.host for target in targets}
    found = on_each(hosts, _look_at)
    selected = {name: select(status, name, targets) for name, status in found.items()}
    return {"at": datetime.now(UTC).isoformat(timespec="seconds"), "hosts": selected}


def select(status: Status, name: str, targets: Sequence[Target]) -> Status:
    """Return a host's status with only those endpoints that are named, if any are."""
    endpoints = {target.endpoint for target in targets if target.host.name == name}
    if None in endpoints:
        return status
    return status | {"endpoints": [each for each in status["endpoints"] if each["name"] in endpoints]}


def _look_at(host: Host) -> Status:
    empty: Status = {"error": None, "endpoints": [], "gpus": [], "downloads": [], "audit": None}
    try:
        with Client(host) as client:
            status = empty | _read(client)
        # A host may claim anything; what cannot be shown ends only its own row.
        table({"at": datetime.now(UTC).isoformat(), "hosts": {host.name: status}})
        return status
    except Unreachable as error:
        return empty | {"error": error.why}
    except Exception as error:
        return empty | {"error": f"it answered something unexpected ({type(error).__name__}: {error})"}


def _read(client: Client) -> Status:
    first = Facts(client)
    plan_text = first.add(FileText(), path=PLAN)
    gpus, downloads, daily = first.add(GpuUse()), first.add(Downloads()), first.add(DailyAudit())
    found = first.add(Endpoints())
    first.read()
    endpoints = endpoints_of(plan_text(), found())
    second = Facts(client)
    facts = [
        (
            endpoint,
            second.add(UnitState(), unit=endpoint_unit(endpoint["name"])),
            second.add(Verification(), path=verification_of(f"endpoint-{endpoint['name']}"),
                       unit=endpoint_unit(endpoint["name"])),
            second.add(HttpStatus(), url=_url(endpoint) + endpoint["ready_path"]),
        )
        for endpoint in endpoints
    ]  # fmt: skip
    second.read()
    return {
        "gpus": [use.to_json() for use in gpus()],
        "downloads": downloads(),
        "audit": daily().to_json() if daily().at else None,
        "endpoints": [
            {
                "name": endpoint["name"],
                "recipe": endpoint["recipe"],
                "gpus": endpoint["gpus"],
                "url": _url(endpoint),
                "state": state_of(unit(), health(), verification().passed_since_start),
                "on_trial": endpoint["name"] in found().on_trial,
                "health": health(),
                "since": _since(unit()),
                "restarts": unit().restarts,
                "verified": verification().record.get("at") if verification().passed_since_start else None,
            }
            for endpoint, unit, verification, health in facts
        ],
    }


def endpoints_of(plan: str | None, found: EndpointsValue) -> list[Mapping[str, Any]]:
    """Return the endpoints on trial or in force, and those that only the host's copy of the plan names."""
    # A damaged copy has none; the audit reports that.
    planned = {endpoint["name"]: endpoint for endpoint in kept_plan(plan).get("endpoints", [])}
    units = {**found.in_force, **found.on_trial}
    there = {name: found.records[name, units[name]] for name in units if (name, units[name]) in found.records}
    return [endpoint for _, endpoint in sorted({**planned, **there}.items())]


def _url(endpoint: Mapping[str, Any]) -> str:
    address = str(endpoint["address"])
    return f"http://{f'[{address}]' if ':' in address else address}:{endpoint['port']}"


def state_of(unit: UnitStateValue, health: int, verified: bool) -> str:
    """Return what an endpoint does, in one or two words."""
    if unit.is_waiting_to_retry:
        return "failing"
    if unit.active == "active":
        if health != 200:
            return "not healthy"
        return "serving" if verified else "not verified"
    words = {"activating": "starting", "deactivating": "stopping", "failed": "failed"}
    return words.get(unit.active, "stopped" if unit.load == "loaded" else "not deployed")


def _since(unit: UnitStateValue) -> str | None:
    if unit.started is None or not unit.runs:
        return None
    return datetime.fromtimestamp(unit.started, UTC).isoformat(timespec="seconds")


def render(status: Status, console: SafeConsole) -> None:
    """Print the status for a person."""
    console.print(table(status), crop=False)


def table(status: Status) -> Table:
    """Return one row for each endpoint, and one for each host that has none or is unreachable."""
    audited = any(host.get("audit") for host in status["hosts"].values())
    columns = ("host", "endpoint", "state", "recipe", "since", "GPU memory", "download")
    made = Table(*columns, *(("daily audit",) if audited else ()))
    for name, host in status["hosts"].items():
        memory, fetched = _memory(host["gpus"]), "; ".join(map(_download, host["downloads"]))
        own = [_audit(host.get("audit"), status["at"])] if audited else []
        if host["error"]:
            made.add_row(name, "", Text(host["error"], "red"))
        elif not host["endpoints"]:
            made.add_row(name, "", Text("nothing deployed", "yellow"), "", "", memory, fetched, *own)
        for at, endpoint in enumerate(host["endpoints"]):
            state = endpoint["state"] + (", on trial" if endpoint["on_trial"] else "")
            if restarts := endpoint["restarts"]:
                state += f", {restarts} restart{'s' if restarts != 1 else ''}"
            styled = Text(state, STYLES.get(endpoint["state"], "red"))
            since = (endpoint["since"] or "")[:16].replace("T", " ")
            shown: list[str | Text] = [memory, fetched, *own] if at == 0 else []
            made.add_row(name if at == 0 else "", endpoint["name"], styled, endpoint["recipe"], since, *shown)
    return made


def _audit(found: Mapping[str, Any] | None, now: str) -> Text:
    daily = DailyAuditValue(found["at"], found["plan"], tuple(found["findings"])) if found else DailyAuditValue()
    return Text(daily.words(datetime.fromisoformat(now)), "red" if daily.findings else "green" if found else "")


def _memory(gpus: Sequence[Mapping[str, Any]]) -> str:
    if not gpus:
        return "unknown"
    used, total = (sum(gpu[key] for gpu in gpus) / 1024 for key in ("used", "total"))
    return f"{used:.0f} of {total:.0f} GiB on {len(gpus)}"


def _download(download: Mapping[str, Any]) -> str:
    return progress_line(download["checkpoint"], download)
