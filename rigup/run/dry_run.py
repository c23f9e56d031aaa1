"""A dry run in a process of its own: pyinfra's command line, with what it finds written to standard output as JSON.

`python -m rigup.run.dry_run INVENTORY DEPLOY --dry ...` is started by `rigup.cli.plan`, which says what the JSON
holds. Beside
what pyinfra's own `--json` tells, it holds what each operation looked at, the text of files, and hosts that failed.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

# First: it makes the standard library's sockets and threads gevent's, which must come before anybody uses them.
import pyinfra_cli.main  # type: ignore[import-untyped]
from pyinfra.api.host import Host
from pyinfra.api.state import State
from pyinfra.context import ctx_state

from rigup.facts.files import FileText
from rigup.operations import files
from rigup.run import recorder
from rigup.run.foresee import difference, foresee, hidden_because

_ANSI = re.compile(r"\x1b\[[0-9;]*m")

# Facts that only a plan asks for must not be among those that a deploy asks for ahead of time: the connector learns no
# command that has a time limit.
UNLEARNT: dict[str, Any] = {"_timeout": 30}


class Observer:
    """Notes what operations look at and which files they are about to write, by host and operation."""

    def __init__(self) -> None:
        self._looks_at: dict[tuple[str, str | None], set[str]] = {}
        self._files: dict[tuple[str, str | None], list[dict[str, Any]]] = {}

    def watch(self) -> None:
        """Begin: from now on, in this process."""
        get_fact = Host.get_fact

        def watched(host: Host, name_or_cls: Any, *args: Any, **kwargs: Any) -> Any:
            seen = self._looks_at.setdefault((host.name, host.current_op_hash), set())
            seen.add(f"fact {getattr(name_or_cls, '__name__', name_or_cls)}")
            seen.update(_words((args, {key: value for key, value in kwargs.items() if not key.startswith("_")})))
            return get_fact(host, name_or_cls, *args, **kwargs)

        Host.get_fact = watched  # type: ignore[method-assign, assignment]
        files.show_rewrites(self._rewrite)

    def _rewrite(self, host: Host, rewrite: files.Rewrite) -> None:
        there = rewrite.there
        modes = [rewrite.mode] if there is None or there.mode == rewrite.mode else [there.mode, rewrite.mode]
        hidden, diff = "not shown, as it is secret" if rewrite.after is None else hidden_because(*modes), None
        if hidden is None and rewrite.after is not None:
            before = rewrite.before
            if before is None:
                before = "" if there is None else host.get_fact(FileText, path=rewrite.dest, **UNLEARNT) or ""
            try:
                diff = difference(before, rewrite.after.decode())
            except UnicodeDecodeError:
                hidden = "not shown, as it is no text"
        entry = {"path": rewrite.dest, "new": there is None, "mode": modes, "hidden": hidden, "diff": diff}
        self._files.setdefault((host.name, host.current_op_hash), []).append(entry)

    def entries(self, state: State, host: Host) -> list[dict[str, Any]]:
        """The host's operations as `planning.foresee` takes them."""
        found = []
        for op_hash in state.get_op_order():  # type: ignore[no-untyped-call]
            if op_hash not in state.ops[host]:
                continue
            data = state.ops[host][op_hash]
            name = ", ".join(sorted(state.op_meta[op_hash].names))
            step, bar, operation = name.partition(" | ")
            found.append(
                {
                    "step": step if bar else "deploy",
                    "operation": operation if bar else name,
                    "change": bool(data.operation_meta._maybe_is_change),
                    "conditional": bool(data.global_arguments["_if"]),
                    "looks_at": self._looks_at.get((host.name, op_hash), set()),
                    "files": self._files.get((host.name, op_hash), []),
                }
            )
        return found


class Complaints(logging.Handler):
    """Keeps what pyinfra complains about, by host."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.by_host: dict[str, list[str]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        match = re.match(r"\s*\[([^\]]+)\]\s*(.*)", _ANSI.sub("", record.getMessage()), re.DOTALL)
        if match:
            self.by_host.setdefault(match[1], []).append(match[2])


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _words(list(value.values()))
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from _words(item)


def found(state: State, observer: Observer, complaints: Complaints) -> dict[str, Any]:
    """What the run came to, for each host that it was to look at."""
    hosts = {}
    for host in state.inventory:
        if not state.is_host_in_limit(host):
            continue
        failed = host in state.failed_hosts
        reached = host in state.activated_hosts
        error = "\n".join(dict.fromkeys(complaints.by_host.get(host.name, [])))
        hosts[host.name] = {
            "result": "ok" if not failed and reached else "failed" if reached else "unreachable",
            "error": error or None,
            "entries": foresee(observer.entries(state, host)),
        }
    return {"hosts": hosts}


def main() -> None:
    """Run pyinfra's command line with this process's arguments and exit as it does."""
    # Standard output is the JSON's; whatever else is printed there goes where pyinfra talks.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    observer, complaints = Observer(), Complaints()
    observer.watch()
    logging.getLogger("pyinfra").addHandler(complaints)
    # A plan leaves no report behind.
    recorder.record = lambda *plans, then="": None
    try:
        pyinfra_cli.main.main()
    finally:
        state: State | None = ctx_state.get() if ctx_state.isset() else None  # type: ignore[no-untyped-call]
        if state is not None and state.initialised:
            with answer:
                json.dump(found(state, observer, complaints), answer)


if __name__ == "__main__":
    sys.argv[0] = "pyinfra"
    main()
