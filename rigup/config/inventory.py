"""The inventory file: which hosts there are, how they are reached, and what each shall be.

    defaults:            # settings that hold for every host
      recipe: vllm-nvfp4-cu130
    hosts:
      rig1: {address: 10.0.0.11, user: ops}
      rig2: {address: 10.0.0.12, user: ops, driver_branch: 610}

A host's own value replaces the default's as a whole; nothing is merged within a value.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rigup.config.settings import Connection, Settings
from rigup.config.yaml_file import Document, Loc, findings_of, read_document
from rigup.errors import Finding, InputError, RigupError, near, suggestion

__all__ = ["Host", "Inventory", "find_inventory", "load_inventory", "lock_path"]

CONNECTORS = ("rig", "ssh")
DEFAULT_LAB_STATE = "/var/lib/rigup-lab"


@dataclass(frozen=True)
class Host:
    """One host of the inventory. `written` holds only the settings that the file names, no defaults of the schema."""

    name: str
    connection: Connection
    settings: Settings
    written: Mapping[str, Any]

    @property
    def sudo(self) -> bool:
        return self.connection.user != "root" if self.connection.sudo is None else self.connection.sudo

    def data(self) -> dict[str, Any]:
        """This host's data for pyinfra: its ssh connector's keys, and the settings as written."""
        data: dict[str, Any] = {
            "ssh_hostname": self.connection.address,
            "ssh_port": self.connection.port,
            "ssh_user": self.connection.user,
            "_sudo": self.sudo,
        }
        if self.connection.key is not None:
            data["ssh_key"] = self.connection.key
        if self.connection.known_hosts is not None:
            data["ssh_known_hosts_file"] = self.connection.known_hosts
        return data | dict(self.written)


@dataclass(frozen=True)
class Inventory:
    """All hosts of one inventory file, in the file's order."""

    path: Path
    hosts: Mapping[str, Host]

    @property
    def lock(self) -> Path:
        return lock_path(self.path)

    def host(self, name: str) -> Host:
        """Raises RigupError, naming the near ones, where there is no such host."""
        if name not in self.hosts:
            raise RigupError(f"{self.path}: no host is named {name!r}", suggestion(name, self.hosts))
        return self.hosts[name]

    def pyinfra_hosts(self, connector: str = "rig") -> list[tuple[str, dict[str, Any]]]:
        """The hosts as pyinfra's inventory wants them, reached by the `@rig` connector or by pyinfra's own ssh."""
        if connector not in CONNECTORS:
            raise RigupError(f"RIGUP_CONNECTOR: {connector!r} is no connector: use rig or ssh")
        prefix = "@rig/" if connector == "rig" else ""
        shared = {"rigup_lock": str(self.lock), "rigup_inventory": str(self.path)}
        return [(prefix + name, host.data() | shared) for name, host in self.hosts.items()]


def lock_path(inventory: Path) -> Path:
    """The lock that belongs to an inventory file: the same name with the ending `.lock`, beside it."""
    return inventory.with_suffix(".lock")


def find_inventory(directory: Path) -> Path:
    """The inventory file to use: `$RIGUP_INVENTORY`, else `lab.yaml` in `directory`, else the embedded lab's.

    Raises RigupError where there is none.
    """
    if named := os.environ.get("RIGUP_INVENTORY"):
        path = Path(named).expanduser().absolute()
        if not path.is_file():
            raise RigupError(f"RIGUP_INVENTORY: {path} is no file")
        return path
    own = directory / "lab.yaml"
    embedded = Path(os.environ.get("RIGUP_LAB_STATE") or DEFAULT_LAB_STATE) / "lab.yaml"
    for path in (own, embedded):
        if path.is_file():
            return path.absolute()
    raise RigupError(
        "no inventory: there is no inventory/lab.yaml, and no lab is running.\n"
        "Start the lab with `make lab`, or copy inventory/lab.example.yaml to inventory/lab.yaml and name your hosts."
    )


