"""Preflight: everything that would stop a deploy half way, told before anything is touched. Pure.

What an earlier run of ours left is no problem: its own port, the part of a checkpoint that is there, packages that are
installed. Only what is still missing counts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Protocol
from urllib.parse import urlsplit

from rigup.errors import Problem, RigupError
from rigup.lock import Lock
from rigup.packages import (
    DISTROS,
    cuda_group,
    distro_id,
    docker_group,
    driver_group,
    driver_install,
    driver_packages,
    entangled_sources,
    major_minor,
    repositories,
    short_of_cuda,
    toolkit_group,
    upstream,
)
from rigup.plan import CheckpointPlan, Plan
from rigup.registry import HUB, registry_of
from rigup.settings import Settings, gpu_indices

__all__ = [
    "Disk",
    "HostFacts",
    "Listener",
    "PciDevice",
    "Reachability",
    "check",
    "destinations",
    "disk_paths",
    "holds",
]

NVIDIA = 0x10DE
DISPLAY_CONTROLLER = 0x03
GIB = 1 << 30

# Memory of the cards with a GB202 (device ids 10de:2bb*), by device id, in MiB as nvidia-smi says it.
CARD_MIB: Mapping[int, int] = {0x2BB1: 97887, 0x2BB3: 48935, 0x2BB4: 97887, 0x2BB5: 97887}

# An image on disk against its compressed size: unpacked about 2.2 times, and Docker 29's store keeps both.
IMAGE_FACTOR = 3.2
# What packages need below /: driver and Docker, and the CUDA toolkit.
SYSTEM_BYTES = 4 * GIB
CUDA_BYTES = 10 * GIB
# torch, its CUDA libraries and the kernels of an engine that runs without a container, and their downloads.
VENV_BYTES = 24 * GIB
# Each engine process holds some GiB of host memory beside its GPU; less than this does not load a model.
MEMORY_BYTES = 12 * GIB
# What fetch.py leaves free where the store shares the disk with the system.
MARGIN = 2 * GIB

HUBS = ("hub_mirror", "hub_endpoint")


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
    `gates` the port of each gate that is up, `addresses` the host's own, `failed` why (endpoint, generation) gave way
    before. `client`: the proof's packages are there. `labels` those of file systems; looked for with `model_disk`.
    `serving` are the units of endpoints that run, `booted_with` the kernel's arguments; `grub`: there is `update-grub`.
    `source`: `model_source` is a directory there; `sourced` the paths of the checkpoints that it holds in full.
    `sources` has the addresses of repositories in each of apt's source files.
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
    gates: Mapping[str, int] = field(default_factory=dict)
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


def disk_paths(settings: Settings) -> list[str]:
    """The paths whose file systems matter."""
    return ["/", settings.model_store, "/var/lib/docker", "/var/lib/containerd"]


def destinations(plan: Plan, settings: Settings) -> dict[tuple[str, int], str]:
    """Where a bare host must be able to connect: `(host, port)` to the setting that says so."""
    found: dict[tuple[str, int], str] = {}
    for name, url in _urls(plan, settings):
        found.setdefault(_place(url), name)
    return found


def check(plan: Plan, settings: Settings, facts: HostFacts, lock: Lock) -> list[Problem]:
    """All problems of one host; an empty list means that a deploy may begin."""
    looking = _Looking(plan, settings, facts, lock)
    for look in (
        looking.system,
        looking.privilege,
        looking.packages,
        looking.apt_sources,
        looking.gpus,
        looking.memory,
        looking.disk,
        looking.own_disk,
        looking.source,
        looking.secure_boot,
        looking.kernel_args,
        looking.public_addresses,
        looking.ports,
        looking.failed,
        looking.driver_cuda,
        looking.driver_change,
        looking.network,
    ):
        look()
    return looking.problems


def holds(places: Sequence[Mapping[str, int] | None], listing: Mapping[str, str]) -> bool:
    """Whether every published file is in one of these places, in its size; what is in it, the download verifies."""
    sizes = [(path, int(entry.partition(" ")[0])) for path, entry in listing.items()]
    return bool(sizes) and all(any(place and place.get(path) == size for place in places) for path, size in sizes)


def _urls(plan: Plan, settings: Settings) -> list[tuple[str, str]]:
    urls = [(name, getattr(settings, name)) for name in ("cuda_mirror", "docker_mirror", "toolkit_mirror")]
    urls += [("pypi_index", settings.pypi_index), ("hub_endpoint", settings.hub_endpoint)]
    if settings.hub_mirror:
        urls.append(("hub_mirror", settings.hub_mirror))
    if plan.venvs:
        urls.append(("python_mirror", settings.python_mirror))
    for tag in plan.images.values():
        base, _, _ = registry_of(tag, settings.registry_mirror)
        urls.append(("registry_mirror" if base in (settings.registry_mirror, HUB) else f"image {tag}", base))
    return urls


def _place(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _size(number: float) -> str:
    if abs(number) >= GIB:
        return f"{number / GIB:.1f} GiB"
    return f"{number / (1 << 20):.0f} MiB"


class _Looking:
    """One host's problems in the making."""

    def __init__(self, plan: Plan, settings: Settings, facts: HostFacts, lock: Lock):
        self.plan, self.settings, self.facts, self.lock = plan, settings, facts, lock
        self.problems: list[Problem] = []
        try:
            self.distro: str | None = distro_id(facts.os_release)
        except RigupError:
            self.distro = None

    def problem(self, check: str, found: str, remedy: str) -> None:
        self.problems.append(Problem(self.plan.host, check, found, remedy))

    def system(self) -> None:
        if self.distro is None:
            try:
                distro_id(self.facts.os_release)
            except RigupError as error:
                found, _, remedy = str(error).rpartition(": ")
                self.problem("system", found, f"install one of them: {remedy.removeprefix('use ')}")
        if self.facts.architecture != "x86_64":
            found = f"the machine is {self.facts.architecture or 'of an unknown kind'}"
            self.problem("architecture", found, "rigup's packages and images are for x86_64")
        if self.facts.init != "systemd":
            self.problem(
                "init",
                f"process 1 is {self.facts.init or 'unknown'}, not systemd",
                "boot it with systemd; no container",
            )

    def privilege(self) -> None:
        if self.facts.privilege not in ("root", "sudo"):
            self.problem(
                "privilege",
                "the login user is not root and has no sudo without a password",
                "add `USER ALL=(ALL) NOPASSWD: ALL` under /etc/sudoers.d/, or log in as root",
            )

    def packages(self) -> None:
        if self.distro is None:
            return
        try:
            driver_packages(self.distro, self.settings.driver_branch)
        except RigupError as error:
            found, _, remedy = str(error).partition(": ")
            self.problem("driver", found, remedy)

    def apt_sources(self) -> None:
        for repository in repositories(self.distro, self.settings).values() if self.distro else ():
            for path in entangled_sources(repository, self.facts.sources):
                self.problem(
                    "sources",
                    f"{path} names {', '.join(sorted(repository.uris))}, which {repository.source_path} will name",
                    "take it out of that file: apt stops where two files name different keys for one repository",
                )

    def gpus(self) -> None:
        displays = [d for d in self.facts.pci if d.vendor == NVIDIA and d.class_code >> 16 == DISPLAY_CONTROLLER]
        cards = [d for d in displays if d.device >> 4 == 0x2BB]
        for other in (d for d in displays if d not in cards):
            self.problem(
                "gpus",
                f"the GPU at {other.address} is 10de:{other.device:04x}, no RTX PRO 6000 Blackwell (10de:2bb*)",
                "take it out, or use this host for something else: the engine would see it too",
            )
        numbers, takers = self.facts.gpus, dict[int, str]()
        for endpoint in self.plan.endpoints:
            uuids = endpoint.gpu_uuids
            # Without a driver nobody knows UUIDs yet; containers are refused devices that are not there.
            if numbers and (unknown := [uuid for uuid in uuids if uuid not in numbers]):
                self.problem(
                    "gpus",
                    f"endpoint {endpoint.name} takes {', '.join(unknown)}; there are {', '.join(numbers)}",
                    f"correct endpoints.{endpoint.name}.gpus: `nvidia-smi -L` lists them",
                )
                continue
            wanted = gpu_indices(endpoint.gpus, len(cards), numbers)
            if twice := [number for number in wanted if takers.setdefault(number, endpoint.name) != endpoint.name]:
                self.problem(
                    "gpus",
                    f"endpoints {takers[twice[0]]} and {endpoint.name} both take GPU {', '.join(map(str, twice))}, by "
                    "number and by UUID",
                    f"correct endpoints.{endpoint.name}.gpus",
                )
                continue
            if len(wanted) < endpoint.gpu_count and not (uuids and not numbers):
                self.problem(
                    "gpus",
                    f"{len(cards)} on the bus; recipe {endpoint.recipe} of endpoint {endpoint.name} "
                    f"needs {endpoint.gpu_count}",
                    "seat the missing cards and check the BIOS (Above 4G decoding), or choose a recipe for fewer GPUs",
                )
                continue
            if absent := [index for index in wanted if index >= len(cards)]:
                self.problem(
                    "gpus",
                    f"endpoint {endpoint.name} takes GPU {', '.join(map(str, absent))}; there are {len(cards)}, from 0",
                    f"correct endpoints.{endpoint.name}.gpus",
                )
                continue
            for index in wanted:
                memory = CARD_MIB.get(cards[index].device)
                if memory is not None and memory < endpoint.vram_mib:
                    self.problem(
                        "vram",
                        f"the GPU at {cards[index].address} has {_size(memory << 20)}; recipe {endpoint.recipe} "
                        f"needs {_size(endpoint.vram_mib << 20)}",
                        "choose a recipe that fits",
                    )

    def memory(self) -> None:
        if self.facts.memory < MEMORY_BYTES:
            self.problem(
                "memory",
                f"{_size(self.facts.memory)} of memory; the engine needs {_size(MEMORY_BYTES)}",
                "add memory; a model that swaps does not serve",
            )

    def disk(self) -> None:
        needs: dict[str, list[tuple[int, str]]] = {}
        for path, size, what in self.needed_bytes():
            disk = self.facts.disks.get(path)
            if disk is None:
                self.problem("disk", f"no file system was found for {path}", "check what is mounted there")
                continue
            needs.setdefault(disk.mount, []).append((size, what))
        free = {disk.mount: disk.available for disk in self.facts.disks.values()}
        for mount, entries in needs.items():
            total = sum(size for size, _ in entries) + MARGIN
            if free[mount] < total:
                parts = ", ".join(f"{_size(size)} for {what}" for size, what in entries)
                self.problem(
                    "disk",
                    f"{mount} has {_size(free[mount])} free and needs {_size(total)}: {parts}, {_size(MARGIN)} spare",
                    f"make {_size(total - free[mount])} of room, or mount a larger disk",
                )

    def needed_bytes(self) -> list[tuple[str, int, str]]:
        """Path, bytes and purpose of everything that is not there yet."""
        needed: list[tuple[str, int, str]] = []
        for checkpoint in self.plan.checkpoints:
            missing = max(0, checkpoint.bytes - self.facts.stored.get(checkpoint.path, 0))
            # What an own disk has free is known once it is mounted; the download looks again.
            if missing and not self.own_disk_to_mount():
                needed.append((self.settings.model_store, missing, f"checkpoint {checkpoint.repo}"))
        sizes = {endpoint.image or "": endpoint.image_bytes for endpoint in self.plan.endpoints}
        for image, tag in self.plan.images.items():
            if image not in self.facts.images:
                needed.append((self.image_path(), int(sizes[image] * IMAGE_FACTOR), f"image {tag}"))
        for venv in self.plan.venvs:
            if venv.path not in self.facts.venvs:
                needed.append(("/", VENV_BYTES, ", ".join(venv.packages)))
        if self.missing(driver_group(self.settings), docker_group(self.settings)):
            needed.append(("/", SYSTEM_BYTES, "driver and Docker"))
        cuda = cuda_group(self.settings)
        if cuda and self.missing(cuda):
            needed.append(("/", CUDA_BYTES, cuda))
        return needed

    def own_disk(self) -> None:
        label, labels = self.settings.model_disk, self.facts.labels
        if label and label not in labels:
            self.problem(
                "disk",
                f"no file system has the label {label} (`model_disk`); there is {', '.join(sorted(labels)) or 'none'}",
                f"give it to the disk for the checkpoints, `e2label DEVICE {label}` for ext4, or check its cable",
            )

    def source(self) -> None:
        # Once all is in the store, the disk may be carried away again.
        if not self.facts.source and self.checkpoints_to_come():
            self.problem(
                "source",
                f"{self.settings.model_source} (`model_source`) is no directory on the host",
                "mount the disk that it lies on, correct it, or leave it out: all comes from the hub then",
            )

    def checkpoints_to_come(self) -> list[CheckpointPlan]:
        return [each for each in self.plan.checkpoints if each.bytes > self.facts.stored.get(each.path, 0)]

    def own_disk_to_mount(self) -> bool:
        """Whether the store is still to be mounted."""
        disk = self.facts.disks.get(self.settings.model_store)
        return bool(self.settings.model_disk) and disk is not None and disk.mount != self.settings.model_store

    def image_path(self) -> str:
        """Where images will lie: a fresh Docker 29 keeps them in containerd's directory, an older one in its own."""
        installed = self.facts.installed.get("docker-ce")
        coming = self.lock.packages.get(self.distro or "", {}).get(docker_group(self.settings), {}).get("docker-ce")
        version = installed or coming
        fresh = version is not None and int(upstream(version).split(".")[0]) >= 29
        return "/var/lib/containerd" if fresh else "/var/lib/docker"

    def missing(self, *groups: str) -> bool:
        """Whether any package of these groups is not installed at the lock's version."""
        locked = self.lock.packages.get(self.distro or "", {})
        return any(
            group not in locked
            or any(self.facts.installed.get(name) != version for name, version in locked[group].items())
            for group in groups
        )

    def secure_boot(self) -> None:
        if self.facts.secure_boot:
            self.problem(
                "secure-boot",
                "Secure Boot is on: the driver would build and never load",
                "turn it off in the firmware, or enrol /var/lib/dkms/mok.pub at the console and turn it off until then",
            )

    def kernel_args(self) -> None:
        lacking = [argument for argument in self.settings.kernel_args if argument not in self.facts.booted_with]
        if lacking and not self.facts.grub:
            self.problem(
                "kernel",
                f"the kernel was booted without {' '.join(lacking)} (`kernel_args`), and there is no update-grub",
                "add them where this host's boot loader reads them, as /etc/kernel/cmdline, and reboot; or set "
                "`kernel_args: []`",
            )

    def public_addresses(self) -> None:
        for endpoint in self.plan.endpoints:
            if endpoint.public_address and endpoint.public_address not in self.facts.addresses:
                own = [each for each in sorted(self.facts.addresses) if not ip_address(each).is_loopback]
                self.problem(
                    "address",
                    f"{endpoint.public_address} of endpoint {endpoint.name} is no address of this host",
                    f"set endpoints.{endpoint.name}.address to one of its own: {', '.join(own) or 'it has none'}",
                )

    def ports(self) -> None:
        for endpoint in self.plan.endpoints:
            # One of ours: it stays, or gives way before another one takes its port.
            wanted = [] if endpoint.port in self.facts.our_ports else [endpoint.address]
            if endpoint.public_address and self.facts.gates.get(endpoint.name) != endpoint.port:
                wanted.append(endpoint.public_address)
            taken = sorted({seen.address for seen in self.facts.listeners if _in_the_way(seen, wanted, endpoint.port)})
            if taken:
                self.problem(
                    "port",
                    f"port {endpoint.port} of endpoint {endpoint.name} is taken on {', '.join(taken)}",
                    f"stop it (`ss -tlnp sport = :{endpoint.port}` names it), or set endpoints.{endpoint.name}.port",
                )

    def failed(self) -> None:
        for endpoint in self.plan.endpoints:
            why = self.facts.failed.get((endpoint.name, endpoint.generation))
            if why is not None and not self.settings.retry:
                self.problem(
                    "recipe",
                    f"{endpoint.recipe} as {endpoint.name} {why}",
                    "choose another recipe, or try it once more with `--data retry=true`",
                )

    def driver_cuda(self) -> None:
        branch = self.settings.driver_branch
        for endpoint in self.plan.endpoints:
            needs = [version for version in (endpoint.image_cuda, endpoint.min_driver_cuda) if version]
            floor = max(needs, key=major_minor, default=None)
            what = endpoint.image_tag or f"recipe {endpoint.recipe}"
            if floor and (short := short_of_cuda(branch, floor)):
                brings, able = short
                self.problem(
                    "driver",
                    f"driver_branch {branch} brings CUDA {brings}; {what} needs {floor}",
                    f"set driver_branch to {' or '.join(map(str, able))}"
                    if able
                    else "choose a recipe with an older image",
                )

    def driver_change(self) -> None:
        """A driver that is swapped under what serves breaks the next process there, and its reboot would be refused."""
        if self.distro is None or not self.facts.serving:
            return
        try:
            wanted = driver_install(self.lock, self.distro, self.settings)
        except RigupError:
            # Another check tells why there is none.
            return
        installed = self.facts.installed
        other = {
            there for name, version in wanted.packages.items() if (there := installed.get(name, version)) != version
        }
        if wanted.module in installed and not other:
            return
        found = ", ".join(sorted({upstream(version) for version in other if version})) or "another driver"
        units = " ".join(sorted(self.facts.serving))
        self.problem(
            "driver",
            f"{found} is installed and would become {wanted.version}, with a reboot, while {units} serves",
            f"when that may stop, `systemctl stop {units}` there and deploy again: it serves again at the end. "
            f"Until then leave the host out (`--exclude {self.plan.host}`) or keep its driver (`driver_version`)",
        )

    def network(self) -> None:
        needed = self.needed_settings()
        # One mirror may serve several settings: it is needed as long as any of them is.
        urls = [(name, _place(url)) for name, url in _urls(self.plan, self.settings)]
        for host, port in destinations(self.plan, self.settings):
            names = sorted({name for name, place in urls if place == (host, port)})
            seen = self.facts.reachable.get((host, port))
            if not needed.intersection(names) or (seen is not None and seen.ok):
                continue
            reason = seen.reason if seen is not None else "it was not tried"
            self.problem(
                "network",
                f"the host cannot connect to {host}:{port}: {reason}",
                f"open the way from the host, or set {', '.join(names)} to a mirror that it reaches",
            )

    def needed_settings(self) -> set[str]:
        """The settings whose servers are still needed."""
        needed = {name for name, _ in _urls(self.plan, self.settings)}
        cuda = cuda_group(self.settings)
        if not self.missing(driver_group(self.settings), *([cuda] if cuda else [])):
            needed.discard("cuda_mirror")
        if not self.missing(docker_group(self.settings)):
            needed.discard("docker_mirror")
        if not self.missing(toolkit_group(self.settings)):
            needed.discard("toolkit_mirror")
        missing = self.checkpoints_to_come()
        # A host that reaches one of them can go on; files that the mirror lacks come from the hub, and the other way.
        hubs = {name: _place(url) for name, url in _urls(self.plan, self.settings) if name in HUBS}
        reached = any(seen is not None and seen.ok for seen in map(self.facts.reachable.get, hubs.values()))
        if reached or all(each.path in self.facts.sourced for each in missing):
            needed.difference_update(HUBS)
        if not missing and self.facts.client and all(venv.path in self.facts.venvs for venv in self.plan.venvs):
            needed.discard("pypi_index")
        distro = DISTROS.get(self.distro or "")
        if all(venv.path in self.facts.venvs or (distro and distro.python == venv.python) for venv in self.plan.venvs):
            needed.discard("python_mirror")
        if all(image in self.facts.images for image in self.plan.images):
            needed -= {name for name in needed if name == "registry_mirror" or name.startswith("image ")}
        return needed


def _in_the_way(listener: Listener, wanted: Sequence[str], port: int) -> bool:
    """Whether that socket keeps others from listening on one of the addresses `wanted`."""
    anywhere = ("0.0.0.0", "::", "::ffff:0.0.0.0") if wanted else ()
    mapped = (f"::ffff:{address}" for address in wanted)
    return listener.port == port and listener.address in (*anywhere, *wanted, *mapped)
