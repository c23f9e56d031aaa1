"""What `rigup status` knows: read from the hosts, and shown as text, as JSON and as a page.

It only reads, over ssh and in one round trip: the host's copy of the plan, the endpoints, the units, what engines say
of themselves, the GPUs, the kernel's errors about them, downloads, and the last daily audit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

from rigup.cli._facts import Facts
from rigup.config.inventory import Host
from rigup.facts.balancer import BalancerState, BalancerValue
from rigup.facts.dkms import DkmsBuilds
from rigup.facts.drift import DailyAudit, DailyAuditValue
from rigup.facts.endpoints import Endpoints, EndpointsValue
from rigup.facts.files import FileText
from rigup.facts.journal import Xid, Xids
from rigup.facts.network import HttpStatus
from rigup.facts.nvidia import GpuUse, GpuUseValue
from rigup.facts.serving import Loads, LoadValue, Verification, VerificationValue
from rigup.facts.store import Downloads, Progress
from rigup.facts.units import UnitState, UnitStateValue, Work, Works, with_builds
from rigup.paths import PLAN, endpoint_unit, verification_of
from rigup.plan.model import kept_plan, url_of
from rigup.ssh.batch import LIMIT_S
from rigup.ssh.client import Client


@dataclass(frozen=True)
class Endpoint:
    """An endpoint: what it should be, and what it does.

    `url` is its address on the host itself, `public_url` that of its gateway. Times are ISO 8601 in UTC. The last
    fields are those of `rigup.facts.serving.LoadValue`.
    """

    name: str
    recipe: str
    model: str
    gpus: Literal["all"] | list[int | str]
    url: str
    public_url: str | None
    state: str
    on_trial: bool
    health: int
    since: str | None
    restarts: int
    verified: str | None
    tokens_per_s: float | None = None
    running: int | None = None
    waiting: int | None = None
    kv_cache: float | None = None
    last_start_s: int | None = None


@dataclass(frozen=True)
class HostStatus:
    """A host as it was `at` a time (ISO 8601, UTC). `error` is why nothing is known, `notes` say what else is wrong."""

    at: str
    error: str | None = None
    notes: tuple[str, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    gpus: tuple[GpuUseValue, ...] = ()
    xids: tuple[Xid, ...] = ()
    downloads: tuple[Progress, ...] = ()
    works: tuple[Work, ...] = ()
    audit: DailyAuditValue | None = None
    balancer: BalancerValue | None = None


@dataclass(frozen=True)
class Status:
    """All hosts, and when this was put together (ISO 8601, UTC)."""

    at: str
    hosts: Mapping[str, HostStatus] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 if all endpoints serve, 2 if some do not, 1 if a host is unreachable."""
        if any(host.error for host in self.hosts.values()):
            return 1
        serving = all(endpoint.state == "serving" for host in self.hosts.values() for endpoint in host.endpoints)
        return 0 if serving and all(host.endpoints for host in self.hosts.values()) else 2


def now() -> str:
    """Return the time as a status has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read(client: Client, host: Host) -> HostStatus:
    """Read a host. Raises Unreachable, and FactProcessError for what no healthy host says."""
    facts = Facts(client)
    plan_text, found, loads = facts.add(FileText(), path=PLAN), facts.add(Endpoints()), facts.add(Loads())
    gpus, xids = facts.add(GpuUse()), facts.add(Xids())
    downloads, works, daily = facts.add(Downloads()), facts.add(Works()), facts.add(DailyAudit())
    balancer = facts.add(BalancerState())
    states = {name: _states(facts, name) for name in host.settings.endpoints}
    builds = facts.add(DkmsBuilds())
    slow = facts.read(slow=False)
    endpoints, said = endpoints_of(plan_text(), found()), loads()
    # A second round trip for endpoints that the inventory does not name, and for hosts without the program that asks.
    more = Facts(client)
    states |= {each["name"]: _states(more, each["name"]) for each in endpoints if each["name"] not in states}
    health = {
        each["name"]: more.add(HttpStatus(), url=url_of(each["address"], each["port"]) + each["ready_path"])
        for each in endpoints
        if each["name"] in found().names and each["name"] not in said
    }
    more.read(slow=False)
    public = {each["name"]: each.get("public_address") for each in kept_plan(plan_text()).get("endpoints", [])}
    return HostStatus(
        at=now(),
        notes=tuple(f"no answer within {LIMIT_S} s: {command.split()[0].rpartition('/')[2]}" for command in slow),
        endpoints=tuple(
            _endpoint(
                each,
                unit(),
                verification(),
                said.get(each["name"]) or LoadValue(health[each["name"]]() if each["name"] in health else 0),
                public.get(each["name"]),
                each["name"] in found().on_trial,
            )
            for each in endpoints
            for unit, verification in [states[each["name"]]]
        ),
        gpus=tuple(gpus()),
        xids=tuple(xids()),
        downloads=tuple(downloads()),
        works=tuple(with_builds(works(), builds())),
        audit=daily() if daily().at else None,
        balancer=balancer() if balancer().at else None,
    )


def _states(facts: Facts, name: str) -> tuple[Callable[[], UnitStateValue], Callable[[], VerificationValue]]:
    unit = endpoint_unit(name)
    path = verification_of(f"endpoint-{name}")
    return facts.add(UnitState(), unit=unit), facts.add(Verification(), path=path, unit=unit)


def _endpoint(
    record: Mapping[str, Any],
    unit: UnitStateValue,
    verification: VerificationValue,
    load: LoadValue,
    public: str | None,
    on_trial: bool,
) -> Endpoint:
    verified = verification.passed_since_start
    return Endpoint(
        name=record["name"],
        recipe=record["recipe"],
        model=record.get("served_name", ""),
        gpus=record["gpus"],
        url=url_of(record["address"], record["port"]),
        public_url=url_of(public, record["port"]) if public else None,
        state=state_of(unit, load.health, verified),
        on_trial=on_trial,
        health=load.health,
        since=_since(unit),
        restarts=unit.restarts,
        verified=verification.record.get("at") if verified else None,
        tokens_per_s=load.tokens_per_s,
        running=load.running,
        waiting=load.waiting,
        kv_cache=load.kv_cache,
        last_start_s=load.last_start_s,
    )


def endpoints_of(plan: str | None, found: EndpointsValue) -> list[Mapping[str, Any]]:
    """Return the endpoints on trial or in force, and those that only the host's copy of the plan names."""
    # A damaged copy has none; the audit reports that.
    planned = {endpoint["name"]: endpoint for endpoint in kept_plan(plan).get("endpoints", [])}
    units = {**found.in_force, **found.on_trial}
    there = {name: found.records[name, units[name]] for name in units if (name, units[name]) in found.records}
    return [endpoint for _, endpoint in sorted({**planned, **there}.items())]


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


def select(status: HostStatus, names: Iterable[str | None]) -> HostStatus:
    """Return a host's status with only the endpoints of these names; with all if one of them is None."""
    wanted = set(names)
    if None in wanted:
        return status
    return replace(status, endpoints=tuple(each for each in status.endpoints if each.name in wanted))
