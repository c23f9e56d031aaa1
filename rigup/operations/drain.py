"""Drain endpoints before they are stopped: refuse new requests, and wait for the running ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from pyinfra.api.command import QuoteString
from pyinfra.api.host import Host
from pyinfra.api.operation import operation
from pyinfra.context import host

from rigup.operations._host import Commands, run, work
from rigup.operations._wait import Clock, say, wait_until
from rigup.paths import GATEWAYS, gateway_unit
from rigup.render.gateway import DRAIN
from rigup.text import duration


@operation()
def drained(endpoints: Mapping[str, str], limit: int) -> Commands:
    """Refuse new requests at the gateways, and wait until none runs at any endpoint (name to metrics URL).

    It waits at most `limit` seconds, and logs how many run. An endpoint without metrics is reported and not waited
    for. Clients on the host itself do not use the gateway, so they can still send requests.
    """
    if not endpoints:
        host.noop("no endpoint is deployed")
        return

    def drain(host: Host) -> None:
        for name in endpoints:
            # HAProxy's reload: running requests end in the old process, new ones reach the new process.
            reload = ("systemctl kill --kill-whom=main --signal=USR2 --", QuoteString(gateway_unit(name)))
            if run(host, "sed -i", QuoteString(DRAIN), QuoteString(f"{GATEWAYS}/{name}.cfg"), "&&", *reload).ok:
                say(host, f"the gateway of {name} answers new requests with 503")
        _wait_for_requests(host, endpoints, limit)

    yield work(drain, "wait for requests")


def _wait_for_requests(host: Host, endpoints: Mapping[str, str], limit: int) -> None:
    clock, before, silent = Clock(limit), -1, set[str]()
    counted = ""

    def poll() -> bool | None:
        nonlocal before, counted
        counts = {name: _requests(host, url) for name, url in endpoints.items()}
        for name in sorted({name for name, count in counts.items() if count is None} - silent):
            silent.add(name)
            say(host, f"{name} does not report its running requests (SGLang needs --enable-metrics): not waiting for")
            say(host, "them; they will be aborted")
        busy = {name: count for name, count in counts.items() if count}
        if not busy:
            return before > 0
        total = sum(busy.values())
        listed = ", ".join(f"{count} at {name}" for name, count in busy.items())
        counted = f"{total} request{'s' if total != 1 else ''} ({listed})"
        if total != before:
            say(host, f"waiting for {counted}: {clock}")
        before = total
        return None

    waited = wait_until(host, clock, poll, lambda: f"waiting for {counted}: {clock}")
    if waited is None:
        say(host, f"{counted} still running after {clock}: they will be aborted")
    elif waited:
        say(host, f"all requests have ended after {duration(clock.elapsed_s)}")


def _requests(host: Host, url: str) -> int | None:
    """Return how many requests run or wait: 0 if nothing answers, None if the answer does not say.

    An endpoint that is too busy to answer in time (curl's status 28) counts as one.
    """
    result = run(host, "curl -q -sS -m 10 --noproxy '*' --", QuoteString(url), "2>/dev/null || test $? -ne 28")
    if not result.ok:
        return 1
    return running_requests(result.lines) if result.lines else 0


# vLLM's v1/metrics/loggers.py and SGLang's metrics_collector.py: one line for each engine or worker.
_GAUGE = re.compile(
    r"(?:vllm:num_requests_(?:running|waiting)|sglang:num_(?:running|queue)_reqs)(?:\{[^}]*\})?\s+([0-9.eE+-]+)"
)


def running_requests(lines: Iterable[str]) -> int | None:
    """Return how many requests run or wait, from the text of the metrics; None if it does not say."""
    counts = [float(match[1]) for line in lines if (match := _GAUGE.match(line))]
    return round(sum(counts)) if counts else None
