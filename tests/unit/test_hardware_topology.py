"""The PCI bus as a tree, from sysfs: how GPUs are connected, and what follows."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from rigup.facts import pci
from rigup.facts.pci import AccessControl, PciTopology, PciTopologyValue, parse_topology
from rigup.hardware.topology import Topology, consequences, drawing
from tests.unit import pci_tree

CARDS = [
    f"{index}, 0000{address.upper()}, NVIDIA RTX PRO 6000 Blackwell Workstation Edition"
    for index, address in enumerate((pci_tree.GPU_A, pci_tree.GPU_B, pci_tree.GPU_C))
]


def read(root: Path, monkeypatch: pytest.MonkeyPatch, cards: list[str] | None = None) -> PciTopologyValue:
    """Run the fact's own command on the tree."""
    monkeypatch.setattr(pci, "BUS", f"{root}/sys/bus/pci/devices")
    command = PciTopology().command().replace("readlink -f", "realpath")
    said = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout
    lines = said.replace(f"{root}/sys/devices", "/sys/devices").splitlines()
    return parse_topology([*lines, *(CARDS if cards is None else cards)])


@pytest.fixture
def topology(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Topology:
    pci_tree.write(tmp_path, {pci_tree.PORT: 0x1D, pci_tree.DOWN_A: 0, pci_tree.OTHER_PORT: 0x1F})
    return read(tmp_path, monkeypatch)


def test_the_tree_is_drawn_with_links(topology: Topology) -> None:
    card = "NVIDIA RTX PRO 6000 Blackwell Workstation Edition (10de:2bb1)"
    assert drawing(topology) == [
        "socket 0",
        "└─ root bus 0000:40",
        "   └─ bridge 0000:40:01.1 (1022:153b)",
        "      └─ bridge 0000:41:00.0 (10b5:c010)",
        "         ├─ bridge 0000:42:00.0 (10b5:c010)",
        f"         │  └─ GPU 0  {card}  0000:43:00.0  PCIe 5.0 x16",
        "         └─ bridge 0000:42:01.0 (10b5:c010)",
        f"            └─ GPU 1  {card}  0000:44:00.0  PCIe 5.0 x8 (card: x16)",
        "socket 1",
        "└─ root bus 0000:c0",
        "   └─ bridge 0000:c0:03.1 (1022:153b)",
        f"      └─ GPU 2  {card}  0000:c1:00.0  PCIe 1.0 x16 (card: 5.0)",
    ]


def test_what_follows_is_said_with_the_setting_that_helps(topology: Topology) -> None:
    said = consequences(topology, {pci_tree.PORT: 0x1D, pci_tree.DOWN_A: 0, pci_tree.OTHER_PORT: 0x1F})
    assert [line.partition(":")[0] for line in said] == [
        "GPU 0, GPU 1 share a switch",
        "The GPUs are on 2 sockets",
        "The IOMMU translates addresses of GPU 1",
        "PCIe access control (ACS) is on at 0000",
        "GPU 1 use fewer lanes than they have",
    ]
    assert "kernel_args: [iommu=pt]" in said[2] and "`acs: off`" in said[3] and "NCCL_P2P_LEVEL: SYS" in said[1]


def test_the_ports_are_those_above_gpus_and_their_registers_are_read(
    topology: Topology, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert topology.ports == [
        pci_tree.PORT,
        pci_tree.UP,
        pci_tree.DOWN_A,
        pci_tree.DOWN_B,
        pci_tree.OTHER_PORT,
    ]
    fact = AccessControl()
    command = fact.command(ports=topology.ports).get_raw_value()
    said = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout
    assert fact.process(said.splitlines()) == {pci_tree.PORT: 0x1D, pci_tree.DOWN_A: 0, pci_tree.OTHER_PORT: 0x1F}


def test_one_socket_and_no_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pci_tree.DEVICES[pci_tree.GPU_C], "numa_node", "0")
    pci_tree.write(tmp_path, {})
    topology = read(tmp_path, monkeypatch, cards=[])
    said = consequences(topology, {})
    assert (
        said[0] == "GPU at 0000:43:00.0, GPU at 0000:44:00.0 share a switch: they copy to each other without the CPU."
    )
    assert said[1].startswith("The GPUs are on one socket: `NCCL_P2P_LEVEL: PHB`")


# Read on a machine with one H200: a virtual machine shows no bridges and no NUMA node.
H200 = [
    "/sys/devices/pci0000:00/0000:00:00.0",
    "/sys/devices/pci0000:00/0000:00:06.0",
    "--- attributes",
    "/sys/bus/pci/devices/0000:00:00.0/vendor:0x8086",
    "/sys/bus/pci/devices/0000:00:06.0/vendor:0x10de",
    "/sys/bus/pci/devices/0000:00:00.0/device:0x0d57",
    "/sys/bus/pci/devices/0000:00:06.0/device:0x2335",
    "/sys/bus/pci/devices/0000:00:00.0/class:0x060000",
    "/sys/bus/pci/devices/0000:00:06.0/class:0x030200",
    "/sys/bus/pci/devices/0000:00:06.0/numa_node:-1",
    "/sys/bus/pci/devices/0000:00:06.0/current_link_speed:32.0 GT/s PCIe",
    "/sys/bus/pci/devices/0000:00:06.0/current_link_width:16",
    "/sys/bus/pci/devices/0000:00:06.0/max_link_speed:32.0 GT/s PCIe",
    "/sys/bus/pci/devices/0000:00:06.0/max_link_width:16",
    "--- cards",
    "0, 00000000:00:06.0, NVIDIA H200",
]


def test_a_virtual_machine_with_one_card() -> None:
    topology = PciTopology().process(H200)
    assert drawing(topology) == [
        "socket not named by the firmware",
        "└─ root bus 0000:00",
        "   └─ GPU 0  NVIDIA H200 (10de:2335)  0000:00:06.0  PCIe 5.0 x16",
    ]
    assert consequences(topology, {}) == ["One GPU: nothing is copied between cards."]
    assert consequences(Topology(), {}) == ["No NVIDIA GPU is on the bus."]