def load_inventory(path: Path | str) -> Inventory:
    """Read and check an inventory file.

    Raises InputError with every finding at once, each with file, line and key.
    """
    document = read_document(Path(path))
    findings: list[Finding] = []
    data = document.data
    if not isinstance(data, dict):
        raise InputError([document.finding((), "holds no keys", "it needs `hosts:`; see inventory/lab.example.yaml")])
    for key in data:
        if key not in ("defaults", "hosts"):
            meant = near(str(key), ("defaults", "hosts"))
            if str(key) in Settings.model_fields:
                remedy = "settings for every host stand under `defaults:`"
            else:
                remedy = f"did you mean {meant[0]}?" if meant else "known keys: defaults, hosts"
            findings.append(document.finding((str(key),), "unknown key", remedy))
    defaults = _mapping(document, ("defaults",), data.get("defaults"), findings)
    entries = _mapping(document, ("hosts",), data.get("hosts"), findings)
    if "hosts" not in data or (not entries and data["hosts"] in (None, {})):
        findings.append(
            document.finding(("hosts",), "names no host", "for example `hosts: {rig1: {address: 10.0.0.11}}`")
        )
    if "address" in defaults:
        findings.append(
            document.finding(("defaults", "address"), "cannot be the same for all hosts", "set it per host")
        )
    hosts = {}
    for name, value in entries.items():
        if host := _host(document, str(name), value, defaults, findings):
            hosts[host.name] = host
    _same_address(document, hosts, findings)
    if findings:
        raise InputError(findings)
    return Inventory(document.path.absolute(), hosts)


def _mapping(document: Document, loc: Loc, value: Any, findings: list[Finding]) -> dict[Any, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        findings.append(document.finding(loc, "must hold keys", "for example `recipe: vllm-nvfp4-cu130`"))
        return {}
    return value


def _host(
    document: Document, name: str, value: Any, defaults: Mapping[str, Any], findings: list[Finding]
) -> Host | None:
    loc: Loc = ("hosts", name)
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62})?", name):
        findings.append(document.finding(loc, "is no host name", "letters, digits, dots and - only"))
        return None
    own = _mapping(document, loc, value, findings)
    merged = {**defaults, **own}

    def relocate(place: Loc) -> Loc:
        top = place[0] if place else None
        return (*loc, *place) if top is None or top in own or top not in defaults else ("defaults", *place)

    before = len(findings)
    ways = {key: merged.pop(key) for key in list(merged) if key in Connection.model_fields}
    connection = settings = None
    try:
        connection = Connection.model_validate(ways)
    except ValidationError as error:
        findings.extend(findings_of(error, Connection, document, relocate))
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        findings.extend(findings_of(error, _AllKeys, document, relocate))
    if connection is None or settings is None or len(findings) > before:
        return None
    paths = {
        key: str(_beside(document.path, written))
        for key in ("key", "known_hosts")
        if (written := getattr(connection, key)) is not None
    }
    written = {key: value for key, value in settings.model_dump(mode="json").items() if key in merged}
    return Host(name, connection.model_copy(update=paths), settings, written)


class _AllKeys(Connection, Settings):
    """Every key that may stand under a host, for suggestions; never instantiated."""


def _beside(inventory: Path, written: str) -> Path:
    """A path as the inventory means it: relative ones count from the file that names them."""
    return (inventory.absolute().parent / Path(written).expanduser()).resolve()


def _same_address(document: Document, hosts: Mapping[str, Host], findings: list[Finding]) -> None:
    seen: dict[tuple[str, int], str] = {}
    for name, host in hosts.items():
        place = (host.connection.address, host.connection.port)
        if place in seen:
            message = f"is the address of {seen[place]} too"
            findings.append(
                document.finding(("hosts", name, "address"), message, "two names for one host would deploy twice")
            )
        seen.setdefault(place, name)
