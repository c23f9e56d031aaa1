"""Keys of an inventory that are indented one level too little: found, and put where they belong.

YAML reads such a file, with other parents than its author meant: `address` becomes a host. The rest can be checked once
the key is in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from rigup.config.endpoint import Endpoint
from rigup.config.settings import AllKeys
from rigup.config.waiver import Waiver
from rigup.config.yaml_file import Document, Loc
from rigup.errors import Finding

# Keys of a host whose value is names with values, and the keys of each value if it has keys of its own.
_NAMES: Mapping[str, Collection[str]] = {
    "endpoints": Endpoint.model_fields,
    "waivers": Waiver.model_fields,
    "sysctl": (),
    "modprobe_options": (),
    "container_ulimits": (),
}


T = TypeVar("T")


def settled(document: Document, findings: list[Finding]) -> Document:
    """Return an inventory in which every key is where it belongs; add a finding for each that was not."""
    return _Settling(document, findings).document()


def _has_no_address(value: Mapping[str, Any]) -> bool:
    return "address" not in value


class _Settling:
    def __init__(self, document: Document, findings: list[Finding]) -> None:
        self._document, self._findings = document, findings
        self._moves: list[tuple[Loc, Loc]] = []

    def document(self) -> Document:
        data = self._top(dict(self._document.data))
        if isinstance(hosts := data.get("hosts"), dict):
            settings = AllKeys.model_fields
            hosts = self._names(("hosts",), hosts, settings, "the name of a host", is_stray=_has_no_address)
            data["hosts"] = {name: self._host(("hosts", name), host) for name, host in hosts.items()}
        data["defaults"] = self._host(("defaults",), data.get("defaults"))
        return replace(
            self._document,
            data=data,
            lines=self._with_moves(self._document.lines),
            texts=self._with_moves(self._document.texts),
        )

    def _with_moves(self, places: Mapping[Loc, T]) -> Mapping[Loc, T]:
        known = dict(places)
        for old, new in self._moves:
            known |= {(*new, *loc[len(old) :]): value for loc, value in known.items() if loc[: len(old)] == old}
        return known

    def _top(self, data: dict[str, Any]) -> dict[str, Any]:
        """Put hosts at the top level under `hosts`."""
        hosts = data.get("hosts", {})
        if not isinstance(hosts, dict | None):
            return data
        for key in [each for each in data if each not in ("defaults", "hosts", *AllKeys.model_fields)]:
            value = data[key]
            if (
                not key.startswith("x-")
                and isinstance(value, dict)
                and ("address" in value or ("hosts" in data and not hosts))
            ):
                hosts = {**(hosts or {}), key: data.pop(key)}
                self._moved((key,), ("hosts", key), "hosts")
        return data | ({"hosts": hosts} if hosts else {})

    def _names(
        self,
        loc: Loc,
        entries: Mapping[str, Any],
        keys: Collection[str],
        what: str,
        last: str = "",
        is_stray: Callable[[Mapping[str, Any]], bool] = lambda value: False,
    ) -> dict[str, Any]:
        """Put keys that stand among names under the name before them; before the first name, under `last`."""
        settled: dict[str, Any] = {}
        for name, value in entries.items():
            if name not in keys or (isinstance(value, dict) and not is_stray(value)):
                settled[name], last = value, name
            elif last and isinstance(settled.get(last), dict | None):
                settled[last] = {**(settled.get(last) or {}), name: value}
                self._moved((*loc, name), (*loc, last, name), last)
            else:
                remedy = f"write the name and a colon in a line above it, and indent `{name}` by two more spaces"
                self._findings.append(self._document.finding((*loc, name), f"belongs under {what}", remedy))
        return settled

    def _host(self, loc: Loc, host: Any) -> Any:
        """Put keys after a key without a value under that key, and keys of endpoints and waivers under a name."""
        if not isinstance(host, dict):
            return host
        settled: dict[str, Any] = {}
        parent = ""
        for key, value in host.items():
            if parent and key not in AllKeys.model_fields and not key.startswith("x-"):
                settled[parent] = {**(settled[parent] or {}), key: value}
                self._moved((*loc, key), (*loc, parent, key), parent)
                continue
            settled[key] = value
            parent = key if value is None and key in _NAMES else ""
        for key, keys in _NAMES.items():
            if keys and isinstance(entries := settled.get(key), dict):
                first = "main" if key == "endpoints" else ""
                settled[key] = self._names((*loc, key), entries, keys, "the id of a finding", first)
        return settled

    def _moved(self, old: Loc, new: Loc, under: str) -> None:
        self._moves.append((old, new))
        message = "is indented one level too little"
        self._findings.append(self._document.finding(old, message, f"indent it by two more spaces, below `{under}:`"))
