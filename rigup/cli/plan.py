"""`rigup plan`: what a deploy would change, found by a dry run.

The dry run is pyinfra's own, in a separate process (`rigup.run.dry_run`), which prints one JSON object. Its entries are
in the order of the deploy.

``result`` is ``change``, ``nothing`` or ``unknown``: nothing would change today, but the operation reads what an
earlier entry is going to change, or it has a condition. ``after`` names these earlier entries; a ``change`` that has
some may turn out to be done by them already. For a file, ``diff`` holds the lines of a unified diff, or is null where
``hidden`` says why.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from rigup import commands
from rigup.cli._hosts import add_host, add_inventory, find_host, read_inventory, use_inventory
from rigup.cli._output import print_json
from rigup.cli._parser import Commands, add_json
from rigup.cli._process import run_for_us
from rigup.cli._project import DEPLOY, INVENTORY, require
from rigup.cli._terminal import SafeConsole

DIFF_LINES, NEW_LINES = 40, 8
"""Lines shown of one file's diff, and of a new file; `--json` has them all."""

Plan = dict[str, Any]

JSON = {
    "hosts": "by name: result (ok, failed, unreachable), error, entries (step, operation, result: change, nothing or "
    "unknown; after, files: path, new, mode, hidden, diff)",
    "error": "what stopped the run for all hosts, or null",
}

_NOISE = re.compile(
    r"--> (Loading|Connecting|Preparing|Detected|Disconnecting)"
    r"|\s+Loading: |\s+\[[^\]]+\] (Connected|Ready: )|\s+(One of more hosts failed|Press enter)"
)
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def register(subcommands: Commands) -> None:
    """Add `rigup plan`."""
    parser = subcommands.add_parser(
        "plan",
        help="show what a deploy would change, per host and step",
        description="Reads the hosts and changes nothing. Files are shown as diffs, secret files never.",
        epilog="Exit codes: 0 nothing to change, 2 changes pending, 1 failure.",
    )
    add_host(parser, "*")
    add_json(parser, JSON)
    add_inventory(parser)
    parser.set_defaults(run=_plan)


def _plan(options: argparse.Namespace) -> int:
    """Run `rigup plan`. Raises RigupError for an unknown host, and outside a project directory."""
    require(DEPLOY, INVENTORY)
    use_inventory(options)
    inventory = read_inventory(options) if options.hosts else None
    hosts = [find_host(inventory, word).name for word in options.hosts] if inventory else []
    plan = _dry_run(hosts)
    if options.json:
        print_json(plan)
    else:
        _render(plan, hosts, SafeConsole(soft_wrap=True))
    return exit_code(plan)


def _dry_run(hosts: Sequence[str]) -> Plan:
    """Return the result of a dry run on these hosts, or on all if none are named."""
    argv = [sys.executable, "-P", "-m", "rigup.run.dry_run", INVENTORY, DEPLOY, "--dry"]
    argv += [word for host in hosts for word in ("--limit", host)]
    environment = {**os.environ, "PYINFRA_PROGRESS": "off"}
    # Where hosts are unreachable, pyinfra asks whether to continue with the others.
    yes = "\n" * 100
    # stderr goes to a file, so that neither stream can fill up while the other one is read.
    with tempfile.TemporaryFile("w+") as stderr:
        done = run_for_us(argv, env=environment, input=yes, stdout=subprocess.PIPE, stderr=stderr, text=True)
        stderr.seek(0)
        complaint = _without_noise(stderr.read())
    plan: Plan = json.loads(done.stdout) if done.stdout else {"hosts": {}}
    plan["error"] = None
    if done.returncode and not _is_explained_by_hosts(plan):
        plan["error"] = complaint or f"the dry run exited with {done.returncode}"
    return plan


def _is_explained_by_hosts(plan: Plan) -> bool:
    """Return whether only single hosts failed, so that the plan of all others is complete."""
    hosts = plan["hosts"].values()
    failed = [host for host in hosts if host["result"] != "ok"]
    return bool(failed) and (len(failed) == len(hosts) or any(host["entries"] for host in hosts))


