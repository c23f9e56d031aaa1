#!/usr/bin/env python3
"""Ends well once an endpoint answers and lists its model, and badly once it cannot any more.

An endpoint's unit runs this as ExecStartPost, so that it is active only while it serves. Loading weights takes minutes
to most of an hour: it says now and then how long it has waited, and for what. The container's end is noticed at once,
and a start that neither logs a line nor fills GPU memory for long enough counts as stalled.

Exit status: 0 it answers, 1 it has ended, has stalled or serves something else, 3 the time is up.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

POLL_S = 1.0
SAY_EVERY_S = 30.0
REQUEST_S = 10.0
# Between two looks at the log and at GPU memory.
LOOK_EVERY_S = 5.0
# GPU memory wavers by a few MiB without anything being loaded.
GROWTH_MIB = 64
# docker run makes the container within moments; on a busy disk it may take longer.
APPEAR_S = 180.0


class Gone(Exception):
    """The endpoint can not become ready any more."""


class NotYet(Exception):
    """The endpoint is not ready; the message says what it answered."""


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    began = spoke = time.monotonic()
    client = int(os.environ.get("MAINPID") or 0)
    container, progress = Container(options.container, client), Progress(client, options.stall)
    answer = "nothing was asked yet"
    print(f"waiting for {options.model} at {options.url}, at most {options.timeout:.0f} s", flush=True)
    while True:
        waited = time.monotonic() - began
        try:
            container.check(waited)
            progress.check()
            ready(options.url, options.health, options.model)
            print(f"ready after {waited:.0f} s: {options.model} at {options.url}", flush=True)
            return 0
        except Gone as error:
            print(f"not ready after {waited:.0f} s: {error}", file=sys.stderr, flush=True)
            return 1
        except NotYet as error:
            answer = str(error)
        if waited >= options.timeout:
            print(f"not ready after {waited:.0f} s, the limit: {answer}", file=sys.stderr, flush=True)
            return 3
        if time.monotonic() - spoke >= SAY_EVERY_S:
            spoke = time.monotonic()
            print(f"waiting for {waited:.0f} of at most {options.timeout:.0f} s: {answer}", flush=True)
        time.sleep(POLL_S)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Wait until an endpoint answers and lists its model.")
    parser.add_argument("--url", required=True, help="the endpoint's base, such as http://127.0.0.1:8000")
    parser.add_argument("--health", default="/health", help="path that answers 200 once the engine is up")
    parser.add_argument("--model", required=True, help="name under which the model must be listed")
    parser.add_argument("--container", required=True, help="name of the container that serves")
    parser.add_argument("--timeout", type=float, required=True, help="seconds until it must be ready")
    parser.add_argument("--stall", type=float, required=True, help="seconds without progress after which it gives up")
    return parser.parse_args(argv)


class Container:
    """The container that serves, and the docker client in front of it (`MAINPID`, 0 when unknown)."""

    def __init__(self, name: str, client: int) -> None:
        self.name = name
        self.client = client
        self.seen = False

    def check(self, waited: float) -> None:
        """Raises Gone when the client or the container has ended, or when no container ever appears."""
        if self.client and not runs(self.client):
            raise Gone("its main process has ended; its own last lines say why")
        command = ["docker", "container", "inspect", "--format", "{{.State.Status}}", self.name]
        answer = subprocess.run(command, capture_output=True, text=True)
        status = answer.stdout.strip()
        if status in ("created", "running", "restarting", "paused"):
            self.seen = True
        elif self.seen or status in ("exited", "dead", "removing"):
            raise Gone(f"the container {self.name} has ended; its own last lines say why")
        elif waited > APPEAR_S:
            raise Gone(f"no container {self.name} came up within {APPEAR_S:.0f} s: {answer.stderr.strip()}")


class Progress:
    """Whether a start gets on: the client (its process id; 0 is unknown, and never stalls) logs, or GPU memory fills.

    A NCCL deadlock has all GPUs at 100 % and does neither; compiling kernels is silent for minutes.
    """

    def __init__(self, client: int, limit: float) -> None:
        self.client = client
        self.limit = limit
        self.moved = self.looked = time.monotonic()
        self.cursor = ""
        self.memory = 0

    def check(self) -> None:
        """Raises Gone when nothing has moved for too long."""
        now = time.monotonic()
        if not self.client or now - self.looked < LOOK_EVERY_S:
            return
        self.looked = now
        cursor, line = last_line(self.client)
        memory = gpu_memory()
        if cursor != self.cursor or abs(memory - self.memory) > GROWTH_MIB:
            self.moved, self.cursor, self.memory = now, cursor, memory
        elif now - self.moved >= self.limit:
            raise Gone(
                f"it has stalled: no log line and no growth of GPU memory ({memory} MiB) for {now - self.moved:.0f} s; "
                f"its last line: {line}"
            )


def last_line(pid: int) -> tuple[str, str]:
    """The journal's cursor behind the last line that the process has logged, and that line."""
    command = ["journalctl", "--quiet", "--no-pager", "--lines=1", "--output=cat", "--show-cursor", f"_PID={pid}"]
    said = subprocess.run(command, capture_output=True, text=True, errors="replace").stdout
    line, _, cursor = said.rpartition("-- cursor: ")
    return cursor.strip(), line.strip() or "none"


def gpu_memory() -> int:
    """MiB in use on all GPUs together; 0 where it cannot be known."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=REQUEST_S).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(int(word) for word in said.split() if word.isdigit())


def runs(pid: int) -> bool:
    """Whether the process is there and more than a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    # The second field is the name in parentheses, and may hold anything.
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def ready(url: str, health: str, model: str) -> None:
    """Raises NotYet until the endpoint is healthy and lists `model`, and Gone when it lists others."""
    get(url.rstrip("/") + health)
    body = get(url.rstrip("/") + "/v1/models")
    try:
        listed = [str(entry["id"]) for entry in json.loads(body)["data"]]
    except (ValueError, KeyError, TypeError) as error:
        raise NotYet(f"/v1/models answered something else than a list of models ({error})") from error
    if not listed:
        raise NotYet("/v1/models lists nothing yet")
    if model not in listed:
        raise Gone(f"it serves {', '.join(listed)}, not {model}")


def get(url: str) -> bytes:
    """The body of a 200; raises NotYet for anything else. Proxies are for elsewhere: an endpoint is on this host."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=REQUEST_S) as response:
            if response.status != 200:
                raise NotYet(f"{url} answered {response.status}")
            body: bytes = response.read()
            return body
    except urllib.error.HTTPError as error:
        raise NotYet(f"{url} answered {error.code}") from error
    except (OSError, http.client.HTTPException) as error:
        raise NotYet(f"{url}: {getattr(error, 'reason', None) or error or type(error).__name__}") from error


if __name__ == "__main__":
    sys.exit(main())
