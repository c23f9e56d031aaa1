"""Write to the host's ledger (see `rigup.ledger`), always before the change itself is made.

With shell commands, without Python: the first lines are written before the host has Python.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.host import Host

from rigup import paths
from rigup.ledger import is_own
from rigup.operations._host import check


def record(host: Host, command: StringCommand) -> None:
    """Run a command of this module. Raises OperationError if the ledger cannot be written."""
    check(host, command, failing=f"could not write the ledger of {host.name}")


def note(kind: str, names: Sequence[str]) -> StringCommand:
    """Return the command that records `names` of a kind that `rigup.ledger.Ledger` has."""
    return _append({"added": kind, "names": list(names)})


def note_directory(path: str) -> StringCommand:
    """Return the command that records a directory about to be created, with those above it that do not exist."""
    if is_own(path):
        return StringCommand("true")
    above = [str(each) for each in reversed(PurePosixPath(path).parents)][1:]
    noted = [
        StringCommand("{ test -d", QuoteString(each), "||", note("directories", [each]), "; } &&") for each in above
    ]
    return StringCommand("(", *noted, note("directories", [path]), ")")


def note_file(path: str, sha256: str) -> StringCommand:
    """Return the command that records a file about to be written, or removed (`sha256` is empty).

    A file of others is backed up first, once. It does nothing for a file in a directory that belongs to rigup.
    """
    return _about_file(path, {"added": "file", "path": path, "sha256": sha256})


def note_keys(path: str, values: Mapping[str, Any]) -> StringCommand:
    """Return the command that records `values` about to be merged into the JSON file `path`."""
    return _about_file(path, {"added": "keys", "path": path, "values": values})


def _about_file(path: str, entry: Mapping[str, Any]) -> StringCommand:
    if is_own(path):
        return StringCommand("true")
    known, target, keep = QuoteString(f'"path": {json.dumps(path)}'), QuoteString(path), f"{paths.BEFORE}{path}"
    return StringCommand(
        "( umask 077; grep -qsF --",
        known,
        QuoteString(paths.LEDGER),
        "|| test ! -e",
        target,
        "|| { mkdir -p --",
        QuoteString(posixpath.dirname(keep)),
        "&& cp -a --",
        target,
        QuoteString(keep),
        "&& sync",
        QuoteString(keep),
        "; } ) &&",
        _append(entry),
    )


def _append(entry: Mapping[str, Any]) -> StringCommand:
    """Return the command that adds a line, in place of a last one that was cut off: its change was not made."""
    directory, path = QuoteString(paths.STATE), QuoteString(paths.LEDGER)
    line = QuoteString(json.dumps(entry))
    return StringCommand(
        StringCommand("( umask 077 && mkdir -p", directory, "&& { test ! -e", path, "|| tail -c 1", path),
        StringCommand("| grep -qa '^$' || truncate -s \"-$(tail -n 1", path, '| wc -c)"', path, "; }"),
        StringCommand("&& printf '%s\\n'", line, ">>", path, "&& sync", path, ")"),
    )
