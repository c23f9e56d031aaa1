"""`rigup audit`: run the checks of `tests/audit`, by pytest in a separate process."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from rigup.audit.outcome import WORDS, bare
from rigup.cli._hosts import add_host, add_inventory, find_host, read_inventory, use_inventory
from rigup.cli._parser import Commands, add_json
from rigup.cli._process import run_for_us
from rigup.cli._table import Table, show
from rigup.errors import RigupError, suggestion
from rigup.resources import AUDIT

# No configuration of pytest that happens to be around, nor plugins that no check uses and every audit would load.
PYTEST = (
    *(sys.executable, "-P", "-m", "pytest", "--quiet", "--no-header", f"--config-file={os.devnull}"),
    *(
        f"--confcutdir={AUDIT}",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:anyio",
        "-p",
        "no:hypothesispytest",
        "-p",
        "no:typeguard",
    ),
)
STYLES = {"ok": "green", "finding": "bold red", "waived": "yellow", "unchecked": "yellow"}

JSON = {
    "result": "clean, findings or incomplete",
    "counts": "the number of checks by result: ok, finding, waived, unchecked",
    "checks": "a list: host, check, step, title, severity, settings, repair, result, expected, found, note",
    "bare": "the hosts on which nothing is deployed; they have no checks",
}


def register(commands: Commands) -> None:
    """Add `rigup audit`."""
    parser = commands.add_parser(
        "audit",
        help="check the hosts against their plan",
        description="Reads the hosts and changes nothing: every promise of the deploy is a check.",
        epilog="Exit codes: 0 everything is as planned, 2 findings or nothing deployed, 1 a check could not run.",
    )
    add_host(parser, "*")
    parser.add_argument("--step", action="append", metavar="STEP", help="only the checks of this step; repeatable")
    parser.add_argument("--deep", action="store_true", help="also read every byte of the model store")
    parser.add_argument("--failed", action="store_true", help="print only checks that do not pass")
    add_inventory(parser)
    form = parser.add_mutually_exclusive_group()
    add_json(parser, JSON, form)
    form.add_argument("--table", action="store_true", help="print a table: one row per check, one column per host")
    form.add_argument("--junit", type=Path, metavar="FILE", help="also write a JUnit file")
    parser.set_defaults(run=_audit)


def _audit(options: argparse.Namespace) -> int:
    """Run `rigup audit`. Raises RigupError for an unknown host or step."""
    use_inventory(options)
    argv = [*PYTEST, f"--rootdir={Path.cwd()}", *map(str, _files(options.step or ()))]
    if options.hosts:
        inventory = read_inventory(options)
        argv.append(f"--hosts={','.join(find_host(inventory, word).name for word in options.hosts)}")
    argv += [flag for flag, is_set in (("--deep", options.deep), ("--failed", options.failed)) if is_set]
    argv += [f"--junitxml={options.junit}"] if options.junit else []
    if not (options.json or options.table):
        return _exit_code(run_for_us(argv).returncode)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "outcomes.json"
        done = run_for_us([*argv, f"--outcomes={path}"], capture_output=True, text=True)
        if not path.exists():
            raise RigupError((done.stderr or done.stdout).strip().removeprefix("ERROR: "))
        if options.json:
            print(path.read_text(), end="")
        else:
            outcomes = json.loads(path.read_text())
            if outcomes["checks"]:
                show(table(outcomes, options.failed))
            print("".join(f"{bare(host)}\n" for host in outcomes["bare"]), end="")
        return _exit_code(done.returncode)


def _files(steps: Sequence[str]) -> list[Path]:
    """Return the files with the checks of these steps, or the directory of all. Raises RigupError."""
    known = sorted(path.stem.removeprefix("test_") for path in AUDIT.glob("test_*.py"))
    for step in steps:
        if step not in known:
            raise RigupError(f"no step is named {step!r}", suggestion(step, known, f"steps: {', '.join(known)}"))
    return [AUDIT / f"test_{step}.py" for step in steps] or [AUDIT]


def table(outcomes: Mapping[str, Any], failed: bool = False) -> Table:
    """Return the result of each check on each host, from the audit's JSON; with `failed`, without checks that pass."""
    rows: dict[str, dict[str, str]] = {}
    for each in outcomes["checks"]:
        rows.setdefault(each["check"], {})[each["host"]] = each["result"]
    severities = {each["check"]: each["severity"] for each in outcomes["checks"]}
    hosts = list(dict.fromkeys(each["host"] for each in outcomes["checks"]))
    made = Table("check", "severity", *hosts)
    for check, results in rows.items():
        if not failed or {*results.values()} != {"ok"}:
            cells = [Text(WORDS[results[host]], STYLES[results[host]]) if host in results else "" for host in hosts]
            made.add_row(check, severities[check], *cells)
    return made


def _exit_code(code: int) -> int:
    """Return 1 for pytest's other codes: wrong usage, an interruption, an internal error."""
    return code if code in (0, 2) else 1