def exit_code(plan: Plan) -> int:
    """Return 0 for nothing to change, 2 for pending changes, 1 if the plan of a host is incomplete."""
    if plan["error"] is not None or any(host["result"] != "ok" for host in plan["hosts"].values()):
        return 1
    pending = any(entry["result"] != "nothing" for host in plan["hosts"].values() for entry in host["entries"])
    return 2 if pending else 0


def _render(plan: Plan, hosts: Sequence[str], console: SafeConsole) -> None:
    """Print the plan of these hosts, or of all, for a person."""
    for name, host in plan["hosts"].items():
        entries = [entry for entry in host["entries"] if entry["result"] != "nothing"]
        console.print(Text.assemble((f"{name}: ", "bold"), _headline(host, entries)))
        if host["error"]:
            console.print(Text(_indent(host["error"], 4), "red"))
        step = None
        for entry in entries:
            if entry["step"] != step:
                step = entry["step"]
                console.print(Text(f"  {step}", "bold"))
            _print_entry(entry, console)
        console.print()
    if plan["error"] is not None:
        console.print(Text(plan["error"], "red"))
        console.print()
    if exit_code(plan) == 1:
        console.print("This plan is incomplete: fix the errors above and run the same command again.")
    elif exit_code(plan) == 2:
        console.print(f"Next: {commands.deploy(hosts)}")


def _headline(host: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> Text:
    if host["result"] == "unreachable":
        return Text("unreachable", "red")
    if not host["entries"]:
        return Text("not planned", "red")
    changes = sum(entry["result"] == "change" for entry in entries)
    unknown = len(entries) - changes
    words = [f"{changes} of {len(host['entries'])} operations would change something"] if changes else []
    words += [f"{unknown} cannot be known yet"] if unknown else []
    if host["result"] == "failed":
        return Text("; ".join(["the plan stops at an error", *words]), "red")
    return Text(", ".join(words)) if words else Text("nothing to change", "green")


def _print_entry(entry: Mapping[str, Any], console: SafeConsole) -> None:
    certain = entry["result"] == "change"
    mark, style = ("+", "green") if certain else ("?", "yellow")
    console.print(Text.assemble(("    ", ""), (mark, style), f" {entry['operation']}"))
    if entry["after"]:
        last, more = entry["after"][-1], len(entry["after"]) - 1
        others = f" and {more} other{'s' if more > 1 else ''}" if more else ""
        what = "depends on" if certain else "known after"
        console.print(Text(f"        {what} {last}{others}", "dim"))
    elif not certain:
        console.print(Text("        has a condition that is decided during the deploy", "dim"))
    for file in entry["files"]:
        _print_file(file, console)


def _print_file(file: Mapping[str, Any], console: SafeConsole) -> None:
    modes = f", mode {' -> '.join(file['mode'])}" if len(file["mode"]) == 2 else ""
    new = " (new)" if file["new"] else ""
    console.print(Text(f"        {file['path']}{new}{modes}" + (f": {file['hidden']}" if file["hidden"] else "")))
    lines = [line for line in file["diff"] or [] if not (file["new"] and line.startswith("@@"))]
    limit = NEW_LINES if file["new"] else DIFF_LINES
    for line in lines[:limit]:
        colors = {"+": "green", "-": "red", "@": "cyan"}
        console.print(Text(f"          {line}", colors.get(line[:1], "dim")))
    if len(lines) > limit:
        console.print(Text(f"          ... {len(lines) - limit} more lines; --json shows all", "dim"))


def _indent(text: str, by: int) -> str:
    return "\n".join(f"{' ' * by}{line}" for line in text.splitlines())


def _without_noise(text: str) -> str:
    """Return pyinfra's output without the lines that it prints in every run."""
    lines = [line for line in _ANSI.sub("", text).splitlines() if not _NOISE.match(line)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
