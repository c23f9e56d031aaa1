"""How a host's GPUs are connected: sockets, PCIe switches, link width and speed, and what follows for engines. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from rigup.hardware.cards import described

NVIDIA = 0x10DE
DISPLAY_CONTROLLER = 0x03
BRIDGE = 0x0604

# GT/s of a lane by generation of PCI Express (PCI-SIG), as sysfs prints them.
GENERATIONS = {"2.5": 1, "5.0": 2, "8.0": 3, "16.0": 4, "32.0": 5, "64.0": 6}

# PCI Express Base Specification: extended capabilities begin at 0x100; ACS has ID 0x000d, its control register is at 6.
FIRST_EXTENDED, ACS, ACS_CONTROL = 0x100, 0x000D, 6


@dataclass(frozen=True)
class Link:
    """A link on the bus: generation and lanes in use, and the most that the device has; 0 for what is unknown."""

    generation: int = 0
    lanes: int = 0
    most_generation: int = 0
    most_lanes: int = 0

    def __str__(self) -> str:
        text = f"PCIe {self.generation or '?'}.0 x{self.lanes or '?'}"
        lacking = []
        if 0 < self.lanes < self.most_lanes:
            lacking.append(f"x{self.most_lanes}")
        if 0 < self.generation < self.most_generation:
            lacking.append(f"{self.most_generation}.0")
        return f"{text} (card: {' '.join(reversed(lacking))})" if lacking else text


@dataclass(frozen=True)
class Function:
    """A function on the PCI bus.

    `path` has its root bus (`pci0000:40`), the bridges above it and itself; `node` is its NUMA node, -1 if the firmware
    names none; `iommu` is how the IOMMU treats it: `identity`, `DMA`, `DMA-FQ`, or empty without one.
    """

    address: str
    path: tuple[str, ...]
    vendor: int
    device: int
    class_code: int
    node: int = -1
    link: Link = Link()
    iommu: str = ""

    @property
    def is_gpu(self) -> bool:
        """Whether it is one of NVIDIA's display controllers."""
        return self.vendor == NVIDIA and self.class_code >> 16 == DISPLAY_CONTROLLER


@dataclass(frozen=True)
class Topology:
    """All functions on the bus by address, and the numbers that the driver gave to GPUs, by address."""

    functions: Mapping[str, Function] = field(default_factory=dict)
    indices: Mapping[str, int] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def gpus(self) -> list[Function]:
        """The GPUs in the driver's order; without a driver in that of the bus."""
        found = [function for function in self.functions.values() if function.is_gpu]
        return sorted(found, key=lambda gpu: (self.indices.get(gpu.address, 0), gpu.address))

    @property
    def ports(self) -> list[str]:
        """The bridges above GPUs, whose access control decides whether one GPU's requests reach another directly."""
        above = {address for gpu in self.gpus for address in gpu.path[1:-1]}
        return sorted(address for address in above if address in self.functions)

    def label(self, gpu: Function) -> str:
        """Return what a GPU is called here: its number if the driver gave it one."""
        number = self.indices.get(gpu.address)
        return f"GPU {number}" if number is not None else f"GPU at {gpu.address}"


def share_switch(one: Function, other: Function) -> bool:
    """Return whether two GPUs are below the same bridge."""
    return one.path[:2] == other.path[:2] and len(one.path) > 2


def drawing(topology: Topology) -> list[str]:
    """Draw sockets, root buses, bridges and GPUs as a tree."""
    tree: dict[str, dict[str, object]] = {}
    for gpu in topology.gpus:
        socket = f"socket {gpu.node}" if gpu.node >= 0 else "socket not named by the firmware"
        here = tree.setdefault(socket, {})
        for step in gpu.path[:-1]:
            here = here.setdefault(_step(topology, step), {})  # type: ignore[assignment]
        card = described(gpu.device, topology.names.get(gpu.address, ""))
        here[f"{topology.label(gpu)}  {card}  {gpu.address}  {gpu.link}"] = {}
    lines = []
    for socket, below in sorted(tree.items()):
        lines += [socket, *_branches(below)]
    return lines


