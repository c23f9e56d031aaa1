"""Wait until an endpoint answers and lists its model; fail as soon as that can no longer happen.

An endpoint's unit runs this as ExecStartPost, so that it is active only while it serves. Loading weights takes minutes,
sometimes most of an hour: every 30 s a line says how long it has been waiting, and for what. Three things end the wait
early: the container ends; the log has a line after which no start succeeds; the start stalls, with no new line, no
change of GPU memory and nothing read from disk.

What answers must be a process of the endpoint's own unit or container. Its socket is recorded for the gateway, which
lets no other one have requests.

Exit status: 0 it is ready, 1 it has ended, has stalled or serves another model, 3 it timed out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from rigup_host import files, http, listener

POLL_S = 1.0
SAY_EVERY_S = 30.0
REQUEST_S = 10.0
# `docker run` usually creates the container within a second; a busy disk may delay it.
APPEAR_S = 180.0
LOOK_S = 5.0
# After a fatal line most engines end on their own, and their last lines say more.
FATAL_GRACE_S = 5.0
# GPUs that wait for each other are fully busy without progress. Tuning kernels takes less time than this.
DEADLOCK_S = 300.0
BUSY_PERCENT = 99
CURSOR = "-- cursor: "


class Gone(Exception):
    """The endpoint can no longer become ready."""


class NotYet(Exception):
    """The endpoint is not ready yet; the message says what it answered."""


def main(argv: list[str]) -> int:
    """Wait; return the exit status."""
    options = parse(argv)
    began = spoke = time.monotonic()
    container = Container(options.container, int(os.environ.get("MAINPID") or 0))
    progress = Progress(options, container)
    answer = "no request sent yet"
    print(f"waiting up to {options.timeout:.0f} s for {options.model} at {options.url}", flush=True)
    while True:
        waited = time.monotonic() - began
        try:
            container.check(waited)
            sockets = listener.listening(options.url)
            ready(options.url, options.health, options.model)
            container.check_listener(options.url, sockets)
            if options.listener:
                files.write(options.listener, "".join(f"{uid} {inode}\n" for inode, uid in sockets.items()))
            print(f"ready after {waited:.0f} s: {options.model} at {options.url}", flush=True)
            return 0
        except (Gone, listener.NoGroup) as error:
            print(f"not ready after {waited:.0f} s: {error}", file=sys.stderr, flush=True)
            return 1
        except NotYet as error:
            answer = str(error)
        try:
            progress.check(waited)
        except Gone as error:
            print(f"not ready after {waited:.0f} s: {error}", file=sys.stderr, flush=True)
            return 1
        if waited >= options.timeout:
            print(f"not ready after {waited:.0f} s, the time limit: {answer}", file=sys.stderr, flush=True)
            return 3
        if time.monotonic() - spoke >= SAY_EVERY_S:
            spoke = time.monotonic()
            print(f"waited {waited:.0f} of at most {options.timeout:.0f} s: {answer}", flush=True)
        time.sleep(POLL_S)


def parse(argv: list[str]) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(
        prog="rigup-host wait-ready", description="Wait until an endpoint answers and lists its model."
    )
    parser.add_argument("--url", required=True, help="the endpoint's base URL, such as http://127.0.0.1:8000")
    parser.add_argument("--health", default="/health", help="path that answers 200 once the engine is up")
    parser.add_argument("--model", required=True, help="name that must be in the list of models")
    parser.add_argument("--container", default="", help="name of the container, if it runs in one")
    parser.add_argument("--log", default="docker", help="syslog identifier of the server in the journal")
    parser.add_argument("--timeout", type=float, required=True, help="seconds to wait")
    parser.add_argument("--stall", type=float, default=900, help="seconds without progress after which to fail")
    parser.add_argument("--gpus", default="all", help="its GPUs by number or UUID, separated by commas; or `all`")
    parser.add_argument("--listener", type=Path, help="file to record the engine's socket in, as `USER INODE`")
    parser.add_argument("--fatal", type=Path, help="JSON file with log lines after which no start succeeds")
    return parser.parse_args(argv)


class Container:
    """The container that serves, and its attached docker client (`MAINPID`, 0 when unknown).

    Without a name there is no container: the main process is the server.
    """

    def __init__(self, name: str, client: int) -> None:
        self.name = name
        self.client = client
        self.seen = False
        self.pid = 0
        self.group = ""

    def check(self, waited: float) -> None:
        """Raise Gone if the client or the container has ended, or no container has appeared.

        Raise NoGroup if its processes cannot be told from those of others.
        """
        if self.client and not runs(self.client):
            raise Gone("its main process has ended; its last log lines say why")
        if self.name:
            self._inspect(waited)
        else:
            self.pid = self.client
        # Not as late as when it answers: that takes minutes.
        with suppress(OSError):
            self.group = listener.group_of(self.pid) if self.pid else ""

    def check_listener(self, url: str, sockets: Mapping[int, int]) -> None:
        """Raise NotYet unless these sockets, and no others, listen at `url`, and are this container's."""
        own = bool(self.group and sockets) and listener.are_held_in(self.group, sockets)
        if not own or listener.listening(url) != sockets:
            raise NotYet(f"what answers at {url} is not a process of this endpoint: `ss -tlnp` shows it")

    def _inspect(self, waited: float) -> None:
        command = ["docker", "container", "inspect", "--format", "{{.State.Status}} {{.State.Pid}}", self.name]
        answer = subprocess.run(command, capture_output=True, text=True)
        status, _, pid = answer.stdout.strip().partition(" ")
        self.pid = int(pid or 0)
        if status in ("created", "running", "restarting", "paused"):
            self.seen = True
        elif self.seen or status in ("exited", "dead", "removing"):
            raise Gone(f"the container {self.name} has ended; its last log lines say why")
        elif waited > APPEAR_S:
            raise Gone(f"no container {self.name} appeared within {APPEAR_S:.0f} s: {answer.stderr.strip()}")


