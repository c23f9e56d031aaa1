"""How much an endpoint has to do, from what engines say at `/metrics`."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["running_requests"]

# vLLM's v1/metrics/loggers.py and SGLang's metrics_collector.py: one line for each engine or worker.
_GAUGE = re.compile(
    r"(?:vllm:num_requests_(?:running|waiting)|sglang:num_(?:running|queue)_reqs)(?:\{[^}]*\})?\s+([0-9.eE+-]+)"
)


def running_requests(lines: Iterable[str]) -> int | None:
    """Requests that run or wait, from the metrics' text; None where it does not say."""
    counts = [float(match[1]) for line in lines if (match := _GAUGE.match(line))]
    return round(sum(counts)) if counts else None
