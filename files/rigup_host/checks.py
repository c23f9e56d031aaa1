"""Checks of what a host promises, one after the other, and the record of their results.

The record is a JSON file. It holds the invocation of the unit that was checked: once that unit is started again, the
record says nothing about it.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from rigup_host import files, systemd


class Failed(Exception):
    """A check did not find what it must."""


class TimeUp(BaseException):
    """The time for all checks is up. Not an Exception: clients would take it for a failure of their request."""


class Noted(Exception):
    """A check found something that users should know about, and that does not keep the endpoint from serving."""


Check = tuple[str, Callable[[], str]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that `record` reads."""
    parser.add_argument("--out", type=Path, required=True, help="where to write the record")
    parser.add_argument("--unit", required=True, help="the unit whose current invocation is checked")
    parser.add_argument("--digest", required=True, help="identifies what is checked; copied into the record")
    parser.add_argument("--within", type=float, default=1800, help="seconds for all checks together")


def record(
    what: str, checks: list[Check], options: argparse.Namespace, figures: Mapping[str, float] | None = None
) -> int:
    """Run the checks and write their record, with the figures that they measured, if any.

    Return 0 if all passed, otherwise 1.
    """
    invocation = invocation_of(options.unit)
    results = run_checks(checks, options.within)
    passed = all(result["ok"] for result in results)
    if invocation_of(options.unit) != invocation:
        print(f"{options.unit} was restarted during the checks", file=sys.stderr)
        passed = False
    found = {
        "what": what,
        "passed": passed,
        "digest": options.digest,
        "unit": options.unit,
        "invocation": invocation,
        "at": files.now(),
        "checks": results,
    }
    if figures:
        found["figures"] = figures
    files.write(options.out, json.dumps(found, indent=2) + "\n")
    return 0 if passed else 1


def run_checks(checks: list[Check], within: float) -> list[dict[str, object]]:
    """Return the results of all checks, or of those that were started before `within` seconds had passed."""
    began, results = time.monotonic(), []
    for name, check in checks:
        left = within - (time.monotonic() - began)
        results.append(run_check(name, check, left, f"{within:.0f} s"))
        if time.monotonic() - began >= within:
            break
    return results


def run_check(name: str, check: Callable[[], str], left: float, limit: str) -> dict[str, object]:
    """Run one check for at most `left` seconds and print its line; return its result as the record has it.

    `limit` is the time for all checks, in words.
    """
    began = time.monotonic()
    signal.signal(signal.SIGALRM, time_is_up)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, left)
            mark, detail = "ok", check()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except TimeUp:
        mark, detail = "FAIL", f"timed out after {limit}; remaining checks skipped"
    except Noted as note:
        mark, detail = "note", str(note)
    except Failed as error:
        mark, detail = "FAIL", str(error)
    except Exception as error:
        # Whatever went wrong with one check, the results of the others are worth having too.
        mark, detail = "FAIL", f"{type(error).__name__}: {error}"
    seconds = time.monotonic() - began
    print(f"{mark:<4} {name:<48} {seconds:6.1f} s" + (f"  {detail}" if mark == "note" else ""), flush=True)
    if mark == "FAIL":
        print(f"{name}: {detail}", file=sys.stderr, flush=True)
    return {"name": name, "ok": mark != "FAIL", "seconds": round(seconds, 3), "detail": detail}


def time_is_up(number: int, frame: object) -> None:
    """Raise TimeUp; the handler of the alarm."""
    raise TimeUp


def invocation_of(unit: str) -> str:
    """Return the current invocation of a unit; empty if it does not run."""
    return systemd.show(unit, "InvocationID")["InvocationID"]
