"""The PCI bus as a tree, and the access control of its ports."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.facts import FactBase

from rigup.facts.reading import Value, reading
from rigup.hardware.topology import GENERATIONS, Function, Link, Topology, access_control

BUS = "/sys/bus/pci/devices"
END_OF_PATHS = "--- attributes"
END_OF_ATTRIBUTES = "--- cards"
ATTRIBUTES = (
    "vendor",
    "device",
    "class",
    "numa_node",
    "current_link_speed",
    "current_link_width",
    "max_link_speed",
    "max_link_width",
    "iommu_group/type",
)


@dataclass(frozen=True)
class PciTopologyValue(Topology, Value):
    """The PCI bus; `indices` and `names` are the driver's, empty without one."""


def parse_topology(lines: list[str]) -> PciTopologyValue:
    """Parse the devices' real paths, `ADDRESS/ATTRIBUTE:VALUE` lines of sysfs, and the driver's GPUs as CSV."""
    paths_end, end = lines.index(END_OF_PATHS), lines.index(END_OF_ATTRIBUTES)
    values: dict[str, dict[str, str]] = {}
    for line in lines[paths_end + 1 : end]:
        if found := re.fullmatch(rf"{BUS}/([^/]+)/([^:]+):(.*)", line):
            values.setdefault(found[1], {})[found[2]] = found[3].strip()
    functions = {}
    for line in lines[:paths_end]:
        path = tuple(line.removeprefix("/sys/devices/").split("/"))
        address, have = path[-1], values.get(path[-1], {})
        if path[0].startswith("pci") and {"vendor", "device", "class"} <= have.keys():
            functions[address] = Function(
                address=address,
                path=path,
                vendor=int(have["vendor"], 16),
                device=int(have["device"], 16),
                class_code=int(have["class"], 16),
                node=int(have.get("numa_node", "-1")),
                link=_link(have),
                iommu=have.get("iommu_group/type", ""),
            )
    cards = [[cell.strip() for cell in line.split(",")] for line in lines[end + 1 :]]
    cards = [card for card in cards if len(card) == 3 and card[0].isdigit()]
    addresses = {
        index: f"{int(bus.partition(':')[0], 16):04x}:{bus.partition(':')[2].lower()}" for index, bus, _ in cards
    }
    return PciTopologyValue(
        functions,
        {addresses[index]: int(index) for index, _, _ in cards},
        {addresses[index]: name for index, _, name in cards},
    )


def _link(have: Mapping[str, str]) -> Link:
    def generation(name: str) -> int:
        return GENERATIONS.get(have.get(name, "").partition(" ")[0], 0)

    def lanes(name: str) -> int:
        text = have.get(name, "")
        # Virtual functions and bridges of old machines have 255 for unknown.
        return int(text) if text.isdigit() and int(text) <= 32 else 0

    return Link(
        generation("current_link_speed"),
        lanes("current_link_width"),
        generation("max_link_speed"),
        lanes("max_link_width"),
    )


def parse_access_control(lines: list[str]) -> dict[str, int]:
    """Parse `ADDRESS` lines, each followed by the bytes of its configuration space in hexadecimal.

    Return the control bits of access control by address; ports without that capability are left out.
    """
    found = {}
    address = ""
    for line in lines:
        if line.startswith("/"):
            address = line.removesuffix("/config").rpartition("/")[2]
        elif address and (control := access_control(bytes.fromhex(line))) is not None:
            found[address] = control
    return found


class PciTopology(FactBase[PciTopologyValue]):
    """The PCI bus as a tree, with links, NUMA nodes and how the IOMMU treats each device."""

    @staticmethod
    def default() -> PciTopologyValue:
        return PciTopologyValue()

    def command(self) -> str:
        attributes = " ".join(f"{BUS}/*/{name}" for name in ATTRIBUTES)
        return (
            f"readlink -f {BUS}/* 2>/dev/null; echo '{END_OF_PATHS}'; grep -H . {attributes} 2>/dev/null; "
            f"echo '{END_OF_ATTRIBUTES}'; "
            "nvidia-smi --query-gpu=index,pci.bus_id,name --format=csv,noheader 2>/dev/null || true"
        )

    @reading
    def process(self, output: list[str]) -> PciTopologyValue:
        return parse_topology(output)


class AccessControl(FactBase[dict[str, int]]):
    """The access control bits (ACS) of these ports, by address. Only root can read them."""

    @staticmethod
    def default() -> dict[str, int]:
        return {}

    def command(self, ports: Sequence[str]) -> StringCommand:
        paths = [QuoteString(f"{BUS}/{port}/config") for port in ports]
        return StringCommand(
            "find -L /dev/null", *paths, r"-size 4096c -print -exec od -An -v -tx1 -w4096 {} ';' 2>/dev/null || true"
        )

    @reading
    def process(self, output: list[str]) -> dict[str, int]:
        return parse_access_control(output)
