"""Two results side by side: a difference is claimed only where the spread of the repeats cannot explain it."""

from __future__ import annotations

from dataclasses import dataclass

from rigup.errors import RigupError
from rigup.measure.evidence import Evidence
from rigup.measure.figures import ToolCalls
from rigup.measure.statistics import Spread

SMALLEST = 0.05
"""A difference below this share is not claimed: an engine that is only restarted may differ as much."""
FEWEST_REPEATS = 3

# True: more is better.
COMPARED = {
    "tok_s": True,
    "user_tok_s": True,
    "ttft_p50": False,
    "tpot_p50": False,
    "e2e_p50": False,
    "e2e_p95": False,
    "joules_per_token": False,
}


@dataclass(frozen=True)
class Change:
    """A figure that changed. `change` is the share by which it is higher than before; negative if it is lower."""

    what: str
    figure: str
    before: float
    after: float
    change: float
    worse: bool


def differs(before: Spread, after: Spread) -> bool:
    """Return whether two spreads of at least FEWEST_REPEATS values each show a difference.

    Their medians must be further apart than both spreads are wide together, and by SMALLEST at least. In simulations of
    equal engines with normal noise, the first condition alone claims a difference in 3 of 200 figures.
    """
    apart = abs(after.median - before.median)
    return apart > before.width + after.width and apart >= SMALLEST * before.median


def check_method(before: Evidence, method: int) -> None:
    """Raise RigupError if a result was not measured by this method."""
    if before.method != method:
        raise RigupError(
            f"the result of {before.at} was measured by method {before.method}, and this rigup measures by {method}",
            f"compare with a result of this rigup; that one is of {before.rigup}",
        )


def compare(before: Evidence, after: Evidence) -> list[Change]:
    """Return what changed between two results. Raises RigupError if they were not measured alike."""
    check_method(before, after.method)
    earlier = {(level.workload, level.concurrency): level for level in before.levels}
    found = []
    for level in after.levels:
        old = earlier.get((level.workload, level.concurrency))
        if old is None or min(old.repeats, level.repeats) < FEWEST_REPEATS:
            continue
        for figure, more_is_better in COMPARED.items():
            was, now = old.figures.get(figure), level.figures.get(figure)
            if was and now and was.median > 0 and differs(was, now):
                change = now.median / was.median - 1
                what = f"{level.workload}, {level.concurrency} at a time"
                found.append(Change(what, figure, was.median, now.median, change, (change > 0) != more_is_better))
    return found + _tool_changes(before.tool_calls, after.tool_calls)


def _tool_changes(before: list[ToolCalls], after: list[ToolCalls]) -> list[Change]:
    """Return the shares of right tool calls whose intervals do not overlap."""
    earlier = {each.stream: each for each in before}
    found = []
    for now in after:
        was = earlier.get(now.stream)
        if was and (now.high < was.low or was.high < now.low):
            old, new = was.right / was.tries, now.right / now.tries
            what = "tool calls, streamed" if now.stream else "tool calls, plain"
            found.append(Change(what, "right", old, new, new - old, new < old))
    return found
