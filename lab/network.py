"""The lab's network: one bridge with the control machine's address, one network namespace per host, no route out.

A host's namespace has an address and no default route, so a host reaches only the bridge.
"""

import contextlib
import json
import subprocess
from pathlib import Path
from typing import Any

from lab.errors import LabError
from lab.settings import BRIDGE, GATEWAY, PREFIX_LENGTH, SUBNET, host_address, namespace


def _ip(*argv: str) -> str:
    done = subprocess.run(["ip", *argv], capture_output=True, text=True)
    if done.returncode:
        raise LabError(f"`ip {' '.join(argv)}` failed: {done.stderr.strip() or done.returncode}")
    return done.stdout


def _link_exists(name: str) -> bool:
    return any(found["ifname"] == name for found in json.loads(_ip("-json", "link", "show")))


def _addresses() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(_ip("-json", "-4", "address", "show"))
    return found


def up() -> None:
    """Create the bridge and give it the control machine's address. Raises LabError."""
    if not present():
        for found in _addresses():
            if any(address["local"] == GATEWAY for address in found["addr_info"]):
                raise LabError(f"{GATEWAY} already belongs to {found['ifname']}: the lab needs {SUBNET} for itself")
        _ip("link", "add", BRIDGE, "type", "bridge")
    _ip("address", "replace", f"{GATEWAY}/{PREFIX_LENGTH}", "dev", BRIDGE)
    _ip("link", "set", BRIDGE, "up")


def add(host: str) -> None:
    """Create a host's network namespace and connect it to the bridge. Raises LabError."""
    space = namespace(host)
    if not _has(space):
        _ip("netns", "add", space)
        _ip("-n", space, "link", "set", "lo", "up")
    if not _link_exists(space):
        _ip("link", "add", space, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("-n", space, "address", "add", f"{host_address(host)}/{PREFIX_LENGTH}", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")
        _ip("link", "set", space, "master", BRIDGE, "up")


def _has(space: str) -> bool:
    return any(entry.get("name") == space for entry in json.loads(_ip("-json", "netns", "list") or "[]"))


def remove(host: str) -> None:
    """Disconnect a host and remove its namespace, if it has one."""
    space = namespace(host)
    if _link_exists(space):
        _ip("link", "delete", space)
    if _has(space):
        _ip("netns", "delete", space)
    # After a crash of the control machine the name may exist without a namespace behind it.
    with contextlib.suppress(FileNotFoundError):
        Path("/run/netns", space).unlink()


def down() -> None:
    """Remove the bridge."""
    if present():
        _ip("link", "delete", BRIDGE)


def present() -> bool:
    """Whether the bridge exists."""
    return _link_exists(BRIDGE)
