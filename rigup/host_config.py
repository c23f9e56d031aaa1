"""By which proxies a host reaches servers: apt, Docker and all other programs have their own word in it. Pure."""

from __future__ import annotations

import ipaddress
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

__all__ = [
    "CONTAINERD_TOML",
    "DAEMON_JSON",
    "NO_PROXIES",
    "USUAL_STORE",
    "DockerStore",
    "Proxies",
    "apt_variables",
    "daemon_variables",
    "docker_store",
    "place",
    "proxy_for",
    "variables",
]

VARIABLE = re.compile(r"(?:Environment=)?(?:export\s+)?[\"']?(https?_proxy|no_proxy)=[\"']?([^\"'\s]*)", re.IGNORECASE)
OPTION = re.compile(r'Acquire::(https?)::Proxy(?:::(\S+))? "([^"]*)";', re.IGNORECASE)


@dataclass(frozen=True)
class Proxies:
    """The variables `http_proxy`, `https_proxy` and `no_proxy`, as far as they are set.

    `environment` has those of /etc/environment, which units of ours read too; `apt` what apt makes of its own
    configuration and of them; `docker` those of Docker's unit or of its daemon.json.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    apt: Mapping[str, str] = field(default_factory=dict)
    docker: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For pyinfra's `fact` command."""
        return dict(vars(self))


NO_PROXIES = Proxies()


def place(url: str) -> tuple[str, int]:
    """The host and the port that a URL names."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def variables(lines: Iterable[str]) -> dict[str, str]:
    """Those for proxies among assignments as in /etc/environment or a unit's `Environment=`, in lower case."""
    found = (match for line in lines if not line.lstrip().startswith("#") for match in VARIABLE.finditer(line))
    return {match[1].lower(): match[2] for match in found if match[2]}


def apt_variables(lines: Iterable[str], environment: Mapping[str, str]) -> dict[str, str]:
    """What `apt-config dump Acquire` says, in variables: https goes by http's option where it has none of its own.

    An option for one server counts where it says DIRECT. Without an option apt goes by the environment.
    """
    options: dict[str, str] = {}
    direct: list[str] = []
    for match in filter(None, map(OPTION.match, lines)):
        scheme, server, value = match.groups()
        if server is None:
            options[scheme.lower()] = value
        elif value.upper() == "DIRECT":
            direct.append(server)
    found = dict(environment)
    for scheme, value in (("http", options.get("http")), ("https", options.get("https") or options.get("http"))):
        if value and value.upper() == "DIRECT":
            found.pop(f"{scheme}_proxy", None)
        elif value:
            found[f"{scheme}_proxy"] = value
    if direct:
        found["no_proxy"] = ",".join(filter(None, (found.get("no_proxy"), *direct)))
    return found


def proxy_for(url: str, names: Mapping[str, str]) -> str | None:
    """The proxy that these variables name for a URL; None where the server itself is asked."""
    host, _ = place(url)
    proxy = names.get(f"{urlsplit(url).scheme}_proxy")
    passed_by = any(_covers(entry.strip(), host) for entry in names.get("no_proxy", "").split(","))
    return None if passed_by else proxy


def _covers(entry: str, host: str) -> bool:
    """Whether an entry of `no_proxy` (a name with all below it, an address, a network, or `*`) is about a host."""
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        name = entry.lstrip("*").lstrip(".").partition(":")[0]
        return entry == "*" or (bool(name) and (host == name or host.endswith(f".{name}")))


DAEMON_JSON = "/etc/docker/daemon.json"


CONTAINERD_TOML = "/etc/containerd/config.toml"


@dataclass(frozen=True)
class DockerStore:
    """Where Docker keeps what it pulls: in `containerd`'s directory if it is a new one, or in its own (`data`)."""

    data: str = "/var/lib/docker"
    containerd: str = "/var/lib/containerd"
    snapshotter: bool | None = None


USUAL_STORE = DockerStore()


def docker_store(daemon: str | None, containerd: str | None) -> DockerStore:
    """As daemon.json (`data-root`) and containerd's config.toml (`root`) say; those that cannot be read say nothing."""
    try:
        told = json.loads(daemon or "{}")
        data, features = told.get("data-root"), told.get("features") or {}
        snapshotter = features.get("containerd-snapshotter")
    except (ValueError, AttributeError):
        data = snapshotter = None
    try:
        root = tomllib.loads(containerd or "").get("root")
    except tomllib.TOMLDecodeError:
        root = None
    return DockerStore(str(data or DockerStore.data), str(root or DockerStore.containerd), snapshotter)


def daemon_variables(text: str | None) -> dict[str, str]:
    """The proxies in daemon.json, by the names that variables have; none where it cannot be read."""
    try:
        told = json.loads(text or "{}")["proxies"]
        return {name.replace("-", "_"): str(value) for name, value in told.items() if value}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
