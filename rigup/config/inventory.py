"""The inventory file: the hosts, how to reach them, and the settings of each.

    status_page: /var/www/html/rigs.html   # optional, see `rigup status --html`
    defaults:            # settings for all hosts
      recipe: vllm-nvfp4-cu130
    hosts:
      rig1: {address: 10.0.0.11, user: ops}
      rig2: {address: 10.0.0.12, user: ops, driver_branch: 610}

A host's own value replaces the default as a whole; values are never merged.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rigup.config.settings import PYINFRA_KEYS, Connection, Settings
from rigup.config.yaml_file import Document, Loc, findings_of, read_document
from rigup.errors import Finding, InputError, RigupError, suggestion

KEYS = ("defaults", "hosts", "status_page")
PAGES = (".html", ".htm")
"""How the name of a page ends."""
CONNECTORS = ("rig", "ssh")
DEFAULT_LAB_STATE = "/var/lib/rigup-lab"


@dataclass(frozen=True)
class Host:
    """One host of the inventory. `written` contains only the settings in the file, without the schema's defaults."""

    name: str
    connection: Connection
    settings: Settings
    written: Mapping[str, Any]

    def data(self) -> dict[str, Any]:
        """Return this host's data for pyinfra, as far as it is written: keys of its ssh connector, and the settings."""
        connection = self.connection.model_dump(exclude_none=True)
        return {PYINFRA_KEYS[key]: value for key, value in connection.items()} | dict(self.written)


@dataclass(frozen=True)
class Inventory:
    """All hosts of an inventory file, in the order of the file. `status_page` is where `rigup status --html` writes."""

    path: Path
    hosts: Mapping[str, Host]
    status_page: Path | None = None

    @property
    def lock(self) -> Path:
        """The path of its lock."""
        return lock_path(self.path)

    def host(self, name: str) -> Host:
        """Return a host. Raises RigupError, with similar names, if there is none of that name."""
        if name not in self.hosts:
            remedy = suggestion(name, self.hosts, f"hosts: {', '.join(self.hosts)}")
            raise RigupError(f"{self.path}: no host is named {name!r}", remedy)
        return self.hosts[name]

    def pyinfra_hosts(self, connector: str = "rig") -> list[tuple[str, dict[str, Any]]]:
        """Return the hosts for pyinfra's inventory, with rigup's connector (`rig`) or pyinfra's own (`ssh`).

        Raises RigupError for another connector.
        """
        if connector not in CONNECTORS:
            raise RigupError(f"RIGUP_CONNECTOR: {connector!r} is not a connector", "use rig or ssh")
        prefix = "@rig/" if connector == "rig" else ""
        shared = {"rigup_lock": str(self.lock), "rigup_inventory": str(self.path)}
        return [(prefix + name, host.data() | shared) for name, host in self.hosts.items()]


def lock_path(inventory: Path) -> Path:
    """Return the path of an inventory file's lock: next to it, the same name with the suffix `.lock`."""
    return inventory.with_suffix(".lock")


def find_inventory(directory: Path) -> Path:
    """Return the inventory file to use: `$RIGUP_INVENTORY`, else `lab.yaml` in `directory`, else the lab's.

    Raises RigupError if there is none.
    """
    if named := os.environ.get("RIGUP_INVENTORY"):
        path = Path(named).expanduser().absolute()
        if not path.is_file():
            raise RigupError(f"{path} is not a file", "name an inventory file with --inventory or RIGUP_INVENTORY")
        return path
    own = directory / "lab.yaml"
    embedded = Path(os.environ.get("RIGUP_LAB_STATE") or DEFAULT_LAB_STATE) / "lab.yaml"
    for path in (own, embedded):
        if path.is_file():
            return path.absolute()
    raise RigupError(
        f"no inventory: {own} does not exist, and no lab is running",
        "change to your project's directory, make one with `rigup init DIR`, or start the lab with `make lab`",
    )


