"""Writing into the host's ledger (see `rigup.ledger`), always before the thing itself is done.

By commands of the shell and no program in a file: the first lines are written while the host has no Python yet.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

from pyinfra.api.command import QuoteString, StringCommand

from rigup import ledger
from rigup.ledger import in_room

__all__ = ["note", "note_directory", "note_file", "note_keys"]


def note(kind: str, names: Sequence[str]) -> StringCommand:
    """The command that writes down `names` of a kind that `rigup.ledger.Ledger` has."""
    return _append({"added": kind, "names": list(names)})


def note_directory(path: str) -> StringCommand:
    """The command that writes down a directory about to be made."""
    return StringCommand("true") if in_room(path) else note("directories", [path])


def note_file(path: str, sha256: str) -> StringCommand:
    """The command that writes down a file about to be written (or removed: `sha256` is empty).

    What others have there is kept first, once. Nothing happens for a file in a directory that is ours as a whole.
    """
    return _about_file(path, {"added": "file", "path": path, "sha256": sha256})


def note_keys(path: str, values: Mapping[str, Any]) -> StringCommand:
    """The command that writes down `values` about to be merged into the JSON file `path`."""
    return _about_file(path, {"added": "keys", "path": path, "values": values})


def _about_file(path: str, entry: Mapping[str, Any]) -> StringCommand:
    if in_room(path):
        return StringCommand("true")
    known, target, keep = QuoteString(f'"path": {json.dumps(path)}'), QuoteString(path), f"{ledger.BEFORE}{path}"
    return StringCommand(
        "( umask 077; grep -qsF --",
        known,
        QuoteString(ledger.LEDGER),
        "|| test ! -e",
        target,
        "|| { mkdir -p --",
        QuoteString(posixpath.dirname(keep)),
        "&& cp -a --",
        target,
        QuoteString(keep),
        "; } ) &&",
        _append(entry),
    )


def _append(entry: Mapping[str, Any]) -> StringCommand:
    room, path = QuoteString(ledger.ROOM), QuoteString(ledger.LEDGER)
    line = QuoteString(json.dumps(entry))
    return StringCommand("( umask 077 && mkdir -p", room, "&& printf '%s\\n'", line, ">>", path, "&& sync", path, ")")
