"""NVIDIA's GPUs by PCI device id: what a card is, what it has, and whether rigup promises to serve on it.

Ids and names: the table of supported GPUs in the README of NVIDIA/open-gpu-kernel-modules (595.45.04), and pci.ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """A kind of card.

    `memory_mib` is what nvidia-smi reports, in several sizes if cards of one id differ. `capability` is CUDA's. `watts`
    are the lowest and the highest power limit, None if unknown.
    """

    name: str
    memory_mib: tuple[int, ...]
    capability: str = "12.0"
    watts: tuple[int, int] | None = None


# Memory: captured for 2bb1 to 2bb5, otherwise from public output of nvidia-smi. 2bb3 is also the RTX PRO 5000 with 72
# GB; only the subsystem id differs.
# Power: measured limits in the rtx6kpro wiki for 2bb1, 2bb4 and 2bb5. One board with 2b85 accepts 400 to 575 W
# (thamada/gls, gls/RTX5090_smi.py, driver 570.124.06), others up to 600 W. For the remaining cards no output of
# nvidia-smi with both limits was found; preflight asks the card itself once its driver is loaded.
CARDS: Mapping[int, Card] = {
    0x2B85: Card("GeForce RTX 5090", (32607,), watts=(400, 600)),
    0x2BB1: Card("RTX PRO 6000 Blackwell Workstation Edition", (97887,), watts=(150, 600)),
    0x2BB3: Card("RTX PRO 5000 Blackwell", (48935, 73415)),
    0x2BB4: Card("RTX PRO 6000 Blackwell Max-Q Workstation Edition", (97887,), watts=(250, 325)),
    0x2BB5: Card("RTX PRO 6000 Blackwell Server Edition", (97887,), watts=(300, 600)),
    0x2C02: Card("GeForce RTX 5080", (16303,)),
    0x2C05: Card("GeForce RTX 5070 Ti", (16303,)),
    0x2C31: Card("RTX PRO 4500 Blackwell", (32623,)),
    0x2C34: Card("RTX PRO 4000 Blackwell", (24467,)),
}

SUPPORTED = "RTX PRO 6000, 5000, 4500 or 4000 Blackwell; GeForce RTX 5090, 5080 or 5070 Ti"

_HOPPER = "Hopper (compute capability 9.0)"
_ADA = "Ada (compute capability 8.9)"
_FABRIC = "its NVSwitches need Fabric Manager, which rigup does not install"
_FP4 = "has no FP4, which the recipes use"

# Why rigup makes no promise for a card. Hopper and Ada have no FP4 (CUDA C programming guide, compute capabilities);
# HGX boards need Fabric Manager (NVIDIA's Fabric Manager user guide).
OTHERS: Mapping[int, tuple[str, str]] = {
    0x2321: ("H100 NVL", f"{_HOPPER} {_FP4}"),
    0x2330: ("H100", f"{_HOPPER} {_FP4}"),
    0x2331: ("H100 PCIe", f"{_HOPPER} {_FP4}"),
    0x2335: ("H200", f"{_HOPPER} {_FP4}"),
    0x2339: ("H100", f"{_HOPPER} {_FP4}"),
    0x233B: ("H200 NVL", f"{_HOPPER} {_FP4}"),
    0x2684: ("GeForce RTX 4090", f"{_ADA} {_FP4}"),
    0x26B1: ("RTX 6000 Ada Generation", f"{_ADA} {_FP4}"),
    0x26B9: ("L40S", f"{_ADA} {_FP4}"),
    0x2901: ("B200", f"compute capability 10.0, and {_FABRIC}"),
    0x3182: ("B300", f"compute capability 10.3, and {_FABRIC}"),
}


def described(device: int, name: str = "") -> str:
    """Return a card's name and id, such as `NVIDIA H200 (10de:2335)`; only the id of an unknown card.

    `name` is what the driver calls it.
    """
    known = CARDS[device].name if device in CARDS else OTHERS[device][0] if device in OTHERS else ""
    shown = name or (f"NVIDIA {known}" if known else "")
    return f"{shown} (10de:{device:04x})" if shown else f"10de:{device:04x}"
