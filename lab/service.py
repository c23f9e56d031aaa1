"""Background processes of the lab: started detached, recorded with process id and start time, stopped by both.

A process id alone is not enough: after a crash of the control machine the record is stale, and the id may belong to
another process.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.errors import LabError
from lab.settings import STATE
from rigup import atomic

KILLED_S = 60.0
"""Seconds that a process may take to end after SIGKILL."""


@dataclass(frozen=True)
class Service:
    """A running background process of the lab."""

    name: str
    url: str
    pid: int
    log: Path


def pid_file(name: str) -> Path:
    """Return the file that records the service's process id and start time."""
    return STATE / "run" / f"{name}.json"


def log_file(name: str) -> Path:
    """Return the file that gets the service's standard output and standard error."""
    return STATE / "log" / f"{name}.log"


def start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None when it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name is in parentheses and may contain spaces: count fields from the last parenthesis (proc(5)).
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def _reap(pid: int) -> None:
    # Only a child of this process can be waited for; init reaps all others.
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _record(name: str) -> dict[str, Any] | None:
    try:
        record = json.loads(pid_file(name).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return record if isinstance(record, dict) and record.get("boot_id") == _boot_id() else None


def running(name: str) -> Service | None:
    """Return the service if the process started under this name still runs, else None."""
    record = _record(name)
    if record is None:
        return None
    _reap(record["pid"])
    started = start_time(record["pid"])
    if started is None or started != record["start_time"]:
        return None
    return Service(name, record["url"], record["pid"], Path(record["log"]))


def tail(name: str, lines: int = 20) -> str:
    """Return the last lines of the service's log; empty without a log."""
    try:
        text = log_file(name).read_text(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def start(
    name: str,
    argv: Sequence[str | Path],
    env: Mapping[str, str] | None = None,
    *,
    url: str = "",
    ready: Callable[[], object] | None = None,
    timeout: float = 60.0,
    cwd: Path | None = None,
) -> Service:
    """Start a command detached from this process, or return the service that already runs under this name.

    `env` is added to this process's environment. `ready` is polled until it returns something true (an OSError means
    not yet), for at most `timeout` seconds. Raises LabError with the end of the log when the process exits or is not
    ready in time, and stops it.
    """
    if (service := running(name)) is not None:
        return service
    log = log_file(name)
    log.parent.mkdir(parents=True, exist_ok=True)
    pid_file(name).parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(word) for word in argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            start_new_session=True,
        )
    record = {
        "pid": process.pid,
        "start_time": start_time(process.pid),
        "boot_id": _boot_id(),
        "url": url,
        "log": str(log),
    }
    atomic.write(pid_file(name), json.dumps(record, indent=1) + "\n", 0o644)
    try:
        _await_ready(name, process, ready, timeout)
    except BaseException:
        stop(name)
        raise
    # The process is meant to outlive this one; without this the interpreter warns about it.
    process.returncode = 0
    return Service(name, url, process.pid, log)


def _await_ready(
    name: str, process: "subprocess.Popen[bytes]", ready: Callable[[], object] | None, timeout: float
) -> None:
    deadline = time.monotonic() + timeout
    while True:
        if (status := process.poll()) is not None:
            raise LabError(f"{name} exited with status {status} before it was ready.{_log_end(name)}")
        if ready is None:
            return
        with contextlib.suppress(OSError):
            if ready():
                return
        if time.monotonic() > deadline:
            raise LabError(f"{name} was not ready after {timeout:.0f} s.{_log_end(name)}")
        time.sleep(0.05)


def _log_end(name: str) -> str:
    return f" Its log, {log_file(name)}, ends:\n{tail(name)}"


def _await_end(pid: int, born: int | None, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while start_time(pid) == born and time.monotonic() < deadline:
        time.sleep(0.02)
    _reap(pid)


def stop(name: str, timeout: float = 10.0) -> bool:
    """Stop the service and its process group: SIGTERM first, SIGKILL after `timeout` seconds.

    Returns whether it was running. Never touches another process that got the same id.
    """
    service = running(name)
    if service is not None:
        born = start_time(service.pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(service.pid, signal.SIGTERM)
        _await_end(service.pid, born, timeout)
        # The group's id stays taken while any of its processes lives, so this never reaches another group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(service.pid, signal.SIGKILL)
        _await_end(service.pid, born, KILLED_S)
    pid_file(name).unlink(missing_ok=True)
    return service is not None
