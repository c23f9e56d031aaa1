"""What deploys add to a host: the directories that belong to rigup, and the host's ledger of everything else.

Everything that an operation adds outside these directories is recorded in the ledger on the host before it is added, as
one JSON object per line, so that a rebuild finds it wherever the deploy was interrupted. `rigup.operations._ledger`
writes the lines.

An operation that adds a new kind of thing outside `OWN_DIRECTORIES` needs a kind here and a step in `tasks/rebuild.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from rigup import paths
from rigup.paths import engine_unit, pull_unit
from rigup.text import from_json

OWN_DIRECTORIES = (
    paths.CONFIG,
    paths.LIBRARY,
    paths.CACHES,
    paths.UV_CACHE,
    paths.FETCH_HOME,
    paths.RUNTIME,
    paths.FETCH_RUNTIME,
    paths.ENGINES_RUNTIME,
    paths.DRAINING,
    paths.STATE,
)
"""Directories that belong to rigup, with everything in them."""

ACCOUNTS = {
    "docker-ce": ("group", "docker"),
    "haproxy": ("user", "haproxy"),
    "nvidia-persistenced": ("user", "nvidia-persistenced"),
}
"""Accounts that packages create, and leave when they are purged, as Debian's policy requires."""

LEFTOVERS = {"haproxy": "/var/lib/haproxy"}
"""Directories that purged packages leave with something in them."""

UNITS = (paths.SYSTEM_UNITS, paths.UNITS)
"""Directories with units of ours and of others."""

EMPTIED = (
    paths.UNITS,
    paths.UNITS.rpartition("/")[0],
    "/opt/containerd/bin",
    "/opt/containerd/lib",
    "/opt/containerd",
    "/var/lib/dkms",
)
"""Directories that purged packages leave; they are removed if they are empty."""


@dataclass(frozen=True)
class Ledger:
    """What was added. `files` has the SHA-256 of everything that was ever written to a path, or "" for a removal.

    `keys` are values merged into JSON files of others, `removed` packages that a deploy has replaced. `unreadable` has
    the lines that are not entries, each with its number.
    """

    files: Mapping[str, frozenset[str]] = field(default_factory=dict)
    directories: tuple[str, ...] = ()
    keys: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    engines: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    checkpoints: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return it for pyinfra's `fact` command."""
        return {**vars(self), "files": {path: sorted(sums) for path, sums in self.files.items()}}

    @property
    def units(self) -> list[str]:
        """The names of the units whose files were written; a template is a pattern of its instances."""
        written = [path for path, sums in self.files.items() if sums != {""}]
        names = {path.rpartition("/")[2] for path in written if path.rpartition("/")[0] in UNITS}
        return sorted(name.replace("@.", "@*.") for name in names)

    @property
    def commands(self) -> list[str]:
        """The names of the units in which commands of a deploy run, which have no file."""
        fetching = [*map(pull_unit, self.images), *map(engine_unit, self.engines)]
        return [paths.APT_UNIT, paths.SWITCH_UNIT, *fetching]


LISTS = {each.name for each in fields(Ledger)} - {"files", "keys", "unreadable"}
"""The kinds of entries that name things."""


def parse(lines: Iterable[str]) -> Ledger:
    """Parse the ledger. A last line that is not an entry was cut off, and is skipped: its change was not made."""
    files: dict[str, set[str]] = {}
    keys: dict[str, dict[str, Any]] = {}
    lists: dict[str, dict[str, None]] = {}
    unreadable: list[str] = []
    written = list(lines)
    for number, line in enumerate(written, start=1):
        entry = _entry(line)
        if entry is None:
            if number < len(written):
                unreadable.append(f"line {number}: {line[:160]!a}")
        elif entry["added"] == "file":
            files.setdefault(entry["path"], set()).add(entry["sha256"])
        elif entry["added"] == "keys":
            keys[entry["path"]] = merge(keys.get(entry["path"], {}), entry["values"])
        else:
            # A replaced package that came with a deploy did not belong to others.
            ours = lists.get("packages", {}) if entry["added"] == "removed" else {}
            known = lists.setdefault(entry["added"], {})
            known.update(dict.fromkeys(name for name in entry["names"] if name not in ours))
    return Ledger(
        {path: frozenset(sums) for path, sums in files.items()},
        keys=keys,
        unreadable=tuple(unreadable),
        **{kind: tuple(names) for kind, names in lists.items()},
    )


