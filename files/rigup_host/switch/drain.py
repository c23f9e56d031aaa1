"""Take endpoints out of the load balancers before they are stopped, and put them back once they serve again.

A gateway tells load balancers that an endpoint drains as long as a file exists. It admits requests all the same, until
each load balancer has noticed.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from rigup_host import files, paths
from rigup_host.http import MAX_BYTES
from rigup_host.switch.state import load

POLL_S = 0.3
SAY_EVERY_S = 10.0
ANSWER_S = 30.0


def drain(names: Iterable[str]) -> None:
    """Wait until no load balancer sends these endpoints requests, and those that it sent have ended.

    It waits no longer than the host's settings say. A load balancer that does not answer sends none.
    """
    known = load(paths.BALANCERS_CONFIG)
    endpoints = {name: known["endpoints"][name] for name in names if name in known.get("endpoints", {})}
    if not endpoints:
        return
    # HAProxy reads there as its own user.
    paths.DRAINING.mkdir(mode=0o755, parents=True, exist_ok=True)
    paths.DRAINING.chmod(0o755)
    for name in endpoints:
        (paths.DRAINING / name).touch(mode=0o644)
    print(f"draining {', '.join(endpoints)}", flush=True)
    began = spoke = time.monotonic()
    while busy := [word for url in known["urls"] for name in endpoints if (word := _busy(url, endpoints[name]))]:
        waited = time.monotonic() - began
        if waited >= known["timeout_s"]:
            print(f"{'; '.join(busy)} after {waited:.0f} s: they will be aborted", flush=True)
            return
        if time.monotonic() - spoke >= SAY_EVERY_S:
            spoke = time.monotonic()
            print(
                f"waiting for requests, {waited:.0f} s of at most {known['timeout_s']} s: {'; '.join(busy)}", flush=True
            )
        time.sleep(POLL_S)
    print(f"drained after {time.monotonic() - began:.0f} s", flush=True)


def put_back() -> None:
    """Let load balancers send requests to all endpoints of this host."""
    if paths.DRAINING.is_dir():
        for path in paths.DRAINING.iterdir():
            path.unlink()


def _busy(url: str, endpoint: dict[str, str]) -> str:
    """Return what a load balancer still does with an endpoint, "" for nothing."""
    parts = urlsplit(url)
    try:
        # Load balancers tell it to the addresses of their endpoints only.
        source = (endpoint["address"], 0)
        connection = http.client.HTTPConnection(
            str(parts.hostname), parts.port, timeout=ANSWER_S, source_address=source
        )
        try:
            connection.request("GET", parts.path)
            answer: dict[str, Any] = files.from_json(connection.getresponse().read(MAX_BYTES))
        finally:
            connection.close()
        about = answer.get(endpoint["name"], {"up": 0, "running": []})
        up, running = bool(about["up"]), sum(map(int, about["running"]))
    except (OSError, http.client.HTTPException, ValueError, TypeError, KeyError, AttributeError):
        return ""
    if running:
        return f"{parts.hostname} has {running} request{'s' if running != 1 else ''} at {endpoint['name']}"
    return f"{parts.hostname} still sends requests to {endpoint['name']}" if up else ""
