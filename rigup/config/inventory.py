"""The inventory file: the hosts, how to reach them, and the settings of each.

    status_page: /var/www/html/rigs.html   # optional, see `rigup status --html`
    defaults:            # settings for all hosts
      recipe: vllm-nvfp4-cu130
    hosts:
      rig1: {address: 10.0.0.11, user: ops}
      rig2: {address: 10.0.0.12, user: ops, driver_branch: 610}
    load_balancer:       # optional: one address for the endpoints of all hosts
      hosts: [rig1]
      allowed_networks: [10.0.0.0/24]

A host's own value replaces the default as a whole; values are never merged. Keys that begin with `x-` are ignored, at
the top and in hosts and defaults: they are for YAML's anchors.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rigup.config.indentation import settled
from rigup.config.load_balancer import LoadBalancer
from rigup.config.mistakes import findings_of
from rigup.config.settings import PYINFRA_KEYS, AllKeys, Connection, Settings
from rigup.config.yaml_file import Document, Loc, read_document
from rigup.errors import Finding, InputError, RigupError, suggestion

KEYS = ("defaults", "hosts", "load_balancer", "status_page")
PAGES = (".html", ".htm")
"""How the name of a page ends."""
CONNECTORS = ("rig", "ssh")
DEFAULT_LAB_STATE = "/var/lib/rigup-lab"
IGNORED = "x-"
"""How keys begin that nothing reads."""


@dataclass(frozen=True)
class Host:
    """One host of the inventory.

    `written` contains only the settings in the file, without the schema's defaults. `places` has the file and line of
    each key of the connection, such as `lab.yaml:7`.
    """

    name: str
    connection: Connection
    settings: Settings
    written: Mapping[str, Any]
    places: Mapping[str, str] = field(default_factory=dict)

    def data(self) -> dict[str, Any]:
        """Return this host's data for pyinfra, as far as it is written: keys of its ssh connector, and the settings."""
        connection = self.connection.model_dump(exclude_none=True)
        ours = {"rigup_places": dict(self.places)} if self.places else {}
        return {PYINFRA_KEYS[key]: value for key, value in connection.items()} | dict(self.written) | ours


@dataclass(frozen=True)
class Inventory:
    """All hosts of an inventory file, in the order of the file. `status_page` is where `rigup status --html` writes."""

    path: Path
    hosts: Mapping[str, Host]
    document: Document = field(repr=False, compare=False)
    status_page: Path | None = None
    load_balancer: LoadBalancer | None = None

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

    def finding(self, host: str, loc: Loc, message: str, remedy: str) -> Finding:
        """Return a finding about a setting of a host, at the line where it or its default is written."""
        own: Loc = ("hosts", host, *loc)
        written = own if own[:3] in self.document.lines else ("defaults", *loc)
        return self.document.finding(written if written[:2] in self.document.lines else own, message, remedy)

    def pyinfra_hosts(self, connector: str = "rig") -> list[tuple[str, dict[str, Any]]]:
        """Return the hosts for pyinfra's inventory, with rigup's connector (`rig`) or pyinfra's own (`ssh`).

        Raises RigupError for another connector.
        """
        if connector not in CONNECTORS:
            raise RigupError(f"RIGUP_CONNECTOR: {connector!r} is not a connector", "use rig or ssh")
        prefix = "@rig/" if connector == "rig" else ""
        shared: dict[str, Any] = {"rigup_lock": str(self.lock), "rigup_inventory": str(self.path)}
        if self.load_balancer:
            shared["rigup_load_balancer"] = self.load_balancer.model_dump(mode="json")
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
    findings: list[Finding] = []
    document = read_document(Path(path), findings)
    unreadable = {(finding.line, finding.key) for finding in findings}
    if not isinstance(document.data, dict):
        wrong = document.finding((), "contains no keys", "add `hosts:`; see inventory/lab.example.yaml")
        raise InputError([*findings, wrong])
    document = settled(document, findings)
    known = len(findings)
    data = document.data
    for key in data:
        if key not in KEYS and not key.startswith(IGNORED):
            findings.append(document.finding((key,), "unknown key", _remedy_at_top(key, data[key])))
    defaults = _keys(document, ("defaults",), data.get("defaults"), "recipe: vllm-nvfp4-cu130", findings) or {}
    entries = _keys(document, ("hosts",), data.get("hosts"), "rig1: {address: 10.0.0.11}", findings)
    # A host in another place, or `hosts` with another name, was found above.
    if entries == {} and not findings:
        findings.append(
            document.finding(("hosts",), "lists no host", "for example `hosts: {rig1: {address: 10.0.0.11}}`")
        )
    if "address" in defaults:
        findings.append(
            document.finding(("defaults", "address"), "cannot be the same for all hosts", "set it for each host")
        )
    hosts = {}
    for name, value in (entries or {}).items():
        if host := _host(document, name, value, defaults, findings):
            hosts[host.name] = host
    _same_address(document, hosts, findings)
    balancer = _load_balancer(document, data.get("load_balancer"), hosts, findings)
    page = data.get("status_page")
    if page is not None and not (isinstance(page, str) and page.endswith(PAGES) and page.isprintable()):
        findings.append(document.finding(("status_page",), "is not the path of a page", "for example status.html"))
    # What cannot be read is not also wrong.
    findings[known:] = [each for each in findings[known:] if (each.line, each.key) not in unreadable]
    if findings:
        raise InputError(findings)
    page_path = _resolved(document.path, page) if page else None
    return Inventory(document.path.absolute(), hosts, document, page_path, balancer)


