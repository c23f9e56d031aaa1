"""Writes down what a deploy does, as it happens, and says at the end how it went.

``inventory/lab.py`` calls ``expect()``, so that a run that ends before a deploy file was read is told too.
``deploy.py`` calls ``record()`` first thing, and ``record(plan)`` once a host's plan is known. From then on every
operation is an event in ``.rigup/runs/TIME/events.jsonl`` (``rigup.run.report`` says what they hold); at the end, also
of a
run that failed or was interrupted, ``report.json`` stands beside it and a summary is printed on standard error. Only a
run that did something or failed leaves a trace: a plan (``--dry``) does not.
"""

from __future__ import annotations

import atexit
import json
import logging
import re
import signal
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pyinfra.api.host import Host
from pyinfra.api.state import BaseStateCallback, State
from pyinfra.context import ctx_state

from rigup.operations import _notes
from rigup.run import interrupts, quick, report

if TYPE_CHECKING:
    # It brings much with it, and the host's first answers are on their way by the time that a deploy needs it.
    from rigup.plan.model import Plan

ERROR_LINES = 40
"""Lines of a failed operation's output that the report keeps: the last ones."""

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_SECRET_KEY = re.compile(r"token|password|secret|api_?key", re.IGNORECASE)

_recorder: Recorder | None = None


def expect() -> None:
    """Be ready for a deploy. Called while pyinfra reads its inventory, before it connects.

    Whatever pyinfra is about to do, Ctrl-C then ends it at once. Only a run of deploy files may become a report.
    """
    global _recorder
    quick.at_once()
    state: State = ctx_state.get()  # type: ignore[no-untyped-call]
    context = click.get_current_context(silent=True)
    words = context.params if context is not None else {}
    if words.get("operations") and not words["dry"] and all(each.endswith(".py") for each in words["operations"]):
        _recorder = Recorder(state, report.RUNS)
    else:
        interrupts.watch(state)


def record(*plans: Plan, then: str = "") -> None:
    """Record this run, and these hosts' plans. Called once per host, as deploy files are; the first call begins.

    `then` is what to do after a run that went well, where that is not what it is after a deploy.
    """
    global _recorder
    if _recorder is None:
        _recorder = Recorder(ctx_state.get(), report.RUNS)  # type: ignore[no-untyped-call]
    _recorder.begin(then)
    for plan in plans:
        _recorder.plan(plan)


