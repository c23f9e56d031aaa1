"""A measurement as text: tables of its figures, and lines for what went wrong and what changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rigup.cli._table import Table
from rigup.measure.compare import Change
from rigup.measure.evidence import Evidence
from rigup.measure.figures import LevelFigures
from rigup.measure.statistics import Spread

NONE = "\N{EN DASH}"
PERCENTILES = "p50 / p95 / p99"
FIGURES = {
    "tok_s": "tok/s in total",
    "user_tok_s": "tok/s per user",
    "ttft_p50": "TTFT p50",
    "tpot_p50": "TPOT p50",
    "e2e_p50": "end to end p50",
    "e2e_p95": "end to end p95",
    "joules_per_token": "J/token",
    "right": "right ones",
}


def speed_table(evidence: Evidence) -> Table:
    """Return how fast each level was: the medians, and how far the repeats lie apart."""
    columns = ("workload", "users", "tok/s", "spread", "per user", f"TTFT {PERCENTILES}", f"TPOT {PERCENTILES}")
    return Table(*columns, rows=[_speed(level) for level in evidence.levels])


def _speed(level: LevelFigures) -> list[str]:
    total = level.figures["tok_s"]
    cells = [level.workload, str(level.concurrency), _number(total, 0), spread_text(total)]
    cells += [_number(level.figures["user_tok_s"], 1)]
    return [*cells, _percentiles(level, "ttft", 1, 2, "s"), _percentiles(level, "tpot", 1000, 1, "ms")]


def load_table(evidence: Evidence) -> Table:
    """Return what each level cost, and how many of its requests were as fast as they should be."""
    columns = ("workload", "users", f"end to end {PERCENTILES}", "good req/s", "drafts", "KV", "power", "J/token")
    return Table(*columns, rows=[_load(level) for level in evidence.levels])


def _load(level: LevelFigures) -> list[str]:
    figures = level.figures
    good = NONE
    if figures["goodput"] and figures["met"]:
        good = f"{figures['goodput'].median:.2f} ({figures['met'].median:.0%})"
    watts = _number(figures["watts"], 0)
    return [
        level.workload,
        str(level.concurrency),
        _percentiles(level, "e2e", 1, 2, "s"),
        good,
        _share(figures["accepted"]),
        _share(figures["kv_cache"]),
        watts if watts == NONE else f"{watts} W",
        _number(figures["joules_per_token"], 2),
    ]


def _percentiles(level: LevelFigures, name: str, factor: int, digits: int, unit: str) -> str:
    spreads = [level.figures[f"{name}_p{percent}"] for percent in (50, 95, 99)]
    found = [f"{factor * each.median:.{digits}f}" for each in spreads if each]
    return f"{' / '.join(found)} {unit}" if found else NONE


def spread_text(spread: Spread | None) -> str:
    """Return by how much the extremes differ from the median, in percent of it."""
    if spread is None or not spread.median:
        return NONE
    low, high = spread.min / spread.median - 1, spread.max / spread.median - 1
    return f"{low:+.1%}/{high:+.1%}"


def failure_lines(evidence: Evidence) -> Iterator[str]:
    """Yield a line for each level with failed requests."""
    for level in evidence.levels:
        if level.failed:
            kinds = ", ".join(f"{count} {kind}" for kind, count in level.failed.items())
            yield f"! {level.workload}, {level.concurrency} at a time: failed requests: {kinds}"


def tool_lines(evidence: Evidence) -> Iterator[str]:
    """Yield how many tries with tool calls were right, and what was wrong with the others."""
    for each in evidence.tool_calls:
        how = "streamed" if each.stream else "plain"
        wrong = "".join(f", {count} {kind}" for kind, count in each.wrong.items())
        share = f"{each.right} of {each.tries} right (95 %: {each.low:.0%} to {each.high:.0%})"
        yield f"tool calls, {how}: {share}{wrong}"


def change_lines(changes: Iterable[Change], since: str) -> Iterator[str]:
    """Yield what changed, or that nothing did."""
    none = True
    for each in changes:
        none = False
        word = "worse" if each.worse else "better"
        size = f"{abs(each.change):.0%} {'more' if each.change > 0 else 'less'}"
        values = f"{each.before:.4g} before, {each.after:.4g} now"
        yield f"{word} than on {since}: {each.what}: {FIGURES[each.figure]}: {size} ({values})"
    if none:
        yield f"no difference to {since} beyond the spread of the repeats"


def _number(spread: Spread | None, digits: int) -> str:
    return NONE if spread is None else f"{spread.median:.{digits}f}"


def _share(spread: Spread | None) -> str:
    return NONE if spread is None else f"{spread.median:.0%}"
