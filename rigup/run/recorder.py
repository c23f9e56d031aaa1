"""Record what a run does, as it happens, and print a summary at the end.

``inventory/lab.py`` calls ``prepare()``, so that a run that ends before its deploy file is read is reported too.
``deploy.py`` calls ``start_recording()`` first, and ``record_plan(plan)`` once a host's plan is known. From then on,
every operation is an event in ``.rigup/runs/TIME/events.jsonl`` (``rigup.run.report`` describes them). At the end, also
of a run that failed or was interrupted, ``report.json`` is written next to it and a summary is printed to stderr.
A run that did nothing leaves no files, and neither does a dry run.
"""

from __future__ import annotations

import atexit
import logging
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pyinfra.api.host import Host
from pyinfra.api.state import BaseStateCallback, State
from pyinfra.context import ctx_state

from rigup import commands
from rigup.config.inventory import Inventory
from rigup.errors import RigupError
from rigup.operations import _notes
from rigup.run import interrupts, report, summary
from rigup.run.console import make_printable
from rigup.run.event_log import EventLog
from rigup.run.speed_up import speed_up
from rigup.ssh import pyinfra_ssh  # noqa: F401 - commands of both connectors run in the fixed environment
from rigup.ssh.login import login_of_data
from rigup.text import printable

if TYPE_CHECKING:
    # Its imports take long, and the host's first results are on their way by the time that a deploy needs it.
    from rigup.plan.model import Plan

ERROR_LINES = 40
"""The last lines of a failed operation's output that the report keeps."""

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_SECRET_KEY = re.compile(r"token|password|secret|api_?key", re.IGNORECASE)

GROUP = "lab"
"""pyinfra's name of all hosts, from `inventory/lab.py`."""

_recorder: Recorder | None = None


def prepare(inventory: Inventory) -> None:
    """Prepare for a run. Called while pyinfra reads its inventory, before it connects.

    Whatever pyinfra is about to do, Ctrl-C then ends it at once. Only runs of deploy files are reported. Exits if
    `--limit` or `--exclude` matches no host: pyinfra would warn, and deploy to no host, or to the one to exclude.
    """
    global _recorder
    speed_up()
    make_printable()
    state: State = ctx_state.get()  # type: ignore[no-untyped-call]
    context = click.get_current_context(silent=True)
    words = context.params if context is not None else {}
    for option in ("limit", "exclude"):
        for pattern in words.get(option) or ():
            _refuse_unknown(inventory, option, pattern)
    if words.get("operations") and not words["dry"] and all(each.endswith(".py") for each in words["operations"]):
        _recorder = Recorder(state, report.RUNS)
    else:
        interrupts.watch()


def _refuse_unknown(inventory: Inventory, option: str, pattern: str) -> None:
    """Exit with similar names if a pattern is neither the group of all hosts nor matches a host."""
    if pattern == GROUP or any(fnmatch(name, pattern) for name in inventory.hosts):
        return
    try:
        inventory.host(pattern)
    except RigupError as error:
        raise SystemExit(f"--> --{option}: {error}") from None


def _verify(hosts: Sequence[str]) -> str:
    return f"`{commands.rigup('audit', *hosts)}` verifies the hosts."


def start_recording(then: Callable[[Sequence[str]], str] = _verify) -> None:
    """Start to record this run, unless it is a dry run. Called once per host, as deploy files are; the first call wins.

    `then` returns what to do after a successful run; it is called with the hosts that the run is limited to, if it is.
    """
    global _recorder
    # click's context is not known in the greenlets that run deploy files.
    if "--dry" in sys.argv:
        return
    if _recorder is None:
        _recorder = Recorder(ctx_state.get(), report.RUNS)  # type: ignore[no-untyped-call]
    _recorder.begin(then)


def record_plan(plan: Plan) -> None:
    """Record what a host should become, for the summary."""
    if _recorder is not None:
        _recorder.plan(plan)


