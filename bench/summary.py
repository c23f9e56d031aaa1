"""Summarize the measurements: a table, ratios, and whether they reach their goals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bench.timing import Case, plural

TITLES = {
    ("deploy", "rig"): "no-op deploy: pyinfra with @rig",
    ("deploy", "rig, nothing read ahead"): "  the same with every fact read live",
    ("deploy", "ssh"): "no-op deploy: pyinfra's ssh connector",
    ("deploy", "ansible"): "no-op playbook: Ansible, pipelining",
    ("floor", "empty deploy"): "floor: a deploy of nothing",
    ("floor", "pyinfra --version"): "floor: pyinfra --version",
    ("audit", "rig"): "audit: rigup's backend",
    ("audit", "testinfra-ssh"): "audit: testinfra's ssh backend",
    ("audit", "paramiko"): "audit: testinfra's paramiko backend",
}

# What is compared with what, and the goal by milliseconds of distance: at least so many times faster.
FASTER: tuple[tuple[str, str, str, dict[int, float]], ...] = (
    ("deploy", "ansible", "Ansible / @rig", {0: 20.0, 50: 30.0}),
    ("deploy", "ssh", "stock pyinfra / @rig", {0: 6.0, 50: 15.0}),
    ("audit", "testinfra-ssh", "testinfra ssh / rigup's audit", {0: 10.0, 10: 10.0, 50: 10.0}),
    ("audit", "paramiko", "testinfra paramiko / rigup's audit", {}),
)
EMPTY_AT_MOST = 3.0

# Why a tool is not measured everywhere, so that the benchmark takes at most a quarter of an hour.
SPARED = {
    ("deploy", "ansible"): "it takes minutes there, nearly all on this machine and not on the network",
    ("audit", "testinfra-ssh"): "it visits hosts one after the other: eight take eight times as long as one",
    ("audit", "paramiko"): "it visits hosts one after the other: eight take eight times as long as one",
}


def ratios(cases: Sequence[Case]) -> dict[str, Any]:
    """Return ratios of medians, each with its goal if it has one."""
    found = {(case.job, case.tool, case.hosts, case.round_trip_ms): case for case in cases}
    listed: list[dict[str, Any]] = []

    def add(what: str, hosts: int, distance: int, value: float, aim: str | None, reached: bool | None) -> None:
        listed.append(
            {"what": what, "hosts": hosts, "round_trip_ms": distance, "value": round(value, 2), "aim": aim,
             "reached": reached}
        )  # fmt: skip

    for (job, tool, hosts, distance), ours in found.items():
        if tool != "rig":
            continue
        for other_job, other_tool, what, aims in FASTER:
            other = found.get((job, other_tool, hosts, distance))
            if other is None or other_job != job:
                continue
            value = other.median / ours.median
            least = aims.get(distance) if hosts == 1 else None
            add(what, hosts, distance, value, f">= {least:g}" if least else None, value >= least if least else None)
        empty = found.get(("floor", "empty deploy", hosts, distance))
        if job == "deploy" and empty is not None:
            value, aimed = ours.median / empty.median, hosts == 1 and distance == 0
            add("@rig / a deploy of nothing", hosts, distance, value, f"<= {EMPTY_AT_MOST:g}" if aimed else None,
                 value <= EMPTY_AT_MOST if aimed else None)  # fmt: skip
        if job == "deploy" and ours.executions is not None:
            add("remote executions per host", hosts, distance, ours.executions, "1", ours.executions == 1)
    return {"ratios": listed, "not_measured": _not_measured(cases)}


def _not_measured(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Return where a tool was not measured, and why."""
    measured = {(case.job, case.tool, case.hosts, case.round_trip_ms) for case in cases}
    return [
        {"what": TITLES[job, tool], "hosts": case.hosts, "round_trip_ms": case.round_trip_ms, "why": why}
        for (job, tool), why in SPARED.items()
        for case in cases
        if (case.job, case.tool) == (job, "rig") and (job, tool, case.hosts, case.round_trip_ms) not in measured
    ]


def render(result: dict[str, Any]) -> None:
    """Print the result."""
    console = Console(highlight=False, width=120)
    cases = result["cases"]
    columns = sorted({(case["hosts"], case["round_trip_ms"]) for case in cases})
    measured = result["measured"]
    console.print(f"\nSeconds, medians. {measured['processor']}, {measured['processors']} processors.")
    console.print(f"Ansible {measured['ansible-core']}, pyinfra {measured['pyinfra']}, Python {measured['python']}.\n")
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("")
    for hosts, distance in columns:
        table.add_column(f"{plural(hosts, 'host')}\n{distance} ms", justify="right")
    for (job, tool), title in TITLES.items():
        found = {
            (case["hosts"], case["round_trip_ms"]): case for case in cases if (case["job"], case["tool"]) == (job, tool)
        }
        if found:
            table.add_row(title, *(_cell(found.get(column)) for column in columns))
    console.print(table)
    console.print("\nAll eight names are one lab host, which shares its processor among them.")
    for (what, why), places in _by_reason(result["not_measured"]).items():
        console.print(f"Not measured: {what}, {'; '.join(places)}: {why}.")
    console.print("Goals apply to one host.\n")
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for title in ("ratio", "hosts", "distance", "measured", "goal", ""):
        table.add_column(title, justify="right" if title in ("hosts", "distance", "measured") else "left")
    for ratio in result["ratios"]:
        word = {True: "reached", False: "missed", None: ""}[ratio["reached"]]
        value = f"{ratio['value']:g}"
        table.add_row(
            ratio["what"], str(ratio["hosts"]), f"{ratio['round_trip_ms']} ms", value, ratio["aim"] or "", word
        )
    console.print(table)


def _by_reason(not_measured: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[str]]:
    columns: dict[tuple[str, str], list[str]] = {}
    for each in not_measured:
        where = f"{plural(each['hosts'], 'host')} at {each['round_trip_ms']} ms"
        columns.setdefault((each["what"], each["why"]), []).append(where)
    return columns


def _cell(case: dict[str, Any] | None) -> str:
    if case is None:
        return ""
    half = (max(case["seconds"]) - min(case["seconds"])) / 2
    return f"{case['median']:.2f}" + (f" ±{half:.2f}" if len(case["seconds"]) > 1 else "")
