"""A dry run in a separate process: pyinfra's command line, with its result printed as JSON.

`rigup.cli.plan` starts `python -m rigup.run.dry_run INVENTORY DEPLOY --dry ...` and describes the JSON. In addition to
what pyinfra's own `--json` prints, it has what each operation reads, the text of files, and the hosts that failed.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

# First: it replaces the standard library's sockets and threads with gevent's, which must precede any use of them.
import pyinfra_cli.main
from pyinfra.api.host import Host
from pyinfra.api.state import State
from pyinfra.context import ctx_state

from rigup.facts.files import FileText
from rigup.operations import files
from rigup.run.foresee import difference, foresee, hidden_because

_ANSI = re.compile(r"\x1b\[[0-9;]*m")

# Facts that only a plan reads must not be read ahead by deploys: the connector remembers no command with a timeout.
NOT_REMEMBERED: dict[str, Any] = {"_timeout": 30}


class Observer:
    """Note what operations read and which files they are about to write, by host and operation."""

    def __init__(self) -> None:
        self._reads: dict[tuple[str, str | None], set[str]] = {}
        self._files: dict[tuple[str, str | None], list[dict[str, Any]]] = {}

    def watch(self) -> None:
        """Start, in this process."""
        get_fact = Host.get_fact

        def watched(host: Host, name_or_cls: Any, *args: Any, **kwargs: Any) -> Any:
            reads = self._reads.setdefault((host.name, host.current_op_hash), set())
            reads.add(f"fact {getattr(name_or_cls, '__name__', name_or_cls)}")
            reads.update(_words((args, {key: value for key, value in kwargs.items() if not key.startswith("_")})))
            return get_fact(host, name_or_cls, *args, **kwargs)

        Host.get_fact = watched  # type: ignore[method-assign, assignment]
        files.show_rewrites(self._rewrite)

    def _rewrite(self, host: Host, rewrite: files.Rewrite) -> None:
        there = rewrite.there
        modes = [rewrite.mode] if there is None or there.mode == rewrite.mode else [there.mode, rewrite.mode]
        hidden, diff = "not shown: it is secret" if rewrite.after is None else hidden_because(*modes), None
        if hidden is None and rewrite.after is not None:
            before = rewrite.before
            if before is None:
                before = "" if there is None else host.get_fact(FileText, path=rewrite.dest, **NOT_REMEMBERED) or ""
            try:
                diff = difference(before, rewrite.after.decode())
            except UnicodeDecodeError:
                hidden = "not shown: it is not text"
        entry = {"path": rewrite.dest, "new": there is None, "mode": modes, "hidden": hidden, "diff": diff}
        self._files.setdefault((host.name, host.current_op_hash), []).append(entry)

    def entries(self, state: State, host: Host) -> list[dict[str, Any]]:
        """Return the host's operations in the form that `foresee` takes."""
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
                    "reads": self._reads.get((host.name, op_hash), set()),
                    "files": self._files.get((host.name, op_hash), []),
                }
            )
        return found


class Errors(logging.Handler):
    """Keep the errors that pyinfra prints, by host."""

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


def result(state: State, observer: Observer, errors: Errors) -> dict[str, Any]:
    """Return the result of the run for each of its hosts."""
    hosts = {}
    for host in state.inventory:
        if not state.is_host_in_limit(host):
            continue
        failed = host in state.failed_hosts
        reached = host in state.activated_hosts
        error = "\n".join(dict.fromkeys(errors.by_host.get(host.name, [])))
        hosts[host.name] = {
            "result": "ok" if not failed and reached else "failed" if reached else "unreachable",
            "error": error or None,
            "entries": foresee(observer.entries(state, host)),
        }
    return {"hosts": hosts}


def main() -> None:
    """Run pyinfra's command line with this process's arguments and exit as it does."""
    # Standard output is for the JSON; anything else that is printed there goes to standard error.
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    observer, errors = Observer(), Errors()
    observer.watch()
    logging.getLogger("pyinfra").addHandler(errors)
    try:
        pyinfra_cli.main.main()
    finally:
        state: State | None = ctx_state.get() if ctx_state.isset() else None  # type: ignore[no-untyped-call]
        if state is not None and state.initialised:
            with output:
                json.dump(result(state, observer, errors), output)


if __name__ == "__main__":
    sys.argv[0] = "pyinfra"
    main()
