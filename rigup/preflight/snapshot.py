"""What preflight goes by: what was seen on a host, and beside it what the host shall become. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rigup.config.settings import Settings
from rigup.distros.table import distro_id
from rigup.errors import Problem, RigupError
from rigup.host_config import NO_PROXIES, Proxies
from rigup.lock.lockfile import Lock
from rigup.plan.model import CheckpointPlan, Plan

__all__ = ["GIB", "Case", "Disk", "HostFacts", "Listener", "PciDevice", "Reachability", "Slot", "amount"]

GIB = 1 << 30


class PciDevice(Protocol):
    """A function on the bus; `class_code` has 24 bits."""

    @property
    def address(self) -> str: ...
    @property
    def vendor(self) -> int: ...
    @property
    def device(self) -> int: ...
    @property
    def class_code(self) -> int: ...


class Slot(Protocol):
    """How a card is connected: lanes, 0 where unknown, and how many bytes of it the bus shows at once."""

    @property
    def lanes(self) -> int: ...
    @property
    def card_lanes(self) -> int: ...
    @property
    def window(self) -> int: ...


class Disk(Protocol):
    """A file system: where it is mounted, and what is free on it, in bytes."""

    @property
    def mount(self) -> str: ...
    @property
    def available(self) -> int: ...


class Listener(Protocol):
    """A TCP socket that listens."""

    @property
    def address(self) -> str: ...
    @property
    def port(self) -> int: ...


class Reachability(Protocol):
    """Whether a connection came about, and if not why."""

    @property
    def ok(self) -> bool: ...
    @property
    def reason(self) -> str: ...


@dataclass(frozen=True)
class HostFacts:
    """What was seen on a host; the field types fit what the facts of `rigup.facts` return.

    `privilege` is root, sudo or none. `disks` answers `disk_paths`, `reachable` answers `destinations`. `stored` holds
    the bytes of each checkpoint directory that are there already, `images` the references by digest that Docker has,
    `venvs` the paths of virtual environments that are whole, `installed` the apt packages with their versions, `gpus`
    the number of each GPU by its UUID (empty without a driver), `our_ports` what endpoints of ours may listen on,
    `gateways` the port of each gateway that is up, `addresses` the host's own, `failed` why (endpoint, generation)
    gave way
    before. `client`: the proof's packages are there. `labels` those of file systems; looked for with `model_disk`.
    `serving` are the units of endpoints that run, `booted_with` the kernel's arguments; `grub`: there is `update-grub`.
    `source`: `model_source` is a directory there; `sourced` the paths of the checkpoints that it holds in full.
    `sources` has the addresses of repositories in each of apt's source files.
    `proxies` are those by which programs of the host reach servers. `cpus` counts those that do not run too. `daemon`
    and `containerd` are the texts of their configuration, `foreign` those of `FOREIGN` that are there. `slots` has the
    GPUs' by their address on the bus.
    """

    os_release: Mapping[str, str]
    architecture: str
    init: str
    privilege: str
    memory: int
    secure_boot: bool
    pci: Sequence[PciDevice]
    disks: Mapping[str, Disk]
    listeners: Collection[Listener]
    reachable: Mapping[tuple[str, int], Reachability]
    stored: Mapping[str, int] = field(default_factory=dict)
    images: Collection[str] = ()
    venvs: Collection[str] = ()
    installed: Mapping[str, str] = field(default_factory=dict)
    gpus: Mapping[str, int] = field(default_factory=dict)
    our_ports: Collection[int] = ()
    gateways: Mapping[str, int] = field(default_factory=dict)
    addresses: Collection[str] = ()
    failed: Mapping[tuple[str, str], str] = field(default_factory=dict)
    client: bool = False
    labels: Collection[str] = ()
    serving: Collection[str] = ()
    booted_with: Collection[str] = ()
    grub: bool = True
    source: bool = True
    sourced: Collection[str] = ()
    sources: Mapping[str, Collection[str]] = field(default_factory=dict)
    proxies: Proxies = NO_PROXIES
    cpus: int = 1
    daemon: str | None = None
    containerd: str | None = None
    foreign: Collection[str] = ()
    slots: Mapping[str, Slot] = field(default_factory=dict)


class Case:
    """One host: what it shall become, what was seen on it, and what there is to say of it in the making."""

    def __init__(self, plan: Plan, settings: Settings, facts: HostFacts, lock: Lock):
        self.plan, self.settings, self.facts, self.lock = plan, settings, facts, lock
        self.problems: list[Problem] = []
        try:
            self.distro: str | None = distro_id(facts.os_release)
        except RigupError:
            self.distro = None

    def problem(self, check: str, found: str, remedy: str) -> None:
        self.problems.append(Problem(self.plan.host, check, found, remedy))

    def missing(self, *groups: str) -> bool:
        """Whether any package of these groups is not installed at the lock's version."""
        locked = self.lock.packages.get(self.distro or "", {})
        return any(
            group not in locked
            or any(self.facts.installed.get(name) != version for name, version in locked[group].items())
            for group in groups
        )

    def checkpoints_to_come(self) -> list[CheckpointPlan]:
        return [each for each in self.plan.checkpoints if each.bytes > self.facts.stored.get(each.path, 0)]


def amount(number: float) -> str:
    """A number of bytes as people say it."""
    if abs(number) >= GIB:
        return f"{number / GIB:.1f} GiB"
    return f"{number / (1 << 20):.0f} MiB"
