"""A status as one page of HTML, for a browser on a phone or a wall, and for paper. It fetches and runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rigup import atomic
from rigup.cli._status_data import HostStatus, Status
from rigup.cli._status_words import (
    ENDPOINT_COLUMNS,
    GPU_COLUMNS,
    UNKNOWN,
    Cell,
    Level,
    attention,
    audit_cell,
    endpoint_cells,
    gpu_cells,
    local,
    work_lines,
)
from rigup.errors import RigupError
from rigup.run.report import RUNS, build, read_events, runs
from rigup.run.summary import headline
from rigup.templates import page

ROWS = 64
"""Rows of one host in each table: a host may claim any number."""

LAST_RUNS = 5
HOST_COLUMNS = ("state", "serving", "tok/s", "GPUs", "GPU memory", "under way", "read")
RUN_COLUMNS = ("result",)
LEVELS: dict[str, Level] = {"ok": "good", "failed": "bad", "interrupted": "busy", "unfinished": "busy"}

Row = tuple[str, Sequence[Cell]]


def write_page(path: Path, status: Status, runs_folder: Path = RUNS) -> None:
    """Write the page, completely or not at all. Raises RigupError if it cannot be written."""
    try:
        atomic.write(path, as_page(status, last_runs(runs_folder)), 0o644)
    except OSError as error:
        raise RigupError(f"cannot write {path}: {error.strerror}", "create its directory, or name another") from error


def last_runs(folder: Path) -> list[Row]:
    """Return the last deploys from this directory, newest first, each with its result."""
    found: list[Row] = []
    for run in reversed(runs(folder)[-LAST_RUNS:]):
        report = build(read_events(run / "events.jsonl"))
        found.append((run.name, [Cell(headline(report), LEVELS[report["result"]])]))
    return found


def as_page(status: Status, deploys: Sequence[Row] = ()) -> str:
    """Return the page."""
    hosts = status.hosts.items()
    endpoints = [(name, endpoint_cells(each, status.at)) for name, host in hosts for each in host.endpoints[:ROWS]]
    gpus = [(name, gpu_cells(each, host)) for name, host in hosts for each in host.gpus[:ROWS]]
    tables = [
        ("Hosts", ("host", *HOST_COLUMNS), [(name, _host_cells(host, status.at)) for name, host in hosts]),
        ("Endpoints", ("host", *ENDPOINT_COLUMNS), [(name, [*cells.values()]) for name, cells in endpoints]),
        ("GPUs", ("host", *GPU_COLUMNS), [(name, [*cells.values()]) for name, cells in gpus]),
        ("Last deploys", ("run", *RUN_COLUMNS), deploys),
        ("Daily audit", ("host", "result", "findings"), _audits(status)),
    ]
    return page(
        "status.html.j2",
        at=local(status.at),
        attention=attention(status),
        unknown=UNKNOWN,
        tables=[table for table in tables if table[2]],
    )


def _host_cells(host: HostStatus, at: str) -> list[Cell]:
    read = Cell(local(host.at))
    if host.error:
        return [Cell(host.error, "bad"), *[Cell(UNKNOWN)] * (len(HOST_COLUMNS) - 2), read]
    serving = sum(endpoint.state == "serving" for endpoint in host.endpoints)
    all_serve = bool(host.endpoints) and serving == len(host.endpoints)
    rates = [each.tokens_per_s for each in host.endpoints if each.tokens_per_s is not None]
    used, total = (sum(getattr(gpu, key) for gpu in host.gpus) for key in ("used", "total"))
    return [
        Cell("; ".join(host.notes) or "answers", "busy" if host.notes else "good"),
        Cell(f"{serving} of {len(host.endpoints)}", "good" if all_serve else "bad"),
        Cell(f"{sum(rates):.0f}" if rates else UNKNOWN),
        Cell(str(len(host.gpus))),
        Cell(f"{used / 1024:.0f} of {total / 1024:.0f} GiB", share=used / total) if total else Cell(UNKNOWN),
        Cell("; ".join(work_lines(host, at)) or UNKNOWN),
        read,
    ]


def _audits(status: Status) -> list[Row]:
    """Return the last result of each host that checks itself, with its findings."""
    return [
        (name, [audit_cell(host.audit, status.at), Cell("; ".join(host.audit.findings) or UNKNOWN)])
        for name, host in status.hosts.items()
        if host.audit
    ]
