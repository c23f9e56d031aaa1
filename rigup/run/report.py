"""What a deploy did: made from its events, written as JSON, read by people.

A run's events lie in ``.rigup/runs/TIME/events.jsonl``, one JSON object a line, written as things happen
(``rigup.run.recorder``); ``report.json`` beside it is what ``build`` makes of them. A run that was killed has no
``report.json``, and its events still tell the whole story.

Every event has ``at`` (ISO 8601, UTC) and ``event``, which is one of:

- ``begin``: ``hosts`` (names), ``then`` (what to do after it, where it was no deploy)
- ``plan``: ``host``, ``ssh`` (the command that logs in), ``sudo``, ``endpoints``
- ``unreachable``: ``host``, ``error``
- ``start`` and ``operation``: ``host``, ``step``, ``operation``; the latter with ``result`` (changed, unchanged,
  failed, ignored), ``seconds`` and, where it failed, ``error``; a switch has
  ``downtime_s``, the seconds in which nothing answered, where something was stopped
- ``error``: ``error``, what ended the run for all hosts
- ``interrupted``: ``signal``
- ``end``: ``seconds``
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

RUNS = Path(".rigup/runs")
# The operations of tasks/model.py and tasks/serve.py between which a download goes on by itself.
DOWNLOAD_BEGINS = re.compile(r"Start the download of (.+)")
DOWNLOAD_ENDS = re.compile(r"Have (.+) whole and verified")
RESULTS = ("changed", "unchanged", "failed", "ignored")
SLOWEST = 5
CHANGES, FAILURES = 20, 10
"""Changes of one host, and failures of all, that are shown to a person; `--json` has them all."""

# What it takes to look at a checkpoint that is there already.
NO_WAIT_S = 2.0
DEPLOYED = "`rigup audit` proves what the hosts are; the same deploy again changes nothing."

Event = Mapping[str, Any]
Report = dict[str, Any]


def build(events: Iterable[Event]) -> Report:
    """The report of a run, from its events, however many of them there are.

    ``result`` is ``ok``, ``failed``, ``interrupted``, or ``unfinished`` where the run has not ended or was killed.
    """
    report: Report = {
        "started": None, "then": DEPLOYED, "ended": None, "seconds": None, "result": "unfinished",
        "hosts": {}, "steps": [], "operations": [], "under_way": [], "errors": [], "downloads": [],
    }  # fmt: skip
    steps: dict[str, dict[str, float]] = {}
    open_operations: dict[tuple[str, str, str], Event] = {}
    interrupted = False
    for event in events:
        kind = event.get("event")
        if kind == "begin":
            report["started"] = event["at"]
            report["then"] = event.get("then", DEPLOYED)
            for name in event["hosts"]:
                _host(report, name)
        elif kind == "plan":
            _host(report, event["host"]).update({key: event[key] for key in ("ssh", "sudo", "endpoints")})
        elif kind == "unreachable":
            _host(report, event["host"]).update(result="unreachable", error=event["error"])
        elif kind == "start":
            open_operations[_key(event)] = event
        elif kind == "operation":
            open_operations.pop(_key(event), None)
            operation = {key: value for key, value in event.items() if key not in ("at", "event")}
            report["operations"].append(operation)
            _note_download(report, event)
            host = _host(report, event["host"])
            host[event["result"]] += 1
            host["seconds"] = round(host["seconds"] + event["seconds"], 3)
            if event["result"] == "failed":
                host["result"] = "failed"
            # Hosts work side by side: an operation took as long as its slowest host.
            longest = steps.setdefault(event["step"], {})
            longest[event["operation"]] = max(longest.get(event["operation"], 0.0), event["seconds"])
        elif kind == "error":
            report["errors"].append(event["error"])
        elif kind == "interrupted":
            interrupted = True
        elif kind == "end":
            report.update(ended=event["at"], seconds=event["seconds"])
    report["under_way"] = [dict(zip(("host", "step", "operation"), key, strict=True)) for key in open_operations]
    report["steps"] = [
        {
            "step": step,
            "seconds": round(sum(longest.values()), 3),
            **{
                result: sum(o["step"] == step and o["result"] == result for o in report["operations"])
                for result in RESULTS
            },
        }
        for step, longest in steps.items()
    ]
    if interrupted:
        report["result"] = "interrupted"
    elif report["errors"] or any(host["result"] != "ok" for host in report["hosts"].values()):
        report["result"] = "failed"
    elif report["ended"] is not None:
        report["result"] = "ok"
    return report


def _host(report: Report, name: str) -> dict[str, Any]:
    host: dict[str, Any] = report["hosts"].setdefault(
        name, {"result": "ok", "seconds": 0.0, "ssh": [], "sudo": False, "endpoints": [], **dict.fromkeys(RESULTS, 0)}
    )
    return host


def _note_download(report: Report, event: Event) -> None:
    """Keep when a run began a download, or met it under way, and how long it then had to wait for it."""
    if event["result"] not in ("changed", "unchanged"):
        return
    if begins := DOWNLOAD_BEGINS.fullmatch(event["operation"]):
        noted = {"host": event["host"], "repo": begins[1], "began": event["at"], "seconds": None, "waited": None}
        report["downloads"].append(noted)
    elif ends := DOWNLOAD_ENDS.fullmatch(event["operation"]):
        for download in list(report["downloads"]):
            if (download["host"], download["repo"]) != (event["host"], ends[1]):
                continue
            if event["result"] == "unchanged":
                # It was complete from the beginning.
                report["downloads"].remove(download)
            else:
                took = datetime.fromisoformat(event["at"]) - datetime.fromisoformat(download["began"])
                download.update(seconds=round(took.total_seconds(), 1), waited=event["seconds"])


def _critical_path(report: Report) -> list[str]:
    """Whether the downloads or all else made the run as long as it was."""
    lines = []
    for download in report["downloads"]:
        if download["waited"] is None:
            continue
        what = f"    {download['host']}: the download of {download['repo']}"
        if download["waited"] < NO_WAIT_S:
            lines.append(f"{what} was done before it was needed; all else was the longer part")
        else:
            beside = max(0.0, download["seconds"] - download["waited"])
            lines.append(
                f"{what}, {_seconds(download['seconds'])} s: {_seconds(beside)} s beside other steps, "
                f"{_seconds(download['waited'])} s waited for"
            )
    return ["  critical path:", *lines] if lines else []


def _key(event: Event) -> tuple[str, str, str]:
    return event["host"], event["step"], event["operation"]


def render(report: Report, where: Path | None = None, changes: bool = False) -> str:
    """The report for a person: how each host fared, what took how long, what failed, what to do next.

    With `changes`, also what changed; during the run the console has said it.
    """
    lines = [f"rigup: {headline(report)}"]
    busy = {operation["host"] for operation in report["under_way"]}
    for name, host in report["hosts"].items():
        whole = report["result"] in ("ok", "failed") and host["result"] == "ok" and name not in busy
        count, *more = _host_lines(name, host, whole)
        lines += ["", count, *(_changes(report, name) if changes else ()), *more]
    lines += _trouble(report)
    if report["steps"]:
        shown = ", ".join(f"{step['step']} {_seconds(step['seconds'])}" for step in report["steps"])
        lines += ["", f"  seconds per step: {shown}"]
    slow = sorted(report["operations"], key=lambda o: -o["seconds"])[:SLOWEST]
    slow = [o for o in slow if o["seconds"] >= 1]
    if slow:
        lines.append("  slowest:")
        lines += [f"    {_seconds(o['seconds']):>6}  {o['host']}: {_name(o)}" for o in slow]
    lines += _critical_path(report)
    for o in report["operations"]:
        if o.get("downtime_s") is not None:
            lines.append(f"  nothing answered for {_seconds(o['downtime_s'])} s on {o['host']}: {_name(o)}")
    if where is not None:
        lines.append(f"  report: {where}")
    lines += ["", f"  Next: {_next(report)}"]
    return "\n".join(lines) + "\n"


def headline(report: Report) -> str:
    changed = sum(host["changed"] for host in report["hosts"].values())
    count = "nothing changed" if changed == 0 else f"{changed} change{'s' if changed != 1 else ''}"
    took = f" in {_seconds(report['seconds'])} s" if report["seconds"] is not None else ""
    words = {
        "ok": f"done{took}, {count}",
        "failed": f"failed{took}, {count} before that",
        "interrupted": f"interrupted{took}, {count} before that",
        "unfinished": f"not finished, {count} so far",
    }
    return words[report["result"]]


def _host_lines(name: str, host: Mapping[str, Any], whole: bool) -> list[str]:
    """How a host fared; with its endpoints where it went the `whole` way."""
    if host["result"] == "unreachable":
        return [f"  {name}: could not be reached: {host['error']}"]
    counts = ", ".join(f"{host[result]} {result}" for result in RESULTS if host[result] or result == "changed")
    lines = [f"  {name}: {counts}"]
    for endpoint in host["endpoints"] if whole else ():
        lines += [
            f"    endpoint {endpoint['name']}: {_where(name, endpoint)}",
            f"      recipe      {endpoint['recipe']}",
            _engine_line(endpoint),
            f"      checkpoint  {endpoint['repo']} at {endpoint['revision']}",
            f"      try it      {try_line(name, host, endpoint)}",
            f"      follow it   {follow_line(host, endpoint)}",
        ]
    return lines


def _changes(report: Report, name: str) -> list[str]:
    """What changed on a host, in its order."""
    changed = [o for o in report["operations"] if o["host"] == name and o["result"] == "changed"]
    lines = [f"    {_seconds(o['seconds']):>6}  {o['step']} | {o['operation']}" for o in changed[:CHANGES]]
    return lines + _and_more(len(changed) - CHANGES, "change")


def _and_more(count: int, what: str) -> list[str]:
    return [f"    ... and {count} more {what}{'s' if count > 1 else ''}; --json has all"] if count > 0 else []


def _engine_line(endpoint: Mapping[str, Any]) -> str:
    if endpoint["image"] is None:
        return f"      packages    {', '.join(endpoint['packages'])}"
    return f"      image       {endpoint['image_tag']}, {endpoint['image'].rpartition('@')[2]}"


def _where(name: str, endpoint: Mapping[str, Any]) -> str:
    # Runs of earlier versions did not note it.
    if public := endpoint.get("public_url"):
        return f"{public}, with the key that `rigup key {name} {endpoint['name']}` shows"
    return f"{endpoint['url']} (on {name})"


def try_line(name: str, host: Mapping[str, Any], endpoint: Mapping[str, Any]) -> str:
    """A line for the control machine's shell that has the endpoint answer a chat completion.

    A key goes from one program to the other: it stands in no command line, and is not shown.
    """
    question = {"model": endpoint["model"], "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32}
    body = shlex.quote(json.dumps(question))
    if public := endpoint.get("public_url"):
        curl = f"curl -sS {public}/v1/chat/completions -H @- -H Content-Type:application/json -d {body}"
        return f"rigup key {name} {endpoint['name']} --header | {curl}"
    curl = f"curl -sS {endpoint['url']}/v1/chat/completions -H Content-Type:application/json -d @-"
    return f"echo {body} | {shlex.join(host['ssh'])} {curl}"


def follow_line(host: Mapping[str, Any], endpoint: Mapping[str, Any]) -> str:
    """A line for the control machine's shell that follows the endpoint's log."""
    sudo = "sudo " if host["sudo"] else ""
    return f"{shlex.join(host['ssh'])} {sudo}journalctl -fu {endpoint['unit'].removesuffix('.service')}"


def _trouble(report: Report) -> list[str]:
    lines = []
    unreachable = any(host["result"] == "unreachable" for host in report["hosts"].values())
    failed = [operation for operation in report["operations"] if operation["result"] == "failed"]
    for operation in failed[:FAILURES]:
        lines += ["", f"  failed on {operation['host']}, step {_name(operation)}:"]
        lines += [f"    {line}" for line in (operation.get("error") or "no message").splitlines()]
    lines += _and_more(len(failed) - FAILURES, "failure")
    for operation in report["under_way"]:
        lines += ["", f"  under way on {operation['host']}, step {_name(operation)}"]
    for error in report["errors"]:
        if (lines or unreachable) and error.endswith("No hosts remaining!"):
            # pyinfra's last words, when the reason stands above.
            continue
        lines += ["", *(f"  {line}" for line in error.splitlines())]
    return lines


def _next(report: Report) -> str:
    if report["result"] == "ok":
        return str(report["then"])
    if report["result"] == "failed":
        return "put right what is said above and run the same command again: it goes on from what it finds."
    return "run the same command again: it goes on from what it finds."


def _name(operation: Mapping[str, Any]) -> str:
    return f"{operation['step']}: {operation['operation']}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f}" if seconds < 100 else f"{seconds:.0f}"


def read_events(path: Path) -> list[Event]:
    """The events in a file; a last line that was cut off is left out."""
    events: list[Event] = []
    for line in path.read_text().splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            break
    return events


def runs(folder: Path) -> list[Path]:
    """The folders of all runs, oldest first."""
    return sorted(path.parent for path in folder.glob("*/events.jsonl"))
