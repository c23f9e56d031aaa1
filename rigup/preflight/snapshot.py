"""What preflight works from: the facts read from a host, and next to them its plan, settings and lock. Pure."""

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

GIB = 1 << 30


class PciDevice(Protocol):
    """A function on the PCI bus; `class_code` has 24 bits."""

    @property
    def address(self) -> str: ...
    @property
    def vendor(self) -> int: ...
    @property
    def device(self) -> int: ...
    @property
    def class_code(self) -> int: ...


class Slot(Protocol):
    """How a card is connected: PCIe lanes (0 if unknown), and the size of its memory window on the bus in bytes."""

    @property
    def lanes(self) -> int: ...
    @property
    def card_lanes(self) -> int: ...
    @property
    def window(self) -> int: ...


class Card(Protocol):
    """A GPU that the driver knows: its index and name, its PCI address, and whether it is or will be in MIG mode.

    `watts` are the lowest and the highest power limit that it accepts, None if it accepts none.
    """

    @property
    def index(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def address(self) -> str: ...
    @property
    def mig(self) -> bool: ...
    @property
    def watts(self) -> tuple[int, int] | None: ...


class Disk(Protocol):
    """A file system: its mount point, its free bytes, whether nothing can be written there, and its free inodes.

    `files` is None if it has as many as it needs.
    """

    @property
    def mount(self) -> str: ...
    @property
    def available(self) -> int: ...
    @property
    def read_only(self) -> bool: ...
    @property
    def files(self) -> int | None: ...


class Listener(Protocol):
    """A listening TCP socket."""

    @property
    def address(self) -> str: ...
    @property
    def port(self) -> int: ...


class Reachability(Protocol):
    """Whether a TCP connection succeeded, and the reason if it did not."""

    @property
    def ok(self) -> bool: ...
    @property
    def reason(self) -> str: ...


@dataclass(frozen=True)
class SystemFacts:
    """The operating system.

    `privilege` is how the login user becomes root: root, sudo or none. `kernel_arguments` are those of the last boot,
    `grub_defaults` the texts of GRUB's default files by path, `next_kernel` the release that boots next. `uses_grub`
    says whether `update-grub` exists and GRUB boots the machine. `container` names the container that this is.
    `disabled_modules` has the lines of modprobe.d that keep the driver from loading, by file.
    """

    os_release: Mapping[str, str]
    architecture: str
    init: str
    privilege: str
    kernel_arguments: Collection[str] = ()
    uses_grub: bool = True
    grub_defaults: Mapping[str, str] = field(default_factory=dict)
    next_kernel: str = ""
    container: str = ""
    disabled_modules: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class HardwareFacts:
    """The machine.

    `memory` is in bytes. `cpus` includes offline CPUs. `slots` are the GPUs' slots by PCI address, `bound` the kernel
    drivers that they belong to. `gpu_indices` maps the UUID of each GPU to its index; it and `cards` are empty without
    a driver. `secure_boot` says that Secure Boot would keep the driver from loading.
    """

    memory: int
    secure_boot: bool
    pci: Sequence[PciDevice]
    cpus: int = 1
    slots: Mapping[str, Slot] = field(default_factory=dict)
    bound: Mapping[str, str] = field(default_factory=dict)
    gpu_indices: Mapping[str, int] = field(default_factory=dict)
    cards: Sequence[Card] = ()


@dataclass(frozen=True)
class DiskFacts:
    """Disks and checkpoints.

    `disks` has an entry for each path of `disk_paths`. `labels` are file system labels, read only with `model_disk`.
    `stored_bytes` is what each checkpoint directory already holds. `has_model_source` says whether `model_source` is a
    directory, and `in_model_source` lists the paths of the checkpoints that it holds completely. `initrd_bytes` has the
    size of each kernel's initrd in /boot.
    """

    disks: Mapping[str, Disk]
    labels: Collection[str] = ()
    stored_bytes: Mapping[str, int] = field(default_factory=dict)
    has_model_source: bool = True
    in_model_source: Collection[str] = ()
    initrd_bytes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class NetworkFacts:
    """The network. `reachable` has an entry for each key of `destinations`; `addresses` are the host's own."""

    listeners: Collection[Listener]
    reachable: Mapping[tuple[str, int], Reachability]
    addresses: Collection[str] = ()
    proxies: Proxies = NO_PROXIES


@dataclass(frozen=True)
class SoftwareFacts:
    """Installed software.

    `installed` maps apt packages to versions, `apt_sources` each source file to its repository addresses. `images` are
    Docker's image references by digest, `venvs` the paths of complete virtual environments. `has_client` says whether
    the verification client is installed. `daemon_json` and `containerd_toml` are the texts of these files, None if
    there is no file. `foreign` are the paths of `software.FOREIGN` that exist. `conflicting` are the packages that the
    deploy removes, `removals` everything that apt would remove with them, and `containers` the names of other people's
    running containers. `driver` is the version of the driver that is loaded and also on the disk, None if there is
    none. `held` maps packages on hold to their versions, "" for one that is not installed. `apt_errors` is why apt
    refuses every transaction. `unconfigured` are packages that are not fully installed, and `failed_builds` the modules
    that DKMS could not build. `dockerd_flags` are the flags in Docker's unit, by their key in daemon.json.
    """

    installed: Mapping[str, str] = field(default_factory=dict)
    apt_sources: Mapping[str, Collection[str]] = field(default_factory=dict)
    images: Collection[str] = ()
    venvs: Collection[str] = ()
    has_client: bool = False
    daemon_json: str | None = None
    containerd_toml: str | None = None
    foreign: Collection[str] = ()
    conflicting: Collection[str] = ()
    removals: Collection[str] = ()
    containers: Collection[str] = ()
    driver: str | None = None
    held: Mapping[str, str] = field(default_factory=dict)
    apt_errors: Sequence[str] = ()
    unconfigured: Collection[str] = ()
    failed_builds: Sequence[str] = ()
    dockerd_flags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EndpointFacts:
    """What earlier deploys serve here.

    `active_units` are the units of running endpoints, `ports` the ports that these may listen on, and `gateways` the
    port of each running gateway. `failed` says why an (endpoint, generation) was rolled back.
    """

    active_units: Collection[str] = ()
    ports: Collection[int] = ()
    gateways: Mapping[str, int] = field(default_factory=dict)
    failed: Mapping[tuple[str, str], str] = field(default_factory=dict)


@dataclass(frozen=True)
class HostFacts:
    """Everything that preflight reads from a host; the field types fit what the facts of `rigup.facts` return."""

    system: SystemFacts
    hardware: HardwareFacts
    disk: DiskFacts
    network: NetworkFacts
    software: SoftwareFacts = SoftwareFacts()
    endpoints: EndpointFacts = EndpointFacts()


class HostCheck:
    """One host under check: its plan, settings, facts and lock, and the problems found so far.

    `distro` is NVIDIA's name for the distribution, None if it is not supported.
    """

    def __init__(self, plan: Plan, settings: Settings, facts: HostFacts, lock: Lock):
        self.plan, self.settings, self.facts, self.lock = plan, settings, facts, lock
        self.problems: list[Problem] = []
        try:
            self.distro: str | None = distro_id(facts.system.os_release)
        except RigupError:
            self.distro = None

    def problem(self, id: str, found: str, remedy: str) -> None:
        """Add a problem to the host's list; `id` is one of `rigup.config.findings.FINDINGS`."""
        self.problems.append(Problem(self.plan.host, id, found, remedy))

    def lacks_packages(self, *groups: str) -> bool:
        """Return whether any package of these groups is not installed at the lock's version."""
        locked, installed = self.lock.packages.get(self.distro or "", {}), self.facts.software.installed
        return any(
            group not in locked or any(installed.get(name) != version for name, version in locked[group].items())
            for group in groups
        )

    def missing_checkpoints(self) -> list[CheckpointPlan]:
        """Return the checkpoints that are not complete on the host."""
        stored = self.facts.disk.stored_bytes
        return [each for each in self.plan.checkpoints if each.bytes > stored.get(each.path, 0)]