def _step(topology: Topology, step: str) -> str:
    if step.startswith("pci"):
        return f"root bus {step.removeprefix('pci')}"
    bridge = topology.functions.get(step)
    return f"bridge {step} ({bridge.vendor:04x}:{bridge.device:04x})" if bridge else f"bridge {step}"


def _branches(below: Mapping[str, object]) -> list[str]:
    lines = []
    for number, (name, more) in enumerate(below.items()):
        last = number == len(below) - 1
        lines.append(f"{'└─' if last else '├─'} {name}")
        assert isinstance(more, dict)
        lines += [f"{'   ' if last else '│  '}{line}" for line in _branches(more)]
    return lines


def consequences(topology: Topology, access_control: Mapping[str, int]) -> list[str]:
    """Return what follows for engines, a sentence each. `access_control` has the control bits of the ports above.

    Sources: NVIDIA's NCCL documentation (NCCL_P2P_LEVEL; troubleshooting, ACS and IOMMU), NVIDIA/nccl issue 2079.
    """
    gpus = topology.gpus
    if len(gpus) < 2:
        return ["One GPU: nothing is copied between cards." if gpus else "No NVIDIA GPU is on the bus."]
    found = _distances(topology, gpus)
    if translated := [gpu for gpu in gpus if gpu.iommu.startswith("DMA")]:
        found.append(
            f"The IOMMU translates addresses of {_list(topology, translated)}: copies between GPUs can hang or deliver "
            "wrong data. Boot with `kernel_args: [iommu=pt]`, the default."
        )
    if controlled := [port for port in topology.ports if access_control.get(port)]:
        found.append(
            f"PCIe access control (ACS) is on at {', '.join(controlled)}: copies between GPUs take the way through the "
            "CPU. `acs: off` clears it at each boot."
        )
    narrow = [gpu for gpu in gpus if 0 < gpu.link.lanes < gpu.link.most_lanes]
    if narrow:
        found.append(f"{_list(topology, narrow)} use fewer lanes than they have: check risers, slots and bifurcation.")
    if len({gpu.device for gpu in gpus}) > 1:
        found.append("The GPUs are of different kinds: a tensor-parallel group runs as fast as its slowest card.")
    return found


def _distances(topology: Topology, gpus: Sequence[Function]) -> list[str]:
    groups: dict[str, list[Function]] = {}
    for gpu in gpus:
        if len(gpu.path) > 2:
            groups.setdefault(gpu.path[1], []).append(gpu)
    found = [
        f"{_list(topology, group)} share a switch: they copy to each other without the CPU."
        for group in groups.values()
        if len(group) > 1
    ]
    nodes = sorted({gpu.node for gpu in gpus})
    if len(nodes) > 1:
        found.append(
            f"The GPUs are on {len(nodes)} sockets: NCCL does not copy directly between sockets by itself. If `rigup "
            "deploy` has verified the copies, `NCCL_P2P_LEVEL: SYS` in the recipe's `env` makes it do so."
        )
    elif not all(share_switch(one, other) for one, other in pairwise(gpus)):
        found.append(
            "The GPUs are on one socket: `NCCL_P2P_LEVEL: PHB` in the recipe's `env` lets NCCL copy directly between "
            "root ports."
        )
    return found


def _list(topology: Topology, gpus: Iterable[Function]) -> str:
    return ", ".join(topology.label(gpu) for gpu in gpus)


def access_control(config: bytes) -> int | None:
    """Return the control register of access control in a configuration space; None if there is none."""
    at, seen = FIRST_EXTENDED, set[int]()
    while FIRST_EXTENDED <= at <= len(config) - 8 and at not in seen:
        seen.add(at)
        header = int.from_bytes(config[at : at + 4], "little")
        if header & 0xFFFF == ACS:
            return int.from_bytes(config[at + ACS_CONTROL : at + ACS_CONTROL + 2], "little")
        at = header >> 20 & ~3
    return None
