"""A tree of PCI devices as in sysfs: two GPUs behind a switch and one at a port of its own, on two sockets."""

from __future__ import annotations

from pathlib import Path

PORT, UP, DOWN_A, DOWN_B = "0000:40:01.1", "0000:41:00.0", "0000:42:00.0", "0000:42:01.0"
GPU_A, GPU_B, OTHER_PORT, GPU_C = "0000:43:00.0", "0000:44:00.0", "0000:c0:03.1", "0000:c1:00.0"
AUDIO = "0000:c1:00.1"

ROOTS = {
    PORT: "pci0000:40",
    UP: f"pci0000:40/{PORT}",
    DOWN_A: f"pci0000:40/{PORT}/{UP}",
    DOWN_B: f"pci0000:40/{PORT}/{UP}",
    GPU_A: f"pci0000:40/{PORT}/{UP}/{DOWN_A}",
    GPU_B: f"pci0000:40/{PORT}/{UP}/{DOWN_B}",
    OTHER_PORT: "pci0000:c0",
    GPU_C: f"pci0000:c0/{OTHER_PORT}",
    AUDIO: f"pci0000:c0/{OTHER_PORT}",
}
SWITCH = {"vendor": "0x10b5", "device": "0xc010", "class": "0x060400"}
ROOT_PORT = {"vendor": "0x1022", "device": "0x153b", "class": "0x060400"}
GPU = {
    "vendor": "0x10de",
    "device": "0x2bb1",
    "class": "0x030000",
    "current_link_speed": "32.0 GT/s PCIe",
    "current_link_width": "16",
    "max_link_speed": "32.0 GT/s PCIe",
    "max_link_width": "16",
    "iommu_group/type": "identity",
}
DEVICES = {
    PORT: {**ROOT_PORT, "numa_node": "0"},
    UP: {**SWITCH, "numa_node": "0"},
    DOWN_A: {**SWITCH, "numa_node": "0"},
    DOWN_B: {**SWITCH, "numa_node": "0"},
    GPU_A: {**GPU, "numa_node": "0"},
    GPU_B: {**GPU, "numa_node": "0", "current_link_width": "8", "iommu_group/type": "DMA-FQ"},
    OTHER_PORT: {**ROOT_PORT, "numa_node": "1"},
    GPU_C: {**GPU, "numa_node": "1", "current_link_speed": "2.5 GT/s PCIe"},
    AUDIO: {"vendor": "0x10de", "device": "0x22e8", "class": "0x040300", "numa_node": "1"},
}


def config_space(control: int | None) -> bytes:
    """Return 4096 bytes of configuration with this control register of access control; None: without one."""
    config = bytearray(4096)
    # Advanced error reporting, then access control.
    config[0x100:0x104] = (0x0001 | 2 << 16 | (0x140 if control is not None else 0) << 20).to_bytes(4, "little")
    if control is not None:
        config[0x140:0x144] = (0x000D | 1 << 16).to_bytes(4, "little")
        config[0x146:0x148] = control.to_bytes(2, "little")
    return bytes(config)


def write(root: Path, controls: dict[str, int]) -> None:
    """Write the tree below `root`, with these control registers."""
    bus = root / "sys/bus/pci/devices"
    bus.mkdir(parents=True)
    for address, attributes in DEVICES.items():
        directory = root / "sys/devices" / ROOTS[address] / address
        (directory / "iommu_group").mkdir(parents=True)
        for name, value in attributes.items():
            (directory / name).write_text(f"{value}\n")
        (directory / "config").write_bytes(config_space(controls.get(address)))
        (bus / address).symlink_to(directory)


def control(root: Path, address: str) -> int:
    """Return a control register in the tree."""
    config = (root / "sys/bus/pci/devices" / address / "config").read_bytes()
    return int.from_bytes(config[0x146:0x148], "little")