def _remedy_at_top(key: str, value: Any) -> str:
    if key in Settings.model_fields:
        return "move settings for all hosts under `defaults:`"
    if key in Connection.model_fields:
        return "move it under a host, or under `defaults:` for all hosts"
    if isinstance(value, dict) and "hosts" in value:
        return "an inventory of Ansible looks like this; see inventory/lab.example.yaml for one of rigup"
    return suggestion(key, KEYS, f"known keys: {', '.join(KEYS)}")


def _keys(document: Document, loc: Loc, value: Any, example: str, findings: list[Finding]) -> dict[str, Any] | None:
    """Return a mapping without its `x-` keys, {} for no value; anything else is a finding, and None."""
    if value is None:
        return {}
    if isinstance(value, dict):
        is_hosts = loc == ("hosts",)
        return {key: each for key, each in value.items() if is_hosts or not key.startswith(IGNORED)}
    remedy = f"for example `{example}`"
    if isinstance(value, list):
        remedy = f"write it without `- `, {remedy}"
    elif isinstance(value, str) and (match := re.match(r"([a-z_]+)(:| *= *)(\S+)", value)):
        remedy = f"write `{match[1]}: {match[3]}`, with a space after the colon"
    findings.append(document.finding(loc, "must contain keys", remedy))
    return None


def _host(
    document: Document, name: str, value: Any, defaults: Mapping[str, Any], findings: list[Finding]
) -> Host | None:
    loc: Loc = ("hosts", name)
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62})?", name):
        findings.append(document.finding(loc, "is not a host name", "use letters, digits, dots and -"))
        return None
    own = _keys(document, loc, value, "address: 10.0.0.11", findings)
    if own is None:
        return None
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
        findings.extend(findings_of(error, Connection, document, connecting, relocate))
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        findings.extend(findings_of(error, AllKeys, document, merged, relocate))
    if connection is None or settings is None or len(findings) > before:
        return None
    paths = {
        key: str(_resolved(document.path, written))
        for key in ("key", "known_hosts")
        if (written := getattr(connection, key)) is not None
    }
    written = {key: value for key, value in settings.model_dump(mode="json").items() if key in merged}
    places = {key: f"{document.path}:{document.line(relocate((key,)))}" for key in connecting}
    return Host(name, connection.model_copy(update=paths), settings, written, places)


def _load_balancer(
    document: Document, value: Any, hosts: Mapping[str, Host], findings: list[Finding]
) -> LoadBalancer | None:
    loc: Loc = ("load_balancer",)
    if value is None and loc not in document.lines:
        return None
    written = _keys(document, loc, value, "hosts: [rig1]", findings)
    if written is None:
        return None
    try:
        found = LoadBalancer.model_validate(written)
    except ValidationError as error:
        findings.extend(findings_of(error, LoadBalancer, document, written, lambda place: (*loc, *place)))
        return None
    for at, name in enumerate(found.hosts):
        # A host that cannot be read was found above.
        if name not in hosts and ("hosts", name) not in document.lines:
            remedy = suggestion(name, hosts, f"hosts: {', '.join(hosts)}")
            findings.append(document.finding((*loc, "hosts", at), f"no host is named {name!r}", remedy))
        elif name in hosts:
            settings = hosts[name].settings
            taken = {each.port: f"its endpoint {name}" for name, each in settings.endpoints.items()}
            taken |= {settings.peer_port: "its peers' daemon"} if settings.peers else {}
            if found.port in taken:
                message = f"is also the port of {name} for {taken[found.port]}"
                findings.append(document.finding((*loc, "port"), message, "choose another"))
    if hosts and not any(each.is_public for host in hosts.values() for each in host.settings.endpoints.values()):
        message = "no endpoint can be reached from other hosts"
        remedy = "set listen and allowed_networks of the endpoints; the load balancer sends requests to their gateways"
        findings.append(document.finding(loc, message, remedy))
    return found


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
