"""TODO."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rigup.errors import RigupError
from rigup.run.report import RUNS, _headline, build, read_events, render, runs

__all__ = [
    "add_arguments",
    "command",
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="RUN", help="a run's name, or its folder (default: the last one)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--list", action="store_true", help="list all runs, oldest first")
    parser.add_argument("--runs", type=Path, default=RUNS, metavar="DIR", help=f"where runs are kept (default: {RUNS})")


def command(options: argparse.Namespace) -> int:
    """Run `rigup report`; returns its exit code. Raises RigupError where there is no such run."""
    known = runs(options.runs)
    if options.list:
        for run in known:
            print(f"{run.name}  {_headline(build(read_events(run / 'events.jsonl')))}")
        return 0
    chosen = known[-1:]
    if options.name:
        named = (options.runs / options.name, Path(options.name))
        chosen = [folder for folder in named if (folder / "events.jsonl").is_file()]
    if not chosen:
        what = f"no run named {options.name}" if options.name else "no run yet"
        raise RigupError(f"{what} in {options.runs}: `rigup report --list` lists them")
    report = build(read_events(chosen[0] / "events.jsonl"))
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        print(render(report, chosen[0] / "report.json", changes=True), end="")
    return 0 if report["result"] == "ok" else 2
