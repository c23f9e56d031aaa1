"""`rigup report`: what the last deploy did, or an earlier one."""

from __future__ import annotations

import argparse
from pathlib import Path

from rigup import commands
from rigup.cli._output import print_json
from rigup.cli._parser import Commands, add_json
from rigup.cli._table import Table, show
from rigup.errors import RigupError, suggestion
from rigup.run.report import RUNS, build, read_events, runs
from rigup.run.summary import headline, render

OF_RUN = ("started", "ended", "seconds", "result")
JSON = {
    "started": "when the run began (ISO 8601, UTC)",
    "inventory": "the inventory file that was named, or null",
    "then": "what to do after success",
    "ended": "when the run ended; null for one that was killed",
    "seconds": "how long it took",
    "result": "ok, failed, interrupted or unfinished",
    "hosts": "by name: result, error (if unreachable), seconds, ssh, sudo, changed, unchanged, failed, ignored, "
    "endpoints (name, url, public_url, recipe, model, image, image_tag, packages, repo, revision, drafter, unit)",
    "steps": "a list: step, seconds, changed, unchanged, failed, ignored",
    "operations": "a list: host, step, operation, result, seconds, error (if it failed), downtime_s (of a switch)",
    "running": "a list of operations without a result: host, step, operation",
    "errors": "what ended the run for all hosts",
    "downloads": "a list: host, repo, began, seconds, waited",
    "runs": "with --list, and then the only key: a list: run, started, ended, seconds, result",
}


def register(subcommands: Commands) -> None:
    """Add `rigup report`."""
    parser = subcommands.add_parser(
        "report",
        help="show what the last deploy did, or an earlier one",
        description="Shows what a run changed, what failed, and how long each step took.",
        epilog="Exit codes: 0 the run succeeded, 2 it did not, 1 there is no such run.",
    )
    parser.add_argument("name", nargs="?", metavar="RUN", help="a run's name or directory (default: the last run)")
    add_json(parser, JSON)
    parser.add_argument("--list", action="store_true", help="list all runs, oldest first")
    parser.add_argument(
        "--runs", type=Path, default=RUNS, metavar="DIR", help=f"the directory of all runs (default: {RUNS})"
    )
    parser.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    """Run `rigup report`. Raises RigupError if there is no such run."""
    known = runs(options.runs)
    if options.list:
        built = {run.name: build(read_events(run / "events.jsonl")) for run in known}
        if options.json:
            print_json({"runs": [{"run": name, **{key: made[key] for key in OF_RUN}} for name, made in built.items()]})
        else:
            show(Table("run", "result", rows=[(name, headline(report)) for name, report in built.items()]))
        return 0
    chosen = known[-1:]
    if options.name:
        named = (options.runs / options.name, Path(options.name))
        chosen = [folder for folder in named if (folder / "events.jsonl").is_file()]
    if not chosen:
        if not options.name:
            raise RigupError(f"no run yet in {options.runs}", f"deploy first: `{commands.deploy()}`")
        remedy = suggestion(options.name, (run.name for run in known), "`rigup report --list` lists the runs")
        raise RigupError(f"no run named {options.name} in {options.runs}", remedy)
    report = build(read_events(chosen[0] / "events.jsonl"))
    if options.json:
        print_json(report)
    else:
        print(render(report, chosen[0] / "report.json", changes=True), end="")
    return 0 if report["result"] == "ok" else 2
