"""A status in words: cells of tables, and what needs attention. Pure; text and page show the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from rigup.cli._status_data import Endpoint, HostStatus, Status
from rigup.commands import rigup
from rigup.facts.balancer import BalancerValue
from rigup.facts.drift import DailyAuditValue
from rigup.facts.journal import Xid
from rigup.facts.nvidia import GpuUseValue
from rigup.facts.units import Work
from rigup.text import duration, progress_line

Level = Literal["good", "busy", "bad", ""]
LEVELS: dict[str, Level] = {
    "serving": "good",
    "starting": "busy",
    "stopping": "busy",
    "stopped": "busy",
    "not verified": "busy",
}
# The units of `rigup.operations` by how their names begin.
WORKS = {
    "rigup-apt": "installing packages",
    "rigup-engine-": "installing an engine",
    "rigup-pull-": "pulling an image",
    "rigup-switch": "switching endpoints",
}
UNKNOWN = "\N{EN DASH}"
FULL = 0.95
"""The share of a KV cache from which requests wait for others to end."""

# Xid 154 says which recovery a card needs, and also that it needs none any more.
RECOVERY = 154


@dataclass(frozen=True)
class Cell:
    """A word or a few, how good that is, and the share of something from 0 to 1 that it is about."""

    text: str
    level: Level = ""
    share: float | None = None


@dataclass(frozen=True)
class Attention:
    """Something that a person should look at: on which host, what it is, and what to do."""

    host: str
    what: str
    remedy: str = ""


ENDPOINT_COLUMNS = ("endpoint", "state", "tok/s", "running", "waiting", "KV cache", "since", "model", "recipe", "URL")
GPU_COLUMNS = ("GPU", "name", "temp", "power", "memory", "busy", "slowed by", "Xid since boot")


def endpoint_cells(endpoint: Endpoint, at: str) -> dict[str, Cell]:
    """Return what the columns of an endpoint say at this time."""
    cells = (
        Cell(endpoint.name),
        Cell(_state(endpoint, at), LEVELS.get(endpoint.state, "bad")),
        Cell(UNKNOWN if endpoint.tokens_per_s is None else f"{endpoint.tokens_per_s:.0f}"),
        Cell(UNKNOWN if endpoint.running is None else str(endpoint.running)),
        Cell(UNKNOWN if endpoint.waiting is None else str(endpoint.waiting), "busy" if endpoint.waiting else ""),
        Cell(_percent(endpoint.kv_cache), "busy" if (endpoint.kv_cache or 0) >= FULL else "", endpoint.kv_cache),
        Cell(local(endpoint.since) if endpoint.since else UNKNOWN),
        Cell(endpoint.model or UNKNOWN),
        Cell(endpoint.recipe),
        Cell(endpoint.public_url or endpoint.url),
    )
    return dict(zip(ENDPOINT_COLUMNS, cells, strict=True))


def _state(endpoint: Endpoint, at: str) -> str:
    parts = [endpoint.state]
    if endpoint.state == "starting" and endpoint.since:
        waited = max(0.0, _seconds_between(endpoint.since, at))
        parts.append(duration(waited))
        if endpoint.last_start_s is not None:
            left = endpoint.last_start_s - waited
            took = f"its last start took {duration(endpoint.last_start_s)}"
            parts.append(f"about {duration(left)} left" if left > 0 else took)
    if endpoint.on_trial:
        parts.append("on trial")
    if endpoint.restarts:
        parts.append(f"{endpoint.restarts} restart{'s' if endpoint.restarts != 1 else ''}")
    return ", ".join(parts)


def gpu_cells(gpu: GpuUseValue, host: HostStatus) -> dict[str, Cell]:
    """Return what the columns of a GPU say."""
    xids = [xid for xid in host.xids if xid.address == gpu.address]
    watts = UNKNOWN if gpu.watts is None else f"{gpu.watts:.0f}"
    limit = UNKNOWN if gpu.watt_limit is None else f"{gpu.watt_limit:.0f}"
    cells = (
        Cell(str(gpu.index)),
        Cell(gpu.name.removeprefix("NVIDIA ") or UNKNOWN),
        Cell(UNKNOWN if gpu.temperature is None else f"{gpu.temperature} °C"),
        Cell(f"{watts} of {limit} W", share=gpu.watts / gpu.watt_limit if gpu.watts and gpu.watt_limit else None),
        Cell(f"{gpu.used / 1024:.1f} of {gpu.total / 1024:.1f} GiB", share=gpu.used / gpu.total if gpu.total else None),
        Cell(UNKNOWN if gpu.busy is None else f"{gpu.busy} %"),
        Cell(", ".join(gpu.throttled) or UNKNOWN, "bad" if hot(gpu) else "busy" if gpu.throttled else ""),
        Cell(", ".join(map(_xid, xids)) or UNKNOWN, "bad" if any(map(matters, xids)) else ""),
    )
    return dict(zip(GPU_COLUMNS, cells, strict=True))


def hot(gpu: GpuUseValue) -> bool:
    """Return whether something other than its power limit, which is somebody's choice, slows the card down."""
    return any(reason != "power limit" for reason in gpu.throttled)


