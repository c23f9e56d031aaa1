"""The hardware of a lab host: the GPUs, a management controller's display, a network card.

The stand-ins for NVIDIA's tools read it from `/usr/lib/lab-hardware/lab.json` on the host:

    {"host": "rig1",
     "loaded_driver": "595.71.05",            # null while no nvidia module is loaded
     "loaded_uvm": true,                      # nvidia_uvm is loaded too
     "gpus": [{"index": 0, "minor": 0, "bdf": "0000:01:00.0", "uuid": "GPU-...", "serial": "165...",
               "name": "NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "device_id": "0x2bb1",
               "subsystem_id": "0x204b", "compute_capability": "12.0", "architecture": "Blackwell",
               "memory_mib": 97887, "reserved_mib": 636, "bar1_mib": 131072, "vbios": "98.02.52.00.02",
               "board_part_number": "900-5G144-2200-000", "gpu_part_number": "2BB1-870-A1",
               "power_limit_w": {"min": 150, "default": 600, "max": 600},
               "pcie": {"generation": 5, "width": 16}, "numa_node": 0}, ...]}
"""

import hashlib
import struct
import uuid
from dataclasses import asdict, dataclass, field
from typing import Any

NVIDIA = 0x10DE
DEFAULT_GPUS = 4
MAX_GPUS = 8


@dataclass(frozen=True)
class PciDevice:
    """One function on the PCI bus, as sysfs shows it. `drivers` are the modules that may bind to it.

    `regions` are the sizes of its windows into memory (BARs) in bytes, 0 for the second half of one of 64 bits.
    """

    bdf: str
    vendor: int
    device: int
    class_code: int
    subsystem_vendor: int
    subsystem_device: int
    drivers: tuple[str, ...] = ()
    regions: tuple[int, ...] = ()
    lanes: int = 0
    card_lanes: int = 0

    def config_space(self) -> bytes:
        """Return the 64-byte standard header (type 0) that lspci reads."""
        header = bytearray(64)
        struct.pack_into("<HHHH", header, 0, self.vendor, self.device, 0x0007, 0x0010)
        struct.pack_into("<I", header, 8, self.class_code << 8 | 0xA1)
        struct.pack_into("<HH", header, 0x2C, self.subsystem_vendor, self.subsystem_device)
        return bytes(header)

    def modalias(self) -> str:
        """Return the alias by which the kernel asks for a driver."""
        base, sub, interface = self.class_code >> 16, self.class_code >> 8 & 0xFF, self.class_code & 0xFF
        return (
            f"pci:v{self.vendor:08X}d{self.device:08X}sv{self.subsystem_vendor:08X}sd{self.subsystem_device:08X}"
            f"bc{base:02X}sc{sub:02X}i{interface:02X}"
        )


@dataclass(frozen=True)
class Gpu:
    """One RTX PRO 6000 Blackwell Workstation Edition. Sizes in MiB, power in watts."""

    index: int
    minor: int
    bdf: str
    uuid: str
    serial: str
    name: str = "NVIDIA RTX PRO 6000 Blackwell Workstation Edition"
    device_id: str = "0x2bb1"
    subsystem_id: str = "0x204b"
    compute_capability: str = "12.0"
    architecture: str = "Blackwell"
    memory_mib: int = 97887
    reserved_mib: int = 636
    bar1_mib: int = 131072
    vbios: str = "98.02.52.00.02"
    board_part_number: str = "900-5G144-2200-000"
    gpu_part_number: str = "2BB1-870-A1"
    power_limit_w: dict[str, int] = field(default_factory=lambda: {"min": 150, "default": 600, "max": 600})
    pcie: dict[str, int] = field(default_factory=lambda: {"generation": 5, "width": 16})
    numa_node: int = 0

    def pci(self) -> PciDevice:
        """Return the card's PCI function: a VGA controller, since the Workstation Edition has display outputs."""
        # Unless blacklisted, nouveau loads first; the first driver to bind keeps the card.
        drivers = ("nouveau", "nvidia")
        return PciDevice(
            self.bdf,
            NVIDIA,
            int(self.device_id, 16),
            0x030000,
            NVIDIA,
            int(self.subsystem_id, 16),
            drivers,
            regions=(64 << 20, self.bar1_mib << 20, 0, 32 << 20, 0, 128),
            lanes=self.pcie["width"],
            card_lanes=16,
        )


@dataclass(frozen=True)
class Hardware:
    """All of a host's devices."""

    host: str
    gpus: tuple[Gpu, ...]
    others: tuple[PciDevice, ...]

    def devices(self) -> tuple[PciDevice, ...]:
        """Return everything on the PCI bus."""
        return tuple(gpu.pci() for gpu in self.gpus) + self.others

    def document(self, loaded_driver: str | None, loaded_uvm: bool) -> dict[str, Any]:
        """Return the content of `/usr/lib/lab-hardware/lab.json` (see the module's docstring)."""
        return {
            "host": self.host,
            "loaded_driver": loaded_driver,
            "loaded_uvm": loaded_uvm,
            "gpus": [asdict(gpu) for gpu in self.gpus],
        }


# A board management controller is also a display device: preflight must not count it as a GPU.
_ASPEED_BMC = PciDevice("0000:04:00.0", 0x1A03, 0x2000, 0x030000, 0x1A03, 0x2000, ("ast",))
_INTEL_X550 = PciDevice("0000:03:00.0", 0x8086, 0x1563, 0x020000, 0x8086, 0x001D, ("ixgbe",))


def describe(host: str, gpus: int = DEFAULT_GPUS) -> Hardware:
    """Return the devices of a lab host, with the same ids, UUIDs and serial numbers for the same name every time.

    Raises ValueError for an impossible number of GPUs.
    """
    if not 0 <= gpus <= MAX_GPUS:
        raise ValueError(f"{gpus} GPUs: a lab host has 0 to {MAX_GPUS}")
    cards = []
    for index in range(gpus):
        seed = f"rigup-lab/{host}/gpu/{index}"
        number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big")
        cards.append(
            Gpu(
                index=index,
                minor=index,
                # One card per root port, as on a board with a slot per root complex.
                bdf=f"0000:{0x01 + 0x20 * index:02x}:00.0",
                uuid=f"GPU-{uuid.uuid5(uuid.NAMESPACE_URL, seed)}",
                serial=f"165{number % 10**10:010d}",
            )
        )
    return Hardware(host, tuple(cards), (_INTEL_X550, _ASPEED_BMC))
