"""The figures of a level from the records of its repeats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from rigup.measure.records import Loop, Record, Repeat, Request, Sample
from rigup.measure.statistics import Spread, percentile, spread, wilson

PERCENTILES = (50, 95, 99)
FEWEST_SAMPLES = 3
"""A card averages its power over about a second, so fewer samples mostly show what was before."""


class Targets(BaseModel):
    """What a request must meet to count for the goodput, in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ttft: float
    tpot: float

    def met(self, request: Request) -> bool:
        """Return whether a request without failure meets both."""
        return request.ttft <= self.ttft and (request.tpot or 0.0) <= self.tpot


class LevelFigures(BaseModel):
    """What was measured of a level: each figure as the spread over the repeats, None if nothing is known of it.

    `failed` has the failures by kind, those of the warm-up included.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    workload: str
    concurrency: int
    repeats: int
    requests: int
    failed: dict[str, int]
    figures: dict[str, Spread | None]


class ToolCalls(BaseModel):
    """How many tries of the task with several tool calls were right, and the 95 % interval of their share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stream: bool
    tries: int
    right: int
    low: float
    high: float
    wrong: dict[str, int]


def level_figures(records: Sequence[Record], targets: Targets) -> list[LevelFigures]:
    """Return the figures of all levels, in the order in which they were measured.

    A repeat that was interrupted is not part of any figure.
    """
    requests = [each for each in records if isinstance(each, Request)]
    samples = [each for each in records if isinstance(each, Sample)]
    repeats = [each for each in records if isinstance(each, Repeat)]
    found = []
    for workload, concurrency in dict.fromkeys((each.workload, each.concurrency) for each in requests):
        own = [each for each in requests if (each.workload, each.concurrency) == (workload, concurrency)]
        whole = [
            each for each in repeats if each.repeat and (each.workload, each.concurrency) == (workload, concurrency)
        ]
        of_each = [
            repeat_figures(repeat, [each for each in own if each.repeat == repeat.repeat], samples, targets)
            for repeat in whole
        ]
        names = repeat_figures(Repeat(workload="", concurrency=0, repeat=0, began=0, ended=0), [], [], targets)
        numbers = {repeat.repeat for repeat in whole}
        found.append(
            LevelFigures(
                workload=workload,
                concurrency=concurrency,
                repeats=len(whole),
                requests=sum(each.repeat in numbers for each in own),
                failed=dict(Counter(each.error for each in own if each.error)),
                figures={
                    name: spread([value for each in of_each if (value := each[name]) is not None]) for name in names
                },
            )
        )
    return found


def repeat_figures(
    repeat: Repeat, requests: Sequence[Request], samples: Sequence[Sample], targets: Targets
) -> dict[str, float | None]:
    """Return the figures of one repeat. Failed requests count for no time and no token."""
    answered = [each for each in requests if not each.error]
    meanwhile = [each for each in samples if repeat.began <= each.at <= repeat.ended]
    seconds = repeat.ended - repeat.began
    tokens = sum(each.tokens or 0 for each in answered)
    tpots = [each.tpot for each in answered if each.tpot is not None]
    watts = [each.watts for each in meanwhile if each.watts is not None]
    power = sum(watts) / len(watts) if len(watts) >= FEWEST_SAMPLES else None
    middle = percentile(tpots, 50)
    found: dict[str, float | None] = {
        "tok_s": tokens / seconds if answered and seconds else None,
        "user_tok_s": 1 / middle if middle else None,
        "goodput": sum(map(targets.met, answered)) / seconds if requests and seconds else None,
        "met": sum(map(targets.met, answered)) / len(requests) if requests else None,
    }
    for name, values in (
        ("ttft", [each.ttft for each in answered]),
        ("tpot", tpots),
        ("e2e", [each.duration for each in answered]),
    ):
        found |= {f"{name}_p{percent}": percentile(values, percent) for percent in PERCENTILES}
    return found | {
        "accepted": repeat.accepted / repeat.drafted if repeat.drafted and repeat.accepted is not None else None,
        "kv_cache": max((each.kv_cache for each in meanwhile if each.kv_cache is not None), default=None),
        "watts": power,
        "joules_per_token": power * seconds / tokens if power is not None and tokens else None,
    }


def tool_calls(records: Sequence[Record]) -> list[ToolCalls]:
    """Return the share of tries in which all was right: of plain answers, and of streamed ones."""
    found = []
    for stream in (False, True):
        tries = [each for each in records if isinstance(each, Loop) and each.stream == stream]
        right = sum(not each.error for each in tries)
        low, high = wilson(right, len(tries))
        wrong = dict(Counter(each.error for each in tries if each.error))
        if tries:
            found.append(ToolCalls(stream=stream, tries=len(tries), right=right, low=low, high=high, wrong=wrong))
    return found
