"""What is measured: workloads at several numbers of users, and how long the rest of it takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rigup.measure.records import Request
from rigup.plan.model import EndpointPlan

METHOD = 1
"""Counts up whenever requests or figures change such that results cannot be compared with earlier ones."""

WORKLOADS = {
    "chat": "a short question and 200 tokens of answer",
    "agent": "conversations of four turns that share a prefix of 2,000 tokens",
    "code": "a short file and 400 tokens of answer that mostly repeat it",
    "long": "a prompt of up to 32,000 tokens and 64 tokens of answer",
}
REPEATS = 3
LONG_TOKENS = 32_000
MOST = {"long": 4}
"""More long prompts at a time would only wait for each other."""
MOST_OF_ENGINE = {"vllm": "--max-num-seqs", "sglang": "--max-running-requests"}


@dataclass(frozen=True)
class Level:
    """A workload, and how many users send its requests at the same time; `requests` is about how many in a repeat."""

    workload: str
    concurrency: int
    requests: int


def levels(workloads: Iterable[str], most: int) -> list[Level]:
    """Return the levels of these workloads: 1, 2, 4 users and so on, and at last `most`."""
    found = []
    for workload in workloads:
        limit = min(most, MOST.get(workload, most))
        users = [2**power for power in range(limit.bit_length()) if 2**power < limit] + [limit]
        found += [Level(workload, count, max(8, 4 * count)) for count in users]
    return found


def most_users(endpoint: EndpointPlan, cap: int) -> int:
    """Return how many requests the engine works on at a time, at most `cap`: others would wait for those."""
    name = MOST_OF_ENGINE.get(endpoint.engine, "")
    words = [part for option in endpoint.options for part in option.split("=", 1)]
    found = [int(value) for word, value in pairwise(words) if word == name and value.isdecimal()]
    return max(1, min([cap, *found[-1:]]))


def long_tokens(endpoint: EndpointPlan) -> int:
    """Return the length of a long prompt that leaves room for its answer in the endpoint's context."""
    context = endpoint.smoke.context
    return LONG_TOKENS if context is None else max(256, min(LONG_TOKENS, context - 1024))


def seconds_left(schedule: Iterable[Level], seen: Sequence[Request]) -> float | None:
    """Estimate how long the rest takes, in seconds, from how long requests took so far. None if that is unknown.

    A level that has not begun is taken to be like the last one of its workload, or of any.
    """
    answered = [each for each in seen if not each.error]
    if not answered:
        return None
    left, latest = 0.0, {"": answered[-1].duration}
    for level in schedule:
        own = [each for each in answered if (each.workload, each.concurrency) == (level.workload, level.concurrency)]
        if own:
            latest[level.workload] = sum(each.duration for each in own) / len(own)
        seconds = latest.get(level.workload, latest[""])
        done = sum((each.workload, each.concurrency) == (level.workload, level.concurrency) for each in seen)
        left += max(0, level.concurrency + REPEATS * level.requests - done) * seconds / level.concurrency
    return left
