"""The commands that measure an endpoint on its host."""

from __future__ import annotations

import json
from collections.abc import Iterable

from rigup.measure.schedule import REPEATS, Level, long_tokens
from rigup.paths import CLIENT, HOST_PROGRAM
from rigup.plan.model import EndpointPlan

REQUEST_SECONDS = 600


def bench_argv(endpoint: EndpointPlan, schedule: Iterable[Level]) -> list[str]:
    """Return the command that measures these levels. It asks the engine itself, which needs no key on its host."""
    gpus = "all" if endpoint.gpus == "all" else ",".join(map(str, endpoint.gpus))
    levels = [[level.workload, level.concurrency, level.requests] for level in schedule]
    return [
        HOST_PROGRAM,
        "bench",
        *_endpoint_arguments(endpoint),
        f"--gpus={gpus}",
        f"--repeats={REPEATS}",
        f"--long-tokens={long_tokens(endpoint)}",
        f"--schedule={json.dumps(levels)}",
    ]


def tool_calls_argv(endpoint: EndpointPlan, times: int) -> list[str]:
    """Return the command that gives the endpoint a task with several tool calls, so many times."""
    return [
        f"{CLIENT}/bin/python",
        "-IB",
        HOST_PROGRAM,
        "tool-calls",
        *_endpoint_arguments(endpoint),
        f"--times={times}",
    ]


def _endpoint_arguments(endpoint: EndpointPlan) -> list[str]:
    return [
        f"--url={endpoint.url}",
        f"--model={endpoint.served_name}",
        f"--thinking={endpoint.smoke.thinking}",
        f"--timeout={REQUEST_SECONDS}",
    ]
