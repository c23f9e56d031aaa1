"""Where the lab keeps things, how its network is laid out, what its hosts are called."""

import os
import re
from pathlib import Path

NUMBER = int(os.environ.get("RIGUP_LAB", "0"))
"""Which lab of this machine, 0 to 255: each has hosts, services, network and state of its own; the cache is shared."""

_OF_NUMBER = f"-{NUMBER}" if NUMBER else ""

STATE = Path(os.environ.get("RIGUP_LAB_STATE", f"/var/lib/rigup-lab{_OF_NUMBER}"))
"""What the lab is now: roots of its hosts, process ids, logs, keys. `python -m lab down` removes it."""

CACHE = Path(os.environ.get("RIGUP_LAB_CACHE", "~/.cache/rigup-lab")).expanduser()
"""What was expensive to make or fetch, named by its content or recipe; correct when empty or removed."""

BRIDGE = f"rigup{NUMBER}"
_NETWORK = f"10.98.{NUMBER}"
SUBNET = f"{_NETWORK}.0/24"
PREFIX_LENGTH = 24
GATEWAY = f"{_NETWORK}.1"
"""The control machine's address on the bridge; everything a lab host can reach listens here."""

MIRROR_PORT = 8000
HUB_PORT = 8001
REGISTRY_PORT = 5000

MIRROR_URL = f"http://{GATEWAY}:{MIRROR_PORT}"
HUB_URL = f"http://{GATEWAY}:{HUB_PORT}"
REGISTRY_URL = f"http://{GATEWAY}:{REGISTRY_PORT}"

SERVICES = ("mirror", "hub", "registry")
"""What runs beside the hosts on the control machine, in the order of starting."""

MAX_HOSTS = 19
"""Far more than two cores can carry at work; idle ones take little."""

CGROUP = f"rigup-lab{_OF_NUMBER}"
"""The control group above those of the hosts."""

RELEASES = ("trixie", "bookworm")

KVER = os.uname().release
"""The running kernel's release. Lab hosts share the kernel of the machine below, so it is theirs too."""


def host_name(number: int) -> str:
    """The name of lab host `number`, counted from 1."""
    return f"rig{number}"


def host_number(name: str) -> int:
    """The number in a lab host's name. Raises ValueError for any other name."""
    match = re.fullmatch(r"rig([1-9]\d?)", name)
    if match is None or int(match[1]) > MAX_HOSTS:
        raise ValueError(f"{name!r} is no lab host: they are called rig1 to rig{MAX_HOSTS}")
    return int(match[1])


def host_address(name: str) -> str:
    """The address of a lab host on the lab's network."""
    return f"{_NETWORK}.{10 + host_number(name)}"


def namespace(name: str) -> str:
    """The network namespace of a lab host."""
    return f"{BRIDGE if NUMBER else 'rigup'}-{name}"


def link(name: str) -> str:
    """The end of a lab host's cable that is plugged into the bridge; at most 15 characters."""
    return namespace(name)
