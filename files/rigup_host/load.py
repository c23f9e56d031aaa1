"""Ask each endpoint on this host how it does: its health, and how much it has to do.

`rigup status` runs this in the one round trip in which it reads a host. It prints a JSON object with, by endpoint,
`health` (the HTTP status of its health check, 0 without an answer), `tokens_per_s`, `running` and `waiting` (requests),
`kv_cache` (the used share, from 0 to 1) and `last_start_s`; null for what an engine does not say. It asks engines at
their loopback address, where they need no key.

vLLM counts its tokens, so a vLLM that is busy is asked twice, a second apart. SGLang has a rate of its own, over its
last 40 steps; it has metrics only with --enable-metrics.

Exit status: 0.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from rigup_host import http, paths
from rigup_host.starts import last_start_s
from rigup_host.switch.state import load, read, unit_of

APART_S = 1.0
ANSWER_S = 3.0
# Together, whatever an engine does: the round trip has ten seconds for each command.
WITHIN_S = 7.0

# vllm/v1/metrics/loggers.py (gpu_cache_usage_perc: before 0.10); sglang/srt/observability/metrics_collector.py
RUNNING = ("vllm:num_requests_running", "sglang:num_running_reqs")
WAITING = ("vllm:num_requests_waiting", "sglang:num_queue_reqs")
KV_CACHE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "sglang:token_usage")
TOKENS = "vllm:generation_tokens_total"
RATE = "sglang:gen_throughput"

SAMPLE = re.compile(r"(?P<name>(?:vllm|sglang):\w+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
# SGLang repeats values for each stage of a pipeline, and counts requests again by priority.
REPEATED = re.compile(r'pp_rank="[1-9]|priority="[^"]')

Samples = Mapping[str, list[float]]


def main(argv: list[str]) -> int:
    """Ask all endpoints at the same time and print what they say."""
    argparse.ArgumentParser(prog="rigup-host load", description="Ask each endpoint how it does.").parse_args(argv)
    said: dict[str, dict[str, Any]] = {}
    asking = []
    for record in records():
        said[record["name"]] = answer_of(0)
        # Threads that end with the program: an engine that sends without end keeps nothing waiting.
        asking.append(threading.Thread(target=ask, args=(record, said), daemon=True))
    deadline = time.monotonic() + WITHIN_S
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join(max(0.0, deadline - time.monotonic()))
    print(json.dumps(dict(said)), flush=True)
    return 0


def records() -> Iterable[Mapping[str, Any]]:
    """Yield what is written of each endpoint's generation that is on trial, or else in force."""
    for folder in sorted(paths.ENDPOINTS.glob("*")):
        unit = read(paths.TRIAL_UNITS / unit_of(folder.name)) or read(paths.UNITS / unit_of(folder.name)) or ""
        if found := re.search(r"^Generation=(\w+)$", unit, re.MULTILINE):
            record = load(folder / found[1] / "endpoint.json")
            if record.get("name") == folder.name:
                yield record


def ask(record: Mapping[str, Any], said: dict[str, dict[str, Any]]) -> None:
    """Note in `said` what one endpoint says."""
    name, address = record["name"], str(record["address"])
    base = f"http://{f'[{address}]' if ':' in address else address}:{record['port']}"
    try:
        health = http.get(base + record["ready_path"], ANSWER_S).status
    except http.NoAnswer:
        health = 0
    said[name] = answer_of(health)
    if health == 200:
        said[name] |= of_engine(base)
    else:
        said[name] |= {"last_start_s": last_start_s(name)}


def answer_of(health: int) -> dict[str, Any]:
    """Return an answer in which only the health is known."""
    unknown = ("tokens_per_s", "running", "waiting", "kv_cache", "last_start_s")
    return {"health": health, **dict.fromkeys(unknown)}


def of_engine(base: str) -> dict[str, Any]:
    """Return what the metrics of an engine say; nothing if it has none."""
    try:
        first, at = samples(base), time.monotonic()
    except http.NoAnswer:
        return {}
    running, waiting = total(first, RUNNING), total(first, WAITING)
    shares = [value for name in KV_CACHE for value in first.get(name, ())]
    return {
        "running": None if running is None else int(running),
        "waiting": None if waiting is None else int(waiting),
        # Each replica has a cache of its own: the fullest one is where requests wait first.
        "kv_cache": max(shares, default=None),
        "tokens_per_s": rate(base, first, at, busy=bool(running or waiting)),
    }


def rate(base: str, first: Samples, at: float, busy: bool) -> float | None:
    """Return the tokens per second that an engine generates, from samples taken `at`, and others a second later."""
    before = total(first, [TOKENS])
    own = total(first, [RATE])
    if not busy:
        # SGLang's rate stays at its last value.
        return None if before is None and own is None else 0.0
    if before is None:
        return own
    time.sleep(APART_S)
    try:
        after, later = total(samples(base), [TOKENS]), time.monotonic()
    except http.NoAnswer:
        return None
    # Counters begin anew with the engine.
    return None if after is None or after < before else (after - before) / (later - at)


def total(found: Samples, names: Iterable[str]) -> float | None:
    """Return the sum of all values with these names, or None if there are none."""
    values = [value for name in names for value in found.get(name, ())]
    return sum(values) if values else None


def samples(base: str) -> Samples:
    """Return the values in an engine's metrics by name. Raise NoAnswer if it has none."""
    answer = http.get(f"{base}/metrics", ANSWER_S)
    found: dict[str, list[float]] = defaultdict(list)
    for line in answer.body.decode(errors="replace").splitlines():
        match = SAMPLE.match(line)
        if match is None or REPEATED.search(match["labels"] or ""):
            continue
        try:
            value = float(match["value"])
        except ValueError:
            continue
        if math.isfinite(value):
            found[match["name"]].append(value)
    return found