class Progress:
    """Signs that a start makes progress, and signs that it will not succeed."""

    def __init__(self, options: argparse.Namespace, container: Container) -> None:
        known = json.loads(options.fatal.read_text()) if options.fatal else []
        self.fatal = [(re.compile(each["log"]), each) for each in known]
        self.stall_s = options.stall
        self.look_s = min(LOOK_S, self.stall_s / 3)
        self.gpus = None if options.gpus == "all" else set(options.gpus.split(","))
        self.container = container
        self.log = Log(os.environ.get("INVOCATION_ID", ""), options.log)
        self.looked = self.moved = 0.0
        self.signs: object = None
        self.doomed: tuple[float, str] | None = None

    def check(self, waited: float) -> None:
        """Raise Gone if the start can no longer succeed. Looks every few seconds only."""
        if waited - self.looked < self.look_s and self.looked:
            return
        self.looked = waited
        lines = self.log.news()
        used, busy = self.memory()
        signs = (used, bytes_read(self.container.pid))
        if lines or signs != self.signs:
            self.signs, self.moved = signs, waited
        for line in lines:
            for expression, known in self.fatal:
                if self.doomed is None and expression.search(line):
                    self.doomed = waited, f"{known['meaning']} ({known['id']}); the log says: {line.strip()[:300]}"
        if self.doomed and waited - self.doomed[0] >= FATAL_GRACE_S:
            raise Gone(self.doomed[1])
        silent = waited - self.moved
        if silent >= self.stall_s or (busy and silent >= DEADLOCK_S):
            state = f"{silent:.0f} s without progress, GPU memory in MiB: {used or 'unknown'}"
            raise Gone(f"the start has stalled: {state}; last log line: {self.log.last.strip()[:300] or 'none'}")

    def memory(self) -> tuple[list[int], bool]:
        """Return the MiB in use on each of its GPUs, and whether all of them are fully busy."""
        command = ["nvidia-smi", "--query-gpu=index,uuid,memory.used,utilization.gpu", "--format=csv,noheader,nounits"]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            return [], False
        rows = [[cell.strip() for cell in line.split(",")] for line in answer.stdout.splitlines()]
        ours = [row for row in rows if len(row) == 4 and (self.gpus is None or self.gpus & {row[0], row[1]})]
        numbers = [(int(row[2]), int(row[3])) for row in ours if row[2].isdigit() and row[3].isdigit()]
        return [used for used, _ in numbers], bool(numbers) and all(busy >= BUSY_PERCENT for _, busy in numbers)


class Log:
    """The lines that the engine has written since its start."""

    def __init__(self, invocation: str, name: str) -> None:
        self.invocation = invocation
        self.name = name
        self.cursor = ""
        self.last = ""

    def news(self) -> list[str]:
        """Return the lines since the last call."""
        if not self.invocation:
            return []
        # The identifier selects the server, or the docker client that passes its output on: this program logs to the
        # same unit.
        command = ["journalctl", "--quiet", "--no-pager", "--output=cat", "--show-cursor"]
        command += [f"--after-cursor={self.cursor}"] if self.cursor else []
        command += [f"_SYSTEMD_INVOCATION_ID={self.invocation}", f"SYSLOG_IDENTIFIER={self.name}"]
        answer = subprocess.run(command, capture_output=True, text=True, errors="replace")
        lines = answer.stdout.splitlines()
        if lines and lines[-1].startswith(CURSOR):
            self.cursor = lines.pop().removeprefix(CURSOR)
        lines = [line for line in lines if line.strip()]
        self.last = lines[-1] if lines else self.last
        return lines


def bytes_read(pid: int) -> int:
    """Return the bytes that the control group of a process has read from disk; 0 if that is unknown."""
    try:
        group = Path(f"/proc/{pid}/cgroup").read_text().strip().rpartition("::")[2]
        found = re.findall(r"rbytes=(\d+)", Path(f"/sys/fs/cgroup{group}/io.stat").read_text())
    except OSError:
        return 0
    return sum(map(int, found))


def runs(pid: int) -> bool:
    """Return whether the process exists and is not a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    # The second field is the name in parentheses, and may hold anything.
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def ready(url: str, health: str, model: str) -> None:
    """Raise NotYet until the endpoint is healthy and lists `model`, and Gone where it lists only others."""
    get(url.rstrip("/") + health)
    body = get(url.rstrip("/") + "/v1/models")
    try:
        listed = [str(entry["id"]) for entry in files.from_json(body)["data"]]
    except (ValueError, KeyError, TypeError) as error:
        raise NotYet(f"/v1/models did not answer with a list of models ({error})") from error
    if not listed:
        raise NotYet("/v1/models lists no model yet")
    if model not in listed:
        raise Gone(f"it serves {', '.join(listed)}, not {model}")


def get(url: str) -> bytes:
    """Return the body of the answer to a GET. Raise NotYet unless its status is 200."""
    try:
        answer = http.get(url, REQUEST_S)
    except http.NoAnswer as error:
        raise NotYet(str(error)) from error
    if answer.status != 200:
        raise NotYet(f"{url} answered {answer.status}")
    return answer.body
