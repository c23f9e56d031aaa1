"""`make lab`: boot the lab, deploy to it, audit it, and print what to do next."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lab.settings import STATE
from rigup.config.inventory import load_inventory
from rigup.run import report, summary

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent

DEPLOY = [str(BIN / "pyinfra"), "inventory/lab.py", "deploy.py", "-y"]
AUDIT = [str(BIN / "pytest"), "tests/audit", "-q", "--no-header"]

NEXT = """
The miniature model has random weights: the real engine serves it, but its answers are nonsense.

Next:
  make lab                                          run it again: finds nothing to change, in seconds
  .venv/bin/rigup deploy                            only the deploy
  make install                                      rigup for your own hosts; then: rigup init DIR
  make lab-down                                     stop the lab and remove everything but the caches"""


def tour(boot: Callable[[], object]) -> int:
    """Run the three parts in order; `boot` brings the lab up. Return the first exit code that is not 0."""
    took: dict[str, float] = {}
    if os.environ.get("RIGUP_INVENTORY") or (ROOT / "inventory/lab.yaml").exists():
        print("make lab deploys only to the embedded lab: remove inventory/lab.yaml, unset RIGUP_INVENTORY, or run")
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
            print(f"\nThe {part} failed (exit code {code}). See the failure above; run `make lab` again to continue.")
            return code
    print("\nTook " + ", ".join(f"{part} {seconds:.0f} s" for part, seconds in took.items()) + ".")
    last = _last_run()
    for name, host in last["hosts"].items() if last else ():
        for endpoint in host["endpoints"]:
            print(f"\n{name} serves {endpoint['recipe']} at {endpoint['url']}. Try it:")
            print(f"  {summary.try_line(last, name, endpoint)}")
    print(NEXT)
    return 0


def _last_run() -> report.Report:
    """Return the report of the last deploy to the lab, skipping deploys to other hosts; an empty one without any."""
    names = set(load_inventory(STATE / "lab.yaml").hosts)
    for run in reversed(report.runs(ROOT / report.RUNS)):
        built = report.build(report.read_events(run / "events.jsonl"))
        if set(built["hosts"]) == names:
            return built
    return {}
