"""`rigup report`: what the last deploy did, or an earlier one."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rigup.cli._parser import Commands
from rigup.errors import RigupError
from rigup.run.report import RUNS, build, read_events, runs
from rigup.run.summary import headline, render


def register(commands: Commands) -> None:
    """Add `rigup report`."""
    parser = commands.add_parser(
        "report",
        help="show what the last deploy did, or an earlier one",
        description="Shows what a run changed, what failed, and how long each step took.",
        epilog="Exit codes: 0 the run succeeded, 2 it did not, 1 there is no such run.",
    )
    parser.add_argument("name", nargs="?", metavar="RUN", help="a run's name or directory (default: the last run)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--list", action="store_true", help="list all runs, oldest first")
    parser.add_argument(
        "--runs", type=Path, default=RUNS, metavar="DIR", help=f"the directory of all runs (default: {RUNS})"
    )
    parser.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    """Run `rigup report`. Raises RigupError if there is no such run."""
    known = runs(options.runs)
    if options.list:
        for run in known:
            print(f"{run.name}  {headline(build(read_events(run / 'events.jsonl')))}")
        return 0
    chosen = known[-1:]
    if options.name:
        named = (options.runs / options.name, Path(options.name))
        chosen = [folder for folder in named if (folder / "events.jsonl").is_file()]
    if not chosen:
        what = f"no run named {options.name}" if options.name else "no run yet"
        raise RigupError(f"{what} in {options.runs}", "`rigup report --list` lists the runs")
    report = build(read_events(chosen[0] / "events.jsonl"))
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        print(render(report, chosen[0] / "report.json", changes=True), end="")
    return 0 if report["result"] == "ok" else 2
