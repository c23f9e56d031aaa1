"""Preflight's checks of what a host's owner has configured for Docker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rigup.host_config import DAEMON_JSON
from rigup.plan.docker import daemon_keys
from rigup.preflight.snapshot import HostCheck
from rigup.text import from_json

# What both drivers that write files understand (docs.docker.com/engine/logging/drivers).
BOTH_LIMIT = frozenset({"local", "json-file"})
LIMITS = frozenset({"max-size", "max-file", "compress"})
# The only key that dockerd merges with its flag (daemon/config/config.go, skipDuplicates).
MERGED = frozenset({"runtimes"})
CDI_BY_HAND = "/etc/cdi/nvidia.yaml"


def cdi(host: HostCheck) -> None:
    """Warn about a handmade CDI file: the toolkit's own is in /run, recreated at each boot, and takes precedence."""
    if CDI_BY_HAND in host.facts.software.foreign:
        host.problem(
            "docker-cdi-file",
            f"{CDI_BY_HAND} is a handmade list of GPUs: after a driver change it names files that no longer exist",
            "remove it: the toolkit writes its own at every boot",
        )


def daemon_json(host: HostCheck) -> None:
    """Check that keys can be merged into Docker's daemon.json."""
    text, reason = (host.facts.software.daemon_json or "").strip() or "{}", ""
    try:
        if isinstance(written := from_json(text), dict):
            _log_driver(host, written)
            return
    except ValueError as error:
        reason = f": {error}"
    host.problem(
        "docker-json",
        f"{DAEMON_JSON} is not a JSON object{reason}",
        "fix the file or move it away: the deploy merges its keys into it",
    )


def flags(host: HostCheck) -> None:
    """Check that no flag of Docker's unit sets what daemon.json sets too: dockerd starts with neither then."""
    try:
        written = from_json((host.facts.software.daemon_json or "").strip() or "{}")
    except ValueError:
        return
    if not isinstance(written, dict):
        return
    keys = daemon_keys(written, host.settings) - MERGED
    if twice := sorted(keys & host.facts.software.dockerd_flags.keys()):
        values = ", ".join(f"{key} ({host.facts.software.dockerd_flags[key]})" for key in twice)
        host.problem(
            "docker-flags",
            f"Docker's unit has flags for {values}, which {DAEMON_JSON} sets too, or will after this deploy: dockerd "
            "refuses to start with both",
            "remove these flags from ExecStart (`systemctl cat docker` shows the file); the deploy writes what it "
            f"needs to {DAEMON_JSON}, move the rest there",
        )


def _log_driver(host: HostCheck, written: Mapping[str, Any]) -> None:
    """Check that the log driver of the settings understands the options in daemon.json: Docker refuses unknown ones."""
    chosen, present = host.settings.docker_log_driver, str(written.get("log-driver", "json-file"))
    options = written.get("log-opts")
    if not options or not isinstance(options, dict) or chosen in (None, present):
        return
    if {chosen, present} <= BOTH_LIMIT and LIMITS.issuperset(options):
        return
    host.problem(
        "docker-log-options",
        f"{DAEMON_JSON} has options of the log driver {present} ({', '.join(sorted(options))}), and the settings "
        f"choose {chosen} (`docker_log_driver`)",
        "remove `docker_log_driver` from the settings to keep that driver, or `log-opts` from the file",
    )
