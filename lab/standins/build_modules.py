#!/usr/bin/env python3
"""Runs in place of a compiler under DKMS: writes the driver's module files for one kernel.

usage: build_modules.py KERNEL HEADERS VERSION LICENSE
"""

import sys
from pathlib import Path

from kernel_module import module_image

ALIASES = ("pci:v000010DEd*sv*sd*bc03sc02i00*", "pci:v000010DEd*sv*sd*bc03sc00i00*")
# Name, required modules, own fields: what depmod, modprobe and modinfo read.
MODULES: tuple[tuple[str, str, list[tuple[str, str]]], ...] = (
    ("nvidia", "", [("alias", alias) for alias in ALIASES]),
    ("nvidia-uvm", "nvidia", [("parm", "uvm_disable_hmm:Force-disable HMM functionality in the UVM driver. (bool)")]),
    ("nvidia-modeset", "nvidia", []),
    ("nvidia-drm", "nvidia-modeset", [("parm", "modeset:Enable atomic kernel modesetting (bool)")]),
    ("nvidia-peermem", "nvidia", []),
)


def main(arguments: list[str]) -> int:
    kernel, headers, version, licence = arguments
    release = Path(headers, "include/config/kernel.release")
    if not release.exists() or release.read_text().strip() != kernel:
        print(f"*** {headers} does not hold the headers of a configured {kernel} kernel.", file=sys.stderr)
        print("*** Unable to determine the target kernel version. ***", file=sys.stderr)
        return 1
    for name, depends, own in MODULES:
        if name in ("nvidia", "nvidia-modeset", "nvidia-drm"):
            own = [("version", version), *own]
        fields = [*own, ("license", licence), ("depends", depends), ("name", name.replace("-", "_"))]
        fields.append(("vermagic", f"{kernel} SMP preempt mod_unload "))
        Path(f"{name}.ko").write_bytes(module_image(fields))
        print(f"  LD [M]  {name}.ko")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