def load_inventory(path: Path | str) -> Inventory:
    """Read and check an inventory file.

    Raises InputError with all findings at once, each with file, line and key.
    """
    document = read_document(Path(path))
    findings: list[Finding] = []
    data = document.data
    if not isinstance(data, dict):
        raise InputError([document.finding((), "contains no keys", "add `hosts:`; see inventory/lab.example.yaml")])
    for key in data:
        if key not in KEYS:
            if str(key) in Settings.model_fields:
                remedy = "move settings for all hosts under `defaults:`"
            else:
                remedy = suggestion(str(key), KEYS, f"known keys: {', '.join(KEYS)}")
            findings.append(document.finding((str(key),), "unknown key", remedy))
    defaults = _mapping(document, ("defaults",), data.get("defaults"), findings)
    entries = _mapping(document, ("hosts",), data.get("hosts"), findings)
    if "hosts" not in data or (not entries and data["hosts"] in (None, {})):
        findings.append(
            document.finding(("hosts",), "lists no host", "for example `hosts: {rig1: {address: 10.0.0.11}}`")
        )
    if "address" in defaults:
        findings.append(
            document.finding(("defaults", "address"), "cannot be the same for all hosts", "set it for each host")
        )
    hosts = {}
    for name, value in entries.items():
        if host := _host(document, str(name), value, defaults, findings):
            hosts[host.name] = host
    _same_address(document, hosts, findings)
    page = data.get("status_page")
    if page is not None and not (isinstance(page, str) and page.endswith(PAGES) and page.isprintable()):
        findings.append(document.finding(("status_page",), "is not the path of a page", "for example status.html"))
    if findings:
        raise InputError(findings)
    return Inventory(document.path.absolute(), hosts, _resolved(document.path, page) if page else None)


def _mapping(document: Document, loc: Loc, value: Any, findings: list[Finding]) -> dict[Any, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        findings.append(document.finding(loc, "must contain keys", "for example `recipe: vllm-nvfp4-cu130`"))
        return {}
    return value


def _host(
    document: Document, name: str, value: Any, defaults: Mapping[str, Any], findings: list[Finding]
) -> Host | None:
    loc: Loc = ("hosts", name)
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62})?", name):
        findings.append(document.finding(loc, "is not a host name", "use letters, digits, dots and -"))
        return None
    own = _mapping(document, loc, value, findings)
    merged = {**defaults, **own}

    def relocate(place: Loc) -> Loc:
        top = place[0] if place else None
        return (*loc, *place) if top is None or top in own or top not in defaults else ("defaults", *place)

    before = len(findings)
    connecting = {key: merged.pop(key) for key in list(merged) if key in Connection.model_fields}
    connection = settings = None
    try:
        connection = Connection.model_validate(connecting)
    except ValidationError as error:
        findings.extend(findings_of(error, Connection, document, relocate))
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        findings.extend(findings_of(error, _AllKeys, document, relocate))
    if connection is None or settings is None or len(findings) > before:
        return None
    paths = {
        key: str(_resolved(document.path, written))
        for key in ("key", "known_hosts")
        if (written := getattr(connection, key)) is not None
    }
    written = {key: value for key, value in settings.model_dump(mode="json").items() if key in merged}
    return Host(name, connection.model_copy(update=paths), settings, written)


class _AllKeys(Connection, Settings):
    """All keys that a host can have, for suggestions; never instantiated."""


def _resolved(inventory: Path, written: str) -> Path:
    """Return a path that the inventory contains; a relative one starts at the inventory's directory."""
    return (inventory.absolute().parent / Path(written).expanduser()).resolve()


def _same_address(document: Document, hosts: Mapping[str, Host], findings: list[Finding]) -> None:
    seen: dict[tuple[str, int | None], str] = {}
    for name, host in hosts.items():
        place = (host.connection.address, host.connection.port)
        if place in seen:
            message = f"is also the address of {seen[place]}"
            findings.append(
                document.finding(("hosts", name, "address"), message, "remove one: the host would be deployed twice")
            )
        seen.setdefault(place, name)