def _entry(line: str) -> dict[str, Any] | None:
    """Return the entry in a line; None if the line is not one that `rigup.operations._ledger` writes."""
    try:
        entry = from_json(line)
    except ValueError:
        return None
    if not isinstance(entry, dict):
        return None
    match entry:
        case {"added": "file", "path": str(), "sha256": str()} | {"added": "keys", "path": str(), "values": dict()}:
            return entry
        case {"added": str(kind), "names": [*names]} if kind in LISTS and all(isinstance(name, str) for name in names):
            return entry
    return None


def is_own(path: str) -> bool:
    """Return whether a path is in a directory that belongs to rigup."""
    return any(path == own or path.startswith(f"{own}/") for own in OWN_DIRECTORIES)


def backup_of(dest: str) -> str:
    """Return the path of the backup from before the last change of `dest`."""
    return f"{dest}.rigup-backup"


@dataclass(frozen=True)
class Unmerged:
    """A JSON object without our keys, and those keys that stay because others have changed them since."""

    values: dict[str, Any]
    kept: tuple[str, ...] = ()


def merge(present: Mapping[str, Any], ours: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return `present` with our keys merged into it.

    Objects are merged, missing list entries are put in front, other values are replaced; the order and all other keys
    are kept. Raises ValueError if one of our objects or lists would replace another type.
    """
    merged = dict(present)
    for key, value in ours.items():
        there = merged.get(key)
        for kind, name in ((Mapping, "an object"), (list, "a list")):
            if isinstance(value, kind) and there is not None and not isinstance(there, kind):
                raise ValueError(f"`{path}{key}` is {json.dumps(there)}, but must be {name}")
        if isinstance(value, Mapping):
            merged[key] = merge(there or {}, value, f"{path}{key}.")
        elif isinstance(value, list):
            merged[key] = [each for each in value if each not in (there or [])] + (there or [])
        else:
            merged[key] = value
    return merged


def added(ours: Mapping[str, Any], present: Mapping[str, Any]) -> dict[str, Any]:
    """Return our keys without the list entries that `present` already has, because they belong to others."""
    new = dict(ours)
    for key, value in ours.items():
        there = present.get(key)
        if isinstance(value, Mapping) and isinstance(there, Mapping):
            new[key] = added(value, there)
        elif isinstance(value, list) and isinstance(there, list):
            new[key] = [each for each in value if each not in there]
    return new


def unmerge(present: Mapping[str, Any], ours: Mapping[str, Any], before: Mapping[str, Any], path: str = "") -> Unmerged:
    """Return `present` with each of our values restored to its value `before`, or removed if it had none.

    Our entries are removed from lists, and the others stay.
    """
    values, kept = dict(present), list[str]()
    for key, value in ours.items():
        if key not in present:
            continue
        there, was = present[key], before.get(key)
        if isinstance(value, Mapping) and isinstance(there, Mapping):
            inner = unmerge(there, value, was if isinstance(was, Mapping) else {}, f"{path}{key}.")
            values[key] = inner.values
            kept += inner.kept
            if not inner.values and key not in before:
                del values[key]
        elif isinstance(value, list) and isinstance(there, list):
            values[key] = [each for each in there if each not in value]
            if values[key] != (was or []):
                kept.append(f"{path}{key}")
            elif key not in before:
                del values[key]
        elif there != value:
            kept.append(f"{path}{key}")
        elif key in before:
            values[key] = was
        else:
            del values[key]
    return Unmerged(values, tuple(kept))
