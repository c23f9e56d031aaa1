"""`rigup audit`: the checks of `tests/audit`, with words of its own. They run in a process of their own, by pytest."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rigup.errors import RigupError

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["add_arguments", "command", "table"]

CHECKS = Path("tests/audit")
WORDS = {"ok": "ok", "finding": "FAILED", "waived": "waived", "unseen": "not seen"}
STYLES = {"ok": "green", "finding": "bold red", "waived": "yellow", "unseen": "yellow"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit", action="append", metavar="HOST", help="only this host; may be given again")
    parser.add_argument("--step", action="append", metavar="STEP", help="only this step's checks; may be given again")
    parser.add_argument("--inventory", type=Path, metavar="FILE", help="the inventory file; by default the deploy's")
    parser.add_argument("--deep", action="store_true", help="also read every byte of the model store")
    parser.add_argument("--failed", action="store_true", help="print only what is not as planned")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print what came of each check as JSON")
    form.add_argument(
        "--table", action="store_true", help="print a table: a line for each check, a column for each host"
    )
    form.add_argument("--junit", type=Path, metavar="FILE", help="write a JUnit file too")


def command(options: argparse.Namespace) -> int:
    """Run the audit; returns its exit code. Raises RigupError where the checks are not here."""
    chosen = [CHECKS / f"test_{step}.py" for step in options.step or ()] or [CHECKS]
    if not CHECKS.is_dir():
        raise RigupError(f"there is no {CHECKS} in {Path.cwd()}: run this where it is")
    if missing := [path for path in chosen if not path.exists()]:
        steps = ", ".join(sorted(path.stem.removeprefix("test_") for path in CHECKS.glob("test_*.py")))
        raise RigupError(f"no step is named {missing[0].stem.removeprefix('test_')!r}: there are {steps}")
    argv = [sys.executable, "-m", "pytest", "--quiet", "--no-header", "-p", "no:cacheprovider", *map(str, chosen)]
    argv += [f"--hosts={','.join(options.limit)}"] if options.limit else []
    argv += [flag for flag, wanted in (("--deep", options.deep), ("--failed", options.failed)) if wanted]
    argv += [f"--junitxml={options.junit}"] if options.junit else []
    environment = dict(os.environ)
    if options.inventory:
        environment["RIGUP_INVENTORY"] = str(options.inventory)
    if not (options.json or options.table):
        return _code(subprocess.run(argv, env=environment).returncode)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "outcomes.json"
        done = subprocess.run([*argv, f"--outcomes={path}"], env=environment, capture_output=True, text=True)
        if not path.exists():
            raise RigupError((done.stderr or done.stdout).strip().removeprefix("ERROR: "))
        if options.json:
            print(path.read_text(), end="")
        else:
            from rich.console import Console

            # A pipe has no width.
            Console(width=None if sys.stdout.isatty() else 400).print(
                table(json.loads(path.read_text()), options.failed)
            )
        return _code(done.returncode)


def table(told: Mapping[str, Any], failed: bool = False) -> Table:
    """What came of each check on each host, from the audit's JSON; with `failed` the checks alone that did not pass."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows: dict[str, dict[str, str]] = {}
    for each in told["checks"]:
        rows.setdefault(each["check"], {})[each["host"]] = each["result"]
    severities = {each["check"]: each["severity"] for each in told["checks"]}
    hosts = list(dict.fromkeys(each["host"] for each in told["checks"]))
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("check", "severity", *hosts):
        shown.add_column(name, no_wrap=True)
    for check, results in rows.items():
        if not failed or {*results.values()} != {"ok"}:
            cells = [Text(WORDS[results[host]], STYLES[results[host]]) if host in results else "" for host in hosts]
            shown.add_row(check, severities[check], *cells)
    return shown


def _code(code: int) -> int:
    """pytest has more codes: wrong use, an interruption and its own mistakes are all `could not look`."""
    return code if code in (0, 2) else 1