def matters(xid: Xid) -> bool:
    """Return whether this error alone means that something is wrong with the card."""
    return xid.number != RECOVERY


def _xid(xid: Xid) -> str:
    return f"{xid.number}" + (f" ({xid.count} times)" if xid.count > 1 else "")


def work_lines(host: HostStatus, at: str) -> list[str]:
    """Return a line for each download, and for everything else that a deploy has started and that still runs."""
    lines = [progress_line(download["checkpoint"], download) for download in host.downloads]
    return lines + [_work(work, at) for work in host.works]


def _work(work: Work, at: str) -> str:
    name = work.unit.removesuffix(".service")
    what = next((words for start, words in WORKS.items() if name.startswith(start)), name)
    ran = duration(max(0.0, datetime.fromisoformat(at).timestamp() - work.since)) if work.since is not None else ""
    return ", ".join(filter(None, (what, ran, work.progress)))


def balancer_line(balancer: BalancerValue) -> str:
    """Return where a load balancer is, and how many requests run at each of its endpoints."""
    counts = [f"{each.running} at {each.name}" if each.up else f"none to {each.name}" for each in balancer.servers]
    return f"load balancer at http://{balancer.at}: {', '.join(counts) or 'no answer'}"


def audit_cell(audit: DailyAuditValue | None, at: str) -> Cell:
    """Return the result of the last daily audit."""
    words = (audit or DailyAuditValue()).words(datetime.fromisoformat(at))
    if audit is None:
        return Cell(words)
    return Cell(words, "bad" if audit.findings else "busy" if words.endswith("late") else "good")


def attention(status: Status) -> list[Attention]:
    """Return what needs attention on all hosts, hosts without an answer first."""
    found = [each for name, host in status.hosts.items() for each in _of_host(name, host, status.at)]
    return sorted(found, key=lambda each: status.hosts[each.host].error is None)


def _of_host(name: str, host: HostStatus, at: str) -> Iterator[Attention]:
    if host.error:
        yield Attention(name, host.error)
        return
    for note in host.notes:
        yield Attention(name, note)
    for endpoint in host.endpoints:
        level = LEVELS.get(endpoint.state, "bad")
        place = f"{name}/{endpoint.name}"
        if level == "bad" and endpoint.state != "not deployed":
            yield Attention(name, f"{endpoint.name} is {_state(endpoint, at)}", f"`{rigup('diagnose', place)}`")
        elif level != "good":
            yield Attention(name, f"{endpoint.name} is {_state(endpoint, at)}")
        if (endpoint.kv_cache or 0) >= FULL and endpoint.waiting:
            waits = f"{endpoint.waiting} request{'s wait' if endpoint.waiting != 1 else ' waits'}"
            yield Attention(name, f"{endpoint.name}: its KV cache is full, and {waits}")
    if host.balancer and not host.balancer.servers:
        yield Attention(name, "the load balancer does not answer", f"`{rigup('audit', name)}`")
    for server in host.balancer.servers if host.balancer else ():
        if not server.up:
            yield Attention(name, f"the load balancer sends no requests to {server.name}")
    yield from _of_cards(name, host)
    for download in host.downloads:
        if download.get("step") == "given up":
            yield Attention(name, progress_line(download["checkpoint"], download))
    if (audit := audit_cell(host.audit, at)).level in ("bad", "busy"):
        yield Attention(name, f"daily audit: {audit.text}", f"`{rigup('audit', name)}`")


def _of_cards(name: str, host: HostStatus) -> Iterator[Attention]:
    for gpu in host.gpus:
        if hot(gpu):
            yield Attention(name, f"GPU {gpu.index} is slowed by {', '.join(gpu.throttled)}")
    listed = {gpu.address: f"GPU {gpu.index}" for gpu in host.gpus}
    for xid in filter(matters, host.xids):
        card = listed.get(xid.address, f"the GPU at {xid.address}, which nvidia-smi does not list,")
        when = datetime.fromtimestamp(xid.last).astimezone()
        yield Attention(
            name, f"{card} reported Xid {_xid(xid)}, last at {_local(when)}", f"`{rigup('diagnose', name)}`"
        )


def local(at: str) -> str:
    """Return a time (ISO 8601) in the zone of this machine, with the zone."""
    return _local(datetime.fromisoformat(at).astimezone())


def _local(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M %Z}"


def _seconds_between(first: str, second: str) -> float:
    return (datetime.fromisoformat(second) - datetime.fromisoformat(first)).total_seconds()


def _percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{100 * share:.0f} %"
