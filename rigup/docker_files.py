"""What Docker's and containerd's own configuration files say, as others may have written them. Pure."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass

__all__ = ["CONTAINERD_TOML", "DAEMON_JSON", "USUAL_STORE", "DockerStore", "daemon_variables", "docker_store"]

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
