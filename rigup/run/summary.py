"""The report of a run as text: the result of each host, what took long, what failed, what to do next."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rigup.commands import with_inventory
from rigup.run.report import RESULTS, Report

SLOWEST = 5
CHANGES, FAILURES = 20, 10
"""Changes of one host, and failures of all, that are printed; `--json` has them all."""

# Long enough to look at a checkpoint that is already complete.
NO_WAIT_S = 2.0


def render(report: Report, where: Path | None = None, changes: bool = False) -> str:
    """Return the report as text; `where` is its file.

    The hosts with their endpoints come first, then what failed. `changes` adds what changed on each host, which the
    console has printed during the run.
    """
    lines = [f"rigup: {headline(report)}"]
    busy = {operation["host"] for operation in report["running"]}
    for name, host in report["hosts"].items():
        is_complete = report["result"] in ("ok", "failed") and host["result"] == "ok" and name not in busy
        lines += ["", *_host_lines(report, name, is_complete)]
    lines += _trouble(report)
    for name in report["hosts"] if changes else ():
        lines += _changes(report, name)
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
            lines.append(f"  no answer for {_seconds(o['downtime_s'])} s on {o['host']}: {_name(o)}")
    if where is not None:
        lines.append(f"  report: {where}")
    lines += ["", f"  Next: {_next(report)}"]
    return "\n".join(lines) + "\n"


def headline(report: Report) -> str:
    """Return the result of the run in one line."""
    changed = sum(host["changed"] for host in report["hosts"].values())
    count = "nothing changed" if changed == 0 else f"{changed} change{'s' if changed != 1 else ''}"
    before = f" after {count}" if changed else f", {count}"
    took = f" in {_seconds(report['seconds'])} s" if report["seconds"] is not None else ""
    words = {
        "ok": f"done{took}, {count}",
        "failed": f"failed{took}{before}",
        "interrupted": f"interrupted{took}{before}",
        "unfinished": f"not finished, {count} so far",
    }
    return words[report["result"]]


def _host_lines(report: Report, name: str, is_complete: bool) -> list[str]:
    """Return the result of a host, with its endpoints if its deploy is complete."""
    host = report["hosts"][name]
    if host["result"] == "unreachable":
        return [f"  {name}: unreachable: {host['error']}"]
    counts = ", ".join(f"{host[result]} {result}" for result in RESULTS if host[result] or result == "changed")
    lines = [f"  {name}: {counts}"]
    for endpoint in host["endpoints"] if is_complete else ():
        lines += [
            f"    endpoint {endpoint['name']}: {_where(report, name, endpoint)}",
            f"      recipe      {endpoint['recipe']}",
            _engine_line(endpoint),
            f"      checkpoint  {endpoint['repo']} at {endpoint['revision']}",
            # Runs of earlier versions have no such key.
            *([f"      drafter     {drafter}"] if (drafter := endpoint.get("drafter")) else []),
            f"      try it      {try_line(report, name, endpoint)}",
            f"      log         {follow_line(host, endpoint)}",
        ]
    return lines


def _changes(report: Report, name: str) -> list[str]:
    """Return what changed on a host, what took longest first."""
    changed = [o for o in report["operations"] if o["host"] == name and o["result"] == "changed"]
    changed.sort(key=lambda o: -o["seconds"])
    lines = ["", f"  changed on {name}, with the seconds it took:"] if changed else []
    lines += [f"    {_seconds(o['seconds']):>6}  {o['step']} | {o['operation']}" for o in changed[:CHANGES]]
    return lines + _and_more(len(changed) - CHANGES, "change")


def _and_more(count: int, what: str) -> list[str]:
    return [f"    ... and {count} more {what}{'s' if count > 1 else ''}; --json shows all"] if count > 0 else []


def _engine_line(endpoint: Mapping[str, Any]) -> str:
    if endpoint["image"] is None:
        return f"      packages    {', '.join(endpoint['packages'])}"
    return f"      image       {endpoint['image_tag']}, {endpoint['image'].rpartition('@')[2]}"


def _where(report: Report, name: str, endpoint: Mapping[str, Any]) -> str:
    if public := endpoint.get("public_url"):
        return f"{public}, with the key from `{_key(report, name, endpoint)}`"
    return f"{endpoint['url']} (on {name})"


def _key(report: Report, name: str, endpoint: Mapping[str, Any], *options: str) -> str:
    return with_inventory(("rigup", "key", f"{name}/{endpoint['name']}", *options), report["inventory"])


def try_line(report: Report, name: str, endpoint: Mapping[str, Any]) -> str:
    """Return a line for the control machine's shell that asks the endpoint for a chat completion.

    A key passes through a pipe: it is in no command line and not printed.
    """
    question = {"model": endpoint["model"], "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32}
    body = shlex.quote(json.dumps(question))
    if public := endpoint.get("public_url"):
        curl = f"curl -sS {public}/v1/chat/completions -H @- -H Content-Type:application/json -d {body}"
        return f"{_key(report, name, endpoint, '--header')} | {curl}"
    curl = f"curl -sS {endpoint['url']}/v1/chat/completions -H Content-Type:application/json -d @-"
    return f"echo {body} | {shlex.join(report['hosts'][name]['ssh'])} {curl}"


def follow_line(host: Mapping[str, Any], endpoint: Mapping[str, Any]) -> str:
    """Return a line for the control machine's shell that follows the endpoint's log."""
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
    for operation in report["running"]:
        lines += ["", f"  still running on {operation['host']}, step {_name(operation)}"]
    for error in report["errors"]:
        if (lines or unreachable) and error.endswith("No hosts remaining!"):
            # pyinfra ends with this; the reason is printed above.
            continue
        lines += ["", *(f"  {line}" for line in error.splitlines())]
    return lines


def _next(report: Report) -> str:
    if report["result"] == "ok":
        return str(report["then"])
    if report["result"] == "failed":
        return "fix the errors above and run the same command again: it continues from there."
    return "run the same command again: it continues from there."


def _name(operation: Mapping[str, Any]) -> str:
    return f"{operation['step']}: {operation['operation']}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f}" if seconds < 100 else f"{seconds:.0f}"


def _critical_path(report: Report) -> list[str]:
    """Return lines on whether the downloads or the other steps decided how long the run took."""
    lines = []
    for download in report["downloads"]:
        if download["waited"] is None:
            continue
        what = f"    {download['host']}: the download of {download['repo']}"
        if download["waited"] < NO_WAIT_S:
            lines.append(f"{what} finished before it was needed; the other steps took longer")
        else:
            parallel = max(0.0, download["seconds"] - download["waited"])
            lines.append(
                f"{what} took {_seconds(download['seconds'])} s: {_seconds(parallel)} s in parallel with other steps, "
                f"{_seconds(download['waited'])} s waiting"
            )
    return ["  critical path:", *lines] if lines else []
