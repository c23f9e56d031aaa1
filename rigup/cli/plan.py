"""`rigup plan`: what a deploy would change, found out by a dry run and told calmly.

The dry run is pyinfra's own, in a process of its own (`rigup.run.dry_run`), which writes what it found as one JSON
object:

- ``error``: what stopped the run for all hosts, or null
- ``hosts``: by name, ``result`` (ok, failed, unreachable), ``error`` and ``entries``, in the order of the deploy. An
  entry has ``step``, ``operation``, ``result``, ``after`` and ``files``.

``result`` is ``change``, ``nothing``, or ``unknown``: it would do nothing today, but looks at what an earlier entry is
going to change, or it has a condition. ``after`` names these earlier entries; a ``change`` with some may find that they
have settled it. For a file, ``diff`` holds the lines of a unified diff, or is null where ``hidden`` says why.
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
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from rigup.errors import RigupError

__all__ = [
    "command",
    "exit_code",
    "render",
]

DEPLOY = "deploy.py"
INVENTORY = "inventory/lab.py"
DIFF_LINES, NEW_LINES = 40, 8
"""Lines that are shown to a person of one file's diff, and of a file that is not there yet; `--json` has them all."""

Plan = dict[str, Any]


_NOISE = re.compile(
    r"--> (Loading|Connecting|Preparing|Detected|Disconnecting)"
    r"|\s+Loading: |\s+\[[^\]]+\] (Connected|Ready: )|\s+(One of more hosts failed|Press enter)"
)
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit", action="append", metavar="HOST", help="only this host; may be given again")
    parser.add_argument("--inventory", type=Path, metavar="FILE", help="the inventory file; by default the deploy's")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON, with every diff in full")


def command(options: argparse.Namespace) -> int:
    """Run `rigup plan`; returns its exit code. Raises RigupError where there is no deploy here."""
    plan = dry_run(options.limit or (), options.inventory)
    if options.json:
        print(json.dumps(plan, indent=2))
    else:
        render(plan, Console(highlight=False, soft_wrap=True))
    return exit_code(plan)


def dry_run(limit: Sequence[str], inventory: Path | None) -> Plan:
    """What a dry run found. Raises RigupError where there is no deploy here."""
    if not (Path(DEPLOY).is_file() and Path(INVENTORY).is_file()):
        raise RigupError(f"there is no {DEPLOY} with {INVENTORY} in {Path.cwd()}: run this where they are")
    argv = [sys.executable, "-m", "rigup.run.dry_run", INVENTORY, DEPLOY, "--dry"]
    argv += [word for host in limit for word in ("--limit", host)]
    environment = {**os.environ, "PYINFRA_PROGRESS": "off"}
    if inventory is not None:
        environment["RIGUP_INVENTORY"] = str(inventory.resolve())
    # Where hosts cannot be reached, pyinfra asks on its terminal whether to go on with the others.
    yes = "\n" * 100
    # A file, so that neither of the two streams can fill up while the other one is read.
    with tempfile.TemporaryFile("w+") as said:
        done = subprocess.run(argv, env=environment, input=yes, stdout=subprocess.PIPE, stderr=said, text=True)
        said.seek(0)
        complaint = _without_noise(said.read())
    plan: Plan = json.loads(done.stdout) if done.stdout else {"hosts": {}}
    plan["error"] = None
    if done.returncode and not _told_by_hosts(plan):
        plan["error"] = complaint or f"the dry run ended with {done.returncode}"
    return plan


def _told_by_hosts(plan: Plan) -> bool:
    """Whether what failed is what failed on single hosts, so that the others were looked at to the end."""
    hosts = plan["hosts"].values()
    failed = [host for host in hosts if host["result"] != "ok"]
    return bool(failed) and (len(failed) == len(hosts) or any(host["entries"] for host in hosts))


def exit_code(plan: Plan) -> int:
    """0 nothing to do, 2 changes pending, 1 it could not be found out for all hosts."""
    if plan["error"] is not None or any(host["result"] != "ok" for host in plan["hosts"].values()):
        return 1
    pending = any(entry["result"] != "nothing" for host in plan["hosts"].values() for entry in host["entries"])
    return 2 if pending else 0


def render(plan: Plan, console: Console) -> None:
    """Print the plan for a person."""
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
        console.print("The plan is not complete: put right what is said above and run the same command again.")
    elif exit_code(plan) == 2:
        console.print(f"Next: pyinfra {INVENTORY} {DEPLOY}")


def _headline(host: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> Text:
    if host["result"] == "unreachable":
        return Text("could not be reached", "red")
    changes = sum(entry["result"] == "change" for entry in entries)
    unknown = len(entries) - changes
    words = [f"{changes} of {len(host['entries'])} operations would change something"] if changes else []
    words += [f"{unknown} cannot be known yet"] if unknown else []
    if not host["entries"]:
        return Text("was not looked at", "red")
    if host["result"] == "failed":
        return Text("; ".join(["could not be looked at to the end", *words]), "red")
    return Text(", ".join(words)) if words else Text("nothing to do", "green")


def _print_entry(entry: Mapping[str, Any], console: Console) -> None:
    certain = entry["result"] == "change"
    mark, style = ("+", "green") if certain else ("?", "yellow")
    console.print(Text.assemble(("    ", ""), (mark, style), f" {entry['operation']}"))
    if entry["after"]:
        last, more = entry["after"][-1], len(entry["after"]) - 1
        beside = f" and {more} other{'s' if more > 1 else ''}" if more else ""
        what = "rests on" if certain else "known once this has run:"
        console.print(Text(f"        {what} {last}{beside}", "dim"))
    elif not certain:
        console.print(Text("        has a condition that is decided during the deploy", "dim"))
    for file in entry["files"]:
        _print_file(file, console)


def _print_file(file: Mapping[str, Any], console: Console) -> None:
    modes = f", mode {' -> '.join(file['mode'])}" if len(file["mode"]) == 2 else ""
    fresh = " (new)" if file["new"] else ""
    console.print(Text(f"        {file['path']}{fresh}{modes}" + (f": {file['hidden']}" if file["hidden"] else "")))
    lines = [line for line in file["diff"] or [] if not (file["new"] and line.startswith("@@"))]
    limit = NEW_LINES if file["new"] else DIFF_LINES
    for line in lines[:limit]:
        colours = {"+": "green", "-": "red", "@": "cyan"}
        console.print(Text(f"          {line}", colours.get(line[:1], "dim")))
    if len(lines) > limit:
        console.print(Text(f"          ... {len(lines) - limit} more lines; --json has all", "dim"))


def _indent(text: str, by: int) -> str:
    return "\n".join(f"{' ' * by}{line}" for line in text.splitlines())


def _without_noise(said: str) -> str:
    """What pyinfra said, less the lines that it says in every run."""
    lines = [line for line in _ANSI.sub("", said).splitlines() if not _NOISE.match(line)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