class Recorder(BaseStateCallback):
    """Turn pyinfra's callbacks into events."""

    def __init__(self, state: State, runs: Path) -> None:
        self._state = state
        self._log = EventLog(runs)
        self._began = time.monotonic()
        self._open: dict[tuple[str, str], float] = {}
        self._ended: dict[tuple[str, str], tuple[Host, float]] = {}
        self._planned: set[str] = set()
        self._is_closed = False
        self._is_interrupted = False
        self._output = _Output(self._note_error)
        logging.getLogger("pyinfra").addHandler(self._output)
        atexit.register(self.close)
        interrupts.watch(self._note_interruption)

    def begin(self, then: Callable[[Sequence[str]], str] = _verify) -> None:
        """Record all hosts and which of them are unreachable, and from here on every operation. Once."""
        if self._log.events or not self._state.initialised:
            return
        self._state.add_callback_handler(self)  # type: ignore[no-untyped-call]
        hosts = [host for host in self._state.inventory if self._state.is_host_in_limit(host)]
        self._log.hide(_secrets(hosts))
        names = [host.name for host in hosts]
        limit = names if len(names) < len(list(self._state.inventory)) else []
        self._log.add("begin", hosts=names, inventory=commands.inventory(), then=then(limit))
        for host in hosts:
            error = self._output.of(host.name)
            # pyinfra keeps no results of a run that was interrupted while it connected.
            if host in self._state.failed_hosts or (error and not host.connected):
                self._log.add("unreachable", host=host.name, error=error or "the connection could not be made")

    def plan(self, plan: Plan) -> None:
        """Record what a host should become, once."""
        if plan.host in self._planned:
            return
        self._planned.add(plan.host)
        host = self._state.inventory.get_host(plan.host)
        endpoints = [
            {
                "name": endpoint.name,
                "url": endpoint.url,
                "public_url": endpoint.public_url,
                "recipe": endpoint.recipe,
                "model": endpoint.served_name,
                "image": endpoint.image,
                "image_tag": endpoint.image_tag,
                "packages": list(endpoint.venv.packages) if endpoint.venv else [],
                "repo": endpoint.checkpoint.repo,
                "revision": endpoint.checkpoint.revision,
                "drafter": endpoint.drafter.source if endpoint.drafter else None,
                "unit": endpoint.unit,
            }
            for endpoint in plan.endpoints
        ]
        self._log.add(
            "plan",
            host=plan.host,
            ssh=list(login_of_data(host.name, host.data).command),
            sudo=bool(host.data.get("_sudo")),
            endpoints=endpoints,
        )

    # pyinfra's callbacks

    def operation_host_start(self, state: State, host: Host, op_hash: str) -> None:  # type: ignore[override]
        self._note_results()
        if op_hash not in state.ops[host]:
            return
        self._output.forget(host.name)
        self._open[host.name, op_hash] = time.monotonic()
        self._log.add("start", host=host.name, **self._names(op_hash))
        self._log.write()

    def operation_host_success(self, state: State, host: Host, op_hash: str, retry_count: int = 0) -> None:  # type: ignore[override]
        self._end(host, op_hash)

    def operation_host_error(  # type: ignore[override]
        self, state: State, host: Host, op_hash: str, retry_count: int = 0, max_retries: int = 0
    ) -> None:
        self._end(host, op_hash)

    def operation_end(self, state: State, op_hash: str) -> None:  # type: ignore[override]
        self._note_results()

    def _end(self, host: Host, op_hash: str) -> None:
        began = self._open.pop((host.name, op_hash), time.monotonic())
        self._ended[host.name, op_hash] = (host, time.monotonic() - began)

    def _note_results(self) -> None:
        """Record the operations that have ended; pyinfra knows their results only after its callback."""
        if self._is_interrupted:
            # What fails from now on fails because its connection is closed.
            return
        for (name, op_hash), (host, seconds) in list(self._ended.items()):
            data = self._state.ops[host][op_hash]
            meta = data.operation_meta
            if not meta.is_complete():
                continue
            del self._ended[name, op_hash]
            details: dict[str, Any] = {"seconds": round(seconds, 3), **_notes.taken(name)}
            if meta.did_succeed():
                details["result"] = "changed" if meta.did_change() else "unchanged"
            else:
                details["result"] = "ignored" if data.global_arguments["_ignore_errors"] else "failed"
                details["error"] = self._output.of(name)
            if meta.retry_attempts:
                details["retries"] = meta.retry_attempts
            self._log.add("operation", host=name, **self._names(op_hash), **details)

    def _names(self, op_hash: str) -> dict[str, str]:
        name = ", ".join(sorted(self._state.op_meta[op_hash].names))
        step, bar, operation = name.partition(" | ")
        return {"step": step, "operation": operation} if bar else {"step": "deploy", "operation": name}

    # The end

    def _note_error(self, message: str) -> None:
        """Record why pyinfra ends the run for all hosts."""
        self.begin()
        self._log.add("error", error=message)

    def _note_interruption(self, number: signal.Signals) -> None:
        """Record that the run ends here; operations without a result are still running."""
        self.begin()
        self._note_results()
        self._is_interrupted = True
        self._log.add("interrupted", signal=number.name)

    def close(self) -> None:
        """Write the report and print the summary, once, unless nothing happened."""
        if self._is_closed:
            return
        self._is_closed = True
        self._note_results()
        if not self._is_interrupted:
            # If a fact cannot be read, pyinfra ends in the middle of an operation.
            for (host, op_hash), began in self._open.items():
                details = {"seconds": round(time.monotonic() - began, 3), "error": self._output.of(host)}
                self._log.add("operation", host=host, **self._names(op_hash), result="failed", **details)
        if all(event["event"] in ("begin", "plan", "unreachable") for event in self._log.events):
            return
        self._log.add("end", seconds=round(time.monotonic() - self._began, 3))
        self._log.write()
        built = report.build(self._log.events)
        path = self._log.write_report(built)
        print(printable(f"\n{summary.render(built, path)}"), end="", file=sys.stderr, flush=True)


class _Output(logging.Handler):
    """Keep what pyinfra prints about each host while an operation runs: if it fails, that is the error."""

    def __init__(self, gave_up: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._gave_up = gave_up
        self._lines: dict[str, list[str]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        message = _ANSI.sub("", record.getMessage())
        if message.startswith("--> "):
            self._gave_up(message.removeprefix("--> "))
            return
        match = re.match(r"\s*\[([^\]]+)\]\s*(nested\s+)?(.*)", message, re.DOTALL)
        if match and not match[3].startswith("Error: executed "):
            self._lines.setdefault(match[1], []).append(match[3])

    def forget(self, host: str) -> None:
        self._lines.pop(host, None)

    def of(self, host: str) -> str:
        return "\n".join(self._lines.get(host, [])[-ERROR_LINES:]).strip()


def _secrets(hosts: Iterable[Host]) -> Iterable[str]:
    for host in hosts:
        for key, value in host.data.dict().items():  # type: ignore[no-untyped-call]
            if isinstance(value, str) and len(value) >= 6 and _SECRET_KEY.search(key):
                yield value
