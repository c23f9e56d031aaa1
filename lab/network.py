"""The lab's network: one bridge with the control machine's address, one network namespace per host, no way out.

A host's namespace has its address and nothing else: no default route, so what it can reach is the bridge.
"""

import contextlib
import json
import subprocess
from pathlib import Path
from typing import Any

from lab.settings import BRIDGE, GATEWAY, PREFIX_LENGTH, SUBNET, host_address, link, namespace

_NAMESPACES = Path("/run/netns")


class NetworkError(Exception):
    """The network could not be made; the message says which command failed and why."""


def _ip(*argv: str) -> str:
    done = subprocess.run(["ip", *argv], capture_output=True, text=True)
    if done.returncode:
        raise NetworkError(f"`ip {' '.join(argv)}` failed: {done.stderr.strip() or done.returncode}")
    return done.stdout


def _link_exists(name: str) -> bool:
    return any(found["ifname"] == name for found in json.loads(_ip("-json", "link", "show")))


def _addresses() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(_ip("-json", "-4", "address", "show"))
    return found


def up() -> None:
    """Make the bridge and give it the control machine's address. Raises NetworkError."""
    if not _link_exists(BRIDGE):
        for found in _addresses():
            if any(address["local"] == GATEWAY for address in found["addr_info"]):
                raise NetworkError(
                    f"{GATEWAY} is an address of {found['ifname']} already; the lab needs {SUBNET} for itself"
                )
        _ip("link", "add", BRIDGE, "type", "bridge")
    _ip("address", "replace", f"{GATEWAY}/{PREFIX_LENGTH}", "dev", BRIDGE)
    _ip("link", "set", BRIDGE, "up")


def add(host: str) -> Path:
    """Make a host's namespace and plug it into the bridge; returns the namespace's path. Raises NetworkError."""
    space = namespace(host)
    if not _has(space):
        _ip("netns", "add", space)
        _ip("-n", space, "link", "set", "lo", "up")
    if not _link_exists(link(host)):
        _ip("link", "add", link(host), "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("-n", space, "address", "add", f"{host_address(host)}/{PREFIX_LENGTH}", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")
        _ip("link", "set", link(host), "master", BRIDGE, "up")
    return _NAMESPACES / space


def _has(space: str) -> bool:
    return any(entry.get("name") == space for entry in json.loads(_ip("-json", "netns", "list") or "[]"))


def remove(host: str) -> None:
    """Unplug a host and remove its namespace; nothing happens where there is none."""
    if _link_exists(link(host)):
        _ip("link", "delete", link(host))
    space = namespace(host)
    if _has(space):
        _ip("netns", "delete", space)
    # After a crash of the control machine the name may be there without a namespace behind it.
    with contextlib.suppress(FileNotFoundError):
        (_NAMESPACES / space).unlink()


def down() -> None:
    """Remove the bridge."""
    if _link_exists(BRIDGE):
        _ip("link", "delete", BRIDGE)


def present() -> bool:
    """Whether the bridge is there."""
    return _link_exists(BRIDGE)
