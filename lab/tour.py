"""`make lab`: boot the lab, deploy to it, audit it, and say what to do next."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab.settings import STATE
from rigup.config.inventory import load_inventory
from rigup.run import report, summary

__all__ = ["tour"]

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent

DEPLOY = [str(BIN / "pyinfra"), "inventory/lab.py", "deploy.py", "-y"]
AUDIT = [str(BIN / "pytest"), "tests/audit", "-q", "--no-header"]

NEXT = """
The miniature model has random weights: it answers nonsense, through the real engine.

Next:
  make lab                                          again: nothing to change, in seconds
  .venv/bin/pyinfra inventory/lab.py deploy.py      the deploy itself
  cp inventory/lab.example.yaml inventory/lab.yaml  and name hosts of your own
  make lab-down                                     stop the lab and remove all it made"""


def tour(boot: Callable[[], object]) -> int:
    """Run the three parts one after the other; `boot` brings the lab up. Returns the first exit code that is not 0."""
    took: dict[str, float] = {}
    if os.environ.get("RIGUP_INVENTORY") or (ROOT / "inventory/lab.yaml").exists():
        print("make lab deploys to the embedded lab only: set inventory/lab.yaml and RIGUP_INVENTORY aside, or run")
        print(f"  {' '.join(DEPLOY)}")
        return 1
    started = time.monotonic()
    boot()
    took["lab up"] = time.monotonic() - started
    for part, argv in (("deploy", DEPLOY), ("audit", AUDIT)):
        print(f"\n$ {' '.join([Path(argv[0]).name, *argv[1:]])}", flush=True)
        started = time.monotonic()
        code = subprocess.run(argv, cwd=ROOT, env={**os.environ, "RIGUP_LAB_STATE": str(STATE)}).returncode
        took[part] = time.monotonic() - started
        if code:
            print(f"\nThe {part} failed (exit code {code}). What failed stands above; `make lab` goes on from there.")
            return code
    print("\nTook " + ", ".join(f"{part} {seconds:.0f} s" for part, seconds in took.items()) + ".")
    for name, host in _last_run().items():
        for endpoint in host["endpoints"]:
            print(f"\n{name} serves {endpoint['recipe']} at {endpoint['url']}. Ask it something:")
            print(f"  {summary.try_line(name, host, endpoint)}")
    print(NEXT)
    return 0


def _last_run() -> dict[str, Any]:
    """The hosts of the last deploy to the lab, as its report has them; deploys elsewhere may have come in between."""
    names = set(load_inventory(STATE / "lab.yaml").hosts)
    for run in reversed(report.runs(ROOT / report.RUNS)):
        hosts: dict[str, Any] = report.build(report.read_events(run / "events.jsonl"))["hosts"]
        if set(hosts) == names:
            return hosts
    return {}
