"""Paths, addresses and host names of the lab."""

import os
import re
from pathlib import Path

NUMBER = int(os.environ.get("RIGUP_LAB", "0"))
"""Which lab of this machine, 0 to 255: each has its own hosts, services, network and state; the cache is shared."""

_OF_NUMBER = f"-{NUMBER}" if NUMBER else ""

STATE = Path(os.environ.get("RIGUP_LAB_STATE", f"/var/lib/rigup-lab{_OF_NUMBER}"))
"""The current state of the lab: disks of its hosts, process ids, logs, keys. `python -m lab down` removes it."""

CACHE = Path(os.environ.get("RIGUP_LAB_CACHE", "~/.cache/rigup-lab")).expanduser()
"""What was expensive to build or download, named by a hash of its inputs; may be removed at any time."""

BRIDGE = f"rigup{NUMBER}"
_NETWORK = f"10.98.{NUMBER}"
SUBNET = f"{_NETWORK}.0/24"
PREFIX_LENGTH = 24
GATEWAY = f"{_NETWORK}.1"
"""The control machine's address on the bridge; all the lab's services listen here."""

MIRROR_PORT = 8000
HUB_PORT = 8001
REGISTRY_PORT = 5000

MIRROR_URL = f"http://{GATEWAY}:{MIRROR_PORT}"
HUB_URL = f"http://{GATEWAY}:{HUB_PORT}"
REGISTRY_URL = f"http://{GATEWAY}:{REGISTRY_PORT}"

SERVICES = ("mirror", "hub", "registry")
"""The services on the control machine, in the order in which they start."""

MAX_HOSTS = 19
"""Far more than two cores can keep busy; idle hosts cost little."""

CGROUP = f"rigup-lab{_OF_NUMBER}"
"""The parent of the hosts' control groups."""

KVER = os.uname().release
"""The release of the running kernel, which lab hosts share with the machine below."""


def host_name(number: int) -> str:
    """Return the name of lab host `number`, counted from 1."""
    return f"rig{number}"


def host_number(name: str) -> int:
    """Return the number in a lab host's name. Raises ValueError for any other name."""
    match = re.fullmatch(r"rig([1-9]\d?)", name)
    if match is None or int(match[1]) > MAX_HOSTS:
        raise ValueError(f"{name!r} is not a lab host: their names are rig1 to rig{MAX_HOSTS}")
    return int(match[1])


def host_address(name: str) -> str:
    """Return the address of a lab host on the lab's network."""
    return f"{_NETWORK}.{10 + host_number(name)}"


def namespace(name: str) -> str:
    """Return the name of a lab host's network namespace, and of its link on the bridge: at most 15 characters."""
    return f"{BRIDGE if NUMBER else 'rigup'}-{name}"