class Recorder(BaseStateCallback):
    """Turns pyinfra's callbacks into events."""

    def __init__(self, state: State, runs: Path) -> None:
        self._state = state
        self._runs = runs
        self._folder: Path | None = None
        self._secrets: list[str] = []
        self._events: list[dict[str, Any]] = []
        self._began = time.monotonic()
        self._open: dict[tuple[str, str], float] = {}
        self._ended: dict[tuple[str, str], tuple[Host, float]] = {}
        self._planned: set[str] = set()
        self._closed = False
        self._interrupted = False
        self._said = _Said(self._error)
        logging.getLogger("pyinfra").addHandler(self._said)
        atexit.register(self.close)
        interrupts.watch(state, self.interrupted)

    def begin(self, then: str = "") -> None:
        """Note which hosts there are and which of them could not be reached; from here on, every operation. Once."""
        if self._events or not self._state.initialised:
            return
        self._state.add_callback_handler(self)  # type: ignore[no-untyped-call]
        hosts = [host for host in self._state.inventory if self._state.is_host_in_limit(host)]
        self._secrets = sorted(set(_secrets(hosts)), key=len, reverse=True)
        self._note("begin", hosts=[host.name for host in hosts], **({"then": then} if then else {}))
        for host in hosts:
            said = self._said.about(host.name)
            # Of a run that was interrupted while it connected, pyinfra keeps no results.
            if host in self._state.failed_hosts or (said and not host.connected):
                self._note("unreachable", host=host.name, error=said or "the connection could not be made")

    def plan(self, plan: Plan) -> None:
        """Note what a host shall become, for the summary."""
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
                "unit": endpoint.unit,
            }
            for endpoint in plan.endpoints
        ]
        self._note("plan", host=plan.host, ssh=_login(host), sudo=bool(host.data.get("_sudo")), endpoints=endpoints)

    # pyinfra's callbacks

    def operation_host_start(self, state: State, host: Host, op_hash: str) -> None:  # type: ignore[override]
        self._settle()
        if op_hash not in state.ops[host]:
            return
        self._said.forget(host.name)
        self._open[host.name, op_hash] = time.monotonic()
        self._note("start", host=host.name, **self._names(op_hash))
        self._write()

    def operation_host_success(self, state: State, host: Host, op_hash: str, retry_count: int = 0) -> None:  # type: ignore[override]
        self._end(host, op_hash)

    def operation_host_error(  # type: ignore[override]
        self, state: State, host: Host, op_hash: str, retry_count: int = 0, max_retries: int = 0
    ) -> None:
        self._end(host, op_hash)

    def operation_end(self, state: State, op_hash: str) -> None:  # type: ignore[override]
        self._settle()

    def _end(self, host: Host, op_hash: str) -> None:
        began = self._open.pop((host.name, op_hash), time.monotonic())
        self._ended[host.name, op_hash] = (host, time.monotonic() - began)

    def _settle(self) -> None:
        """Note the operations that have ended; pyinfra knows their results only after its callback."""
        if self._interrupted:
            # What fails now fails because the connections are closed under it.
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
                details["error"] = self._said.about(name)
            if meta.retry_attempts:
                details["retries"] = meta.retry_attempts
            self._note("operation", host=name, **self._names(op_hash), **details)

    def _names(self, op_hash: str) -> dict[str, str]:
        name = ", ".join(sorted(self._state.op_meta[op_hash].names))
        step, bar, operation = name.partition(" | ")
        return {"step": step, "operation": operation} if bar else {"step": "deploy", "operation": name}

    # Ends

    def _error(self, message: str) -> None:
        """What pyinfra says when it gives up altogether."""
        self.begin()
        self._note("error", error=message)

    def interrupted(self, number: signal.Signals) -> None:
        """Note that the run ends here; what was under way stays so."""
        self.begin()
        self._settle()
        self._interrupted = True
        self._note("interrupted", signal=number.name)

    def close(self) -> None:
        """Write the report and print the summary, once, where there is something to tell."""
        if self._closed:
            return
        self._closed = True
        self._settle()
        if not self._interrupted:
            # pyinfra gives up in the middle of an operation where a fact cannot be read.
            for (host, op_hash), began in self._open.items():
                details = {"seconds": round(time.monotonic() - began, 3), "error": self._said.about(host)}
                self._note("operation", host=host, **self._names(op_hash), result="failed", **details)
        if all(event["event"] in ("begin", "plan", "unreachable") for event in self._events):
            return
        self._note("end", seconds=round(time.monotonic() - self._began, 3))
        self._write()
        if self._folder is None:
            return
        made = report.build(self._events)
        path = self._folder / "report.json"
        beside = path.with_suffix(".json.new")
        beside.write_text(json.dumps(made, indent=2) + "\n")
        beside.replace(path)
        print(f"\n{report.render(made, path)}", end="", file=sys.stderr, flush=True)

    # Files

    def _note(self, event: str, **details: Any) -> None:
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._events.append({"at": at, "event": event, **self._masked(details)})
        if self._folder is not None:
            self._append([self._events[-1]])

    def _masked(self, value: Any) -> Any:
        """The value without secrets. Before it becomes JSON, which writes a secret's quotes and umlauts otherwise."""
        if isinstance(value, str):
            for secret in self._secrets:
                value = value.replace(secret, "***")
            return value
        if isinstance(value, dict):
            return {key: self._masked(inner) for key, inner in value.items()}
        return [self._masked(inner) for inner in value] if isinstance(value, list) else value

    def _write(self) -> None:
        """Begin the run's files, with all that was noted so far."""
        if self._folder is not None:
            return
        name = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S")
        for suffix in ("", *(f"-{number}" for number in range(2, 100))):
            folder = self._runs / f"{name}{suffix}"
            try:
                folder.mkdir(parents=True, mode=0o700)
            except FileExistsError:
                continue
            self._folder = folder
            self._append(self._events)
            return

    def _append(self, events: Iterable[dict[str, Any]]) -> None:
        assert self._folder is not None
        with (self._folder / "events.jsonl").open("a") as file:
            file.writelines(json.dumps(event) + "\n" for event in events)


class _Said(logging.Handler):
    """Keeps what pyinfra says about each host while an operation runs: where it fails, that is the error."""

    def __init__(self, gave_up: Any) -> None:
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

    def about(self, host: str) -> str:
        return "\n".join(self._lines.get(host, [])[-ERROR_LINES:]).strip()


def _secrets(hosts: Iterable[Host]) -> Iterable[str]:
    for host in hosts:
        for key, value in host.data.dict().items():  # type: ignore[no-untyped-call]
            if isinstance(value, str) and len(value) >= 6 and _SECRET_KEY.search(key):
                yield value


def _login(host: Host) -> list[str]:
    """The command that logs in as the deploy does."""
    data = host.data
    argv = ["ssh"]
    if key := data.get("ssh_key"):
        argv += ["-i", str(key)]
    if known := data.get("ssh_known_hosts_file"):
        argv += ["-o", f"UserKnownHostsFile={known}"]
    if (port := data.get("ssh_port")) and int(port) != 22:
        argv += ["-p", str(port)]
    user = data.get("ssh_user")
    address = data.get("ssh_hostname") or host.name
    return [*argv, f"{user}@{address}" if user else str(address)]
