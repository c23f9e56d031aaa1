"""What a run did: built from its events, as data.

The events of a run are in ``.rigup/runs/TIME/events.jsonl``, one JSON object per line, written as things happen by
``rigup.run.recorder``. ``report.json`` next to it is what ``build`` makes of them. A run that was killed has no
``report.json``, but its events are complete up to that moment.

Every event has ``at`` (ISO 8601, UTC) and ``event``, which is one of:

- ``begin``: ``hosts`` (names), ``inventory`` (the file, if one was named), ``then`` (what to do after success)
- ``plan``: ``host``, ``ssh`` (the command that logs in), ``sudo``, ``endpoints``
- ``unreachable``: ``host``, ``error``
- ``start`` and ``operation``: ``host``, ``step``, ``operation``; the latter also ``result`` (changed, unchanged,
  failed, ignored), ``seconds`` and, if it failed, ``error``; a switch of what serves has ``downtime_s``, the seconds
  without an answer, if something was stopped
- ``error``: ``error``, what ended the run for all hosts
- ``interrupted``: ``signal``
- ``end``: ``seconds``
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from rigup.text import from_json

RUNS = Path(".rigup/runs")
# Operations of tasks/model.py and tasks/serve.py: between them, a download continues on its own.
DOWNLOAD_BEGINS = re.compile(r"Start the download of (.+)")
DOWNLOAD_ENDS = re.compile(r"Download and verify (.+)")
RESULTS = ("changed", "unchanged", "failed", "ignored")

Event = Mapping[str, Any]
Report = dict[str, Any]


def build(events: Iterable[Event]) -> Report:
    """Build the report of a run from its events, complete or not.

    ``result`` is ``ok``, ``failed``, ``interrupted``, or ``unfinished`` if the run has not ended or was killed.
    """
    report: Report = {
        "started": None, "inventory": None, "then": "", "ended": None, "seconds": None, "result": "unfinished",
        "hosts": {}, "steps": [], "operations": [], "running": [], "errors": [], "downloads": [],
    }  # fmt: skip
    steps: dict[str, dict[str, float]] = {}
    open_operations: dict[tuple[str, str, str], Event] = {}
    interrupted = False
    for event in events:
        kind = event.get("event")
        if kind == "begin":
            report["started"] = event["at"]
            report.update(inventory=event["inventory"], then=event["then"])
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
            # Hosts work in parallel: an operation takes as long as its slowest host.
            longest = steps.setdefault(event["step"], {})
            longest[event["operation"]] = max(longest.get(event["operation"], 0.0), event["seconds"])
        elif kind == "error":
            report["errors"].append(event["error"])
        elif kind == "interrupted":
            interrupted = True
        elif kind == "end":
            report.update(ended=event["at"], seconds=event["seconds"])
    report["running"] = [dict(zip(("host", "step", "operation"), key, strict=True)) for key in open_operations]
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
    """Note when a run started a download, or found it running, and how long it then waited for it."""
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
                # The checkpoint was already complete.
                report["downloads"].remove(download)
            else:
                took = datetime.fromisoformat(event["at"]) - datetime.fromisoformat(download["began"])
                download.update(seconds=round(took.total_seconds(), 1), waited=event["seconds"])


def _key(event: Event) -> tuple[str, str, str]:
    return event["host"], event["step"], event["operation"]


def read_events(path: Path) -> list[Event]:
    """Read the events in a file, without an incomplete last line."""
    events: list[Event] = []
    for line in path.read_text().splitlines():
        try:
            events.append(from_json(line))
        except ValueError:
            break
    return events


def runs(folder: Path) -> list[Path]:
    """Return the directories of all runs, oldest first."""
    return sorted(path.parent for path in folder.glob("*/events.jsonl"))
