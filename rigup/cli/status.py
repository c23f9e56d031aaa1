"""`rigup status`: what serves on which host, since when, how full its GPUs are, and what is still being fetched.

It only looks, over ssh, at what the hosts say of themselves: the plan that was deployed there, the endpoints and
what is being tried, the units, the GPUs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import paramiko
from pyinfra.api.command import StringCommand
from pyinfra.api.exceptions import FactProcessError
from pyinfra.api.facts import FactBase
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rigup.config.inventory import Host, find_inventory, load_inventory
from rigup.facts.drift import DailyAudit, DailyAuditValue
from rigup.facts.endpoints import Endpoints, EndpointsValue
from rigup.facts.files import FileText
from rigup.facts.network import HttpStatus
from rigup.facts.nvidia import GpuUse
from rigup.facts.serving import Verification
from rigup.facts.store import Downloads
from rigup.facts.units import UnitState, UnitStateValue
from rigup.plan.model import PLAN
from rigup.render.verify import result_path
from rigup.ssh import batch
from rigup.ssh import client as remote
from rigup.ssh.batch import Ask
from rigup.text import progress_line

__all__ = ["add_arguments", "command", "endpoints_of", "exit_code", "look", "render", "state_of"]

EVERY_S = 2.0

STYLES = {"serving": "green", "starting": "yellow", "stopped": "yellow", "not proven": "yellow"}

Status = dict[str, Any]
T = TypeVar("T")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("hosts", nargs="*", metavar="HOST", help="hosts of the inventory; without any, all")
    parser.add_argument("--json", action="store_true", help="print JSON; with --watch one object a line")
    parser.add_argument("--watch", action="store_true", help="look again every two seconds, until Ctrl-C")
    parser.add_argument("--inventory", type=Path, metavar="FILE", help="the inventory file; by default the deploy's")


def command(options: argparse.Namespace) -> int:
    """Print the status of all hosts; returns the exit code. Raises RigupError for an unknown host."""
    inventory = load_inventory(options.inventory or find_inventory(Path.cwd() / "inventory"))
    hosts = [inventory.host(name) for name in options.hosts] or list(inventory.hosts.values())
    if not options.watch:
        status = look(hosts)
        if options.json:
            print(json.dumps(status, indent=2))
        else:
            render(status, Console(highlight=False))
        return exit_code(status)
    if options.json:
        while True:
            print(json.dumps(look(hosts)), flush=True)
            time.sleep(EVERY_S)
    with Live(auto_refresh=False, screen=True) as live:
        while True:
            live.update(table(look(hosts)), refresh=True)
            time.sleep(EVERY_S)


def exit_code(status: Status) -> int:
    """0 all endpoints serve, 2 some do not, 1 a host could not be asked."""
    hosts = status["hosts"].values()
    if any(host["error"] for host in hosts):
        return 1
    serving = all(endpoint["state"] == "serving" for host in hosts for endpoint in host["endpoints"])
    return 0 if serving and all(host["endpoints"] for host in hosts) else 2


def look(hosts: Sequence[Host]) -> Status:
    """What all hosts say of themselves now, asked side by side."""
    with ThreadPoolExecutor(max_workers=len(hosts)) as pool:
        found = dict(zip((host.name for host in hosts), pool.map(_look_at, hosts), strict=True))
    return {"at": datetime.now(UTC).isoformat(timespec="seconds"), "hosts": found}


def _look_at(host: Host) -> Status:
    empty: Status = {"error": None, "endpoints": [], "gpus": [], "downloads": [], "audit": None}
    try:
        with remote.connect(host) as client:
            transport = client.get_transport()
            if transport is None:
                raise EOFError("the connection was closed")
            return empty | _ask(transport, host.sudo)
    except remote.Unreachable as error:
        return empty | {"error": error.why}
    except (paramiko.SSHException, OSError, EOFError, FactProcessError) as error:
        return empty | {"error": f"{error or type(error).__name__}"}


def _ask(transport: paramiko.Transport, sudo: bool) -> Status:
    first = _Round(transport, sudo)
    plan_text = first.ask(FileText(), path=PLAN)
    gpus, downloads, daily = first.ask(GpuUse()), first.ask(Downloads()), first.ask(DailyAudit())
    found = first.ask(Endpoints())
    first.go()
    endpoints = endpoints_of(plan_text(), found())
    second = _Round(transport, sudo)
    asked = [
        (
            endpoint,
            second.ask(UnitState(), unit=f"llm@{endpoint['name']}.service"),
            second.ask(Verification(), path=result_path(f"endpoint-{endpoint['name']}"),
                       unit=f"llm@{endpoint['name']}.service"),
            second.ask(HttpStatus(), url=_url(endpoint) + endpoint["ready_path"]),
        )
        for endpoint in endpoints
    ]  # fmt: skip
    second.go()
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
                "state": state_of(unit(), health(), proof().passed_since_start),
                "on_trial": endpoint["name"] in found().on_trial,
                "health": health(),
                "since": _since(unit()),
                "restarts": unit().restarts,
                "proven": proof().record.get("at") if proof().passed_since_start else None,
            }
            for endpoint, unit, proof, health in asked
        ],
    }


class _Round:
    """Some facts, asked in one round trip."""

    def __init__(self, transport: paramiko.Transport, sudo: bool) -> None:
        self._transport, self._sudo = transport, sudo
        self._asks: list[Ask] = []
        self._answers: Mapping[Ask, batch.Answer] = {}

    def ask(self, fact: FactBase[T], **arguments: Any) -> Callable[[], T]:
        """Have this fact asked; what it returned is known after `go`."""
        said = fact.command(**arguments)
        ask = Ask(said.get_raw_value() if isinstance(said, StringCommand) else str(said), self._sudo)
        self._asks.append(ask)

        def value() -> T:
            lines = self._answers[ask].stdout.decode(errors="replace").splitlines()
            # As pyinfra: a fact that printed nothing is its default.
            return fact.process(lines) if any(line.strip() for line in lines) else fact.default()

        return value

    def go(self) -> None:
        answers = batch.run(self._transport, self._asks).answers
        missing = [ask for ask in self._asks if ask not in answers]
        self._answers = answers | {ask: remote.execute(self._transport, ask) for ask in missing}


def endpoints_of(plan: str | None, found: EndpointsValue) -> list[Mapping[str, Any]]:
    """What is being tried on the host or is in force there, and what is neither but stands in the plan kept there."""
    try:
        planned = {endpoint["name"]: endpoint for endpoint in json.loads(plan or "{}").get("endpoints", [])}
    except (AttributeError, KeyError, TypeError, ValueError):
        # It is damaged: the audit tells.
        planned = {}
    units = {**found.in_force, **found.on_trial}
    there = {name: found.records[name, units[name]] for name in units if (name, units[name]) in found.records}
    return [endpoint for _, endpoint in sorted({**planned, **there}.items())]


def _url(endpoint: Mapping[str, Any]) -> str:
    address = str(endpoint["address"])
    return f"http://{f'[{address}]' if ':' in address else address}:{endpoint['port']}"


def state_of(unit: UnitStateValue, health: int, proven: bool) -> str:
    """In one word, or two, what an endpoint does."""
    if unit.is_waiting_to_retry:
        return "failing"
    if unit.active == "active":
        if health != 200:
            return "not healthy"
        return "serving" if proven else "not proven"
    words = {"activating": "starting", "deactivating": "stopping", "failed": "failed"}
    return words.get(unit.active, "stopped" if unit.load == "loaded" else "not deployed")


def _since(unit: UnitStateValue) -> str | None:
    if unit.started is None or not unit.runs:
        return None
    return datetime.fromtimestamp(unit.started, UTC).isoformat(timespec="seconds")


def render(status: Status, console: Console) -> None:
    """Print the status for a person."""
    console.print(table(status))


def table(status: Status) -> Table:
    """One row for each endpoint; a host without any, or that cannot be asked, has a row of its own."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("host", "endpoint", "state", "recipe", "since", "GPU memory", "download"):
        made.add_column(column, overflow="fold", no_wrap=column in ("host", "endpoint", "recipe", "since"))
    if audited := any(host.get("audit") for host in status["hosts"].values()):
        made.add_column("daily audit", overflow="fold")
    for name, host in status["hosts"].items():
        memory, fetched = _memory(host["gpus"]), "; ".join(map(_download, host["downloads"]))
        own = [_audit(host.get("audit"), status["at"])] if audited else []
        if host["error"]:
            made.add_row(name, "", Text(host["error"], "red"))
        elif not host["endpoints"]:
            made.add_row(name, "", Text("nothing deployed", "yellow"), "", "", memory, fetched, *own)
        for at, endpoint in enumerate(host["endpoints"]):
            state = endpoint["state"] + (", on trial" if endpoint["on_trial"] else "")
            state += f", started {endpoint['restarts']} times anew" if endpoint["restarts"] else ""
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
