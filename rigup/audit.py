"""`rigup audit`: the checks of `tests/audit`, with words of its own. They run in a process of their own, by pytest."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rigup.errors import RigupError

__all__ = ["add_arguments", "command"]

CHECKS = Path("tests/audit")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit", action="append", metavar="HOST", help="only this host; may be given again")
    parser.add_argument("--step", action="append", metavar="STEP", help="only this step's checks; may be given again")
    parser.add_argument("--inventory", type=Path, metavar="FILE", help="the inventory file; by default the deploy's")
    parser.add_argument("--deep", action="store_true", help="also read every byte of the model store")
    parser.add_argument("--failed", action="store_true", help="print only what is not as planned")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print what came of each check as JSON")
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
    if not options.json:
        return _code(subprocess.run(argv, env=environment).returncode)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "outcomes.json"
        done = subprocess.run([*argv, f"--outcomes={path}"], env=environment, capture_output=True, text=True)
        if not path.exists():
            raise RigupError((done.stderr or done.stdout).strip().removeprefix("ERROR: "))
        print(path.read_text(), end="")
        return _code(done.returncode)


def _code(code: int) -> int:
    """pytest has more codes: wrong use, an interruption and its own mistakes are all `could not look`."""
    return code if code in (0, 2) else 1
