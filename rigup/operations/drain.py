"""Endpoints about to be stopped: nobody new is let in, and who is being answered is waited for."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Mapping

from pyinfra.api.command import FunctionCommand, QuoteString
from pyinfra.api.host import Host
from pyinfra.api.operation import operation
from pyinfra.context import host

from rigup.operations._host import Clock, duration, run, say, work
from rigup.render.gateway import DRAIN, GATEWAYS

__all__ = [
    "drained",
    "running_requests",
]

Commands = Generator[FunctionCommand, None, None]


@operation()
def drained(endpoints: Mapping[str, str], limit: int) -> Commands:
    """Let no new request in at the gateways, and wait until none runs at any endpoint (name to metrics URL).

    It waits at most `limit` seconds, and says how many run. An endpoint without metrics is named and not waited for.
    Who asks on the host itself passes no gateway, and may go on asking.
    """
    if not endpoints:
        host.noop("there is no endpoint")
        return

    def drain(host: Host) -> None:
        for name in endpoints:
            # HAProxy's reload: what runs ends in the former process, what comes meets the present one.
            reload = ("systemctl kill --kill-whom=main --signal=USR2 --", QuoteString(f"rigup-gateway@{name}.service"))
            if run(host, "sed -i", QuoteString(DRAIN), QuoteString(f"{GATEWAYS}/{name}.cfg"), "&&", *reload).ok:
                say(host, f"the gateway of {name} answers new requests with 503")
        _wait_for_requests(host, endpoints, limit)

    yield work(drain, "wait for requests")


def _wait_for_requests(host: Host, endpoints: Mapping[str, str], limit: int) -> None:
    clock, before, silent = Clock(limit), -1, set[str]()
    while True:
        counts = {name: _requests(host, url) for name, url in endpoints.items()}
        for name in sorted({name for name, count in counts.items() if count is None} - silent):
            silent.add(name)
            say(host, f"{name} does not tell how many requests it answers (SGLang without --enable-metrics): whatever")
            say(host, "runs there is not waited for, and is cut off")
        busy = {name: count for name, count in counts.items() if count}
        total = sum(busy.values())
        if not busy:
            if before > 0:
                say(host, f"all requests have ended after {duration(clock.elapsed_s)}")
            return
        listed = ", ".join(f"{count} at {name}" for name, count in busy.items())
        if clock.is_up:
            say(host, f"{total} requests still run ({listed}) after {clock}: they are cut off")
            return
        if total != before or clock.is_due():
            say(host, f"{total} request{'s run' if total != 1 else ' runs'} ({listed}): waiting, {clock}")
        before = total
        clock.nap()


def _requests(host: Host, url: str) -> int | None:
    """How many requests run or wait; none where nothing answers, None where the answer does not say.

    What is too busy to answer in time (curl's status 28) counts as one.
    """
    answer = run(host, "curl -sS -m 10 --noproxy '*' --", QuoteString(url), "2>/dev/null || test $? -ne 28")
    if not answer.ok:
        return 1
    return running_requests(answer.lines) if answer.lines else 0


# vLLM's v1/metrics/loggers.py and SGLang's metrics_collector.py: one line for each engine or worker.
_GAUGE = re.compile(
    r"(?:vllm:num_requests_(?:running|waiting)|sglang:num_(?:running|queue)_reqs)(?:\{[^}]*\})?\s+([0-9.eE+-]+)"
)


def running_requests(lines: Iterable[str]) -> int | None:
    """Requests that run or wait, from the metrics' text; None where it does not say."""
    counts = [float(match[1]) for line in lines if (match := _GAUGE.match(line))]
    return round(sum(counts)) if counts else None
