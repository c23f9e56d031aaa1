"""What a deploy sets in Docker's daemon.json. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rigup.config.settings import Settings
from rigup.host_config import LOG_KEYS, log_driver


def daemon_values(settings: Settings) -> dict[str, Any]:
    """Return the keys of /etc/docker/daemon.json that a deploy sets; all others are not changed."""
    values: dict[str, Any] = {
        "runtimes": {"nvidia": {"path": "nvidia-container-runtime", "args": []}},
        "features": {"cdi": True},
        "log-driver": log_driver({}, settings.docker_log_driver),
    }
    if settings.registry_mirror:
        values["registry-mirrors"] = [settings.registry_mirror]
    return values


def kept_keys(settings: Settings) -> dict[str, tuple[str, ...]]:
    """Return the keys of `daemon_values` that stay as they are if the file has one of the keys given for each."""
    # The options of a log driver do not fit another one.
    return {} if settings.docker_log_driver else {"log-driver": LOG_KEYS}


def daemon_keys(written: Mapping[str, Any], settings: Settings) -> set[str]:
    """Return the keys that a daemon.json with `written` has after a deploy."""
    kept = {key for key, others in kept_keys(settings).items() if not written.keys().isdisjoint(others)}
    return {*written, *daemon_values(settings)} - (kept - written.keys())
