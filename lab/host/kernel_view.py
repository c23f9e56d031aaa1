"""Write what a booted host's kernel shows in /proc and /sys; the host's firmware unit (guest/lab-hardware) mounts it:

pci/<bdf>/...        /sys/bus/pci/devices
module/<name>/...    /sys/module
proc-driver/...      /proc/driver
proc-modules         /proc/modules, if the machine below has one; the host's `lsmod` reads it
cmdline              /proc/cmdline
osrelease            /proc/sys/kernel/osrelease
lab.json             what the stand-ins for NVIDIA's tools read (hardware.py)
"""

import json
import shutil
from pathlib import Path

from lab.host.hardware import Gpu, Hardware, PciDevice
from lab.host.kernel import Kernel
from lab.host.rooted import resolve

_MODULE_INDEXES = (
    *("alias", "alias.bin", "builtin", "builtin.alias.bin", "builtin.bin", "builtin.modinfo", "dep", "dep.bin"),
    *("devname", "order", "softdep", "symbols", "symbols.bin", "weakdep"),
)


def _write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def write(kernel: Kernel, hardware: Hardware, directory: Path) -> None:
    """Write the view of `kernel` on `hardware` into `directory`, replacing its content."""
    directory.mkdir(parents=True, exist_ok=True)
    for child in directory.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()
    _write_pci(kernel, hardware, directory / "pci")
    _write_modules(kernel, directory)
    _write_proc_driver(kernel, hardware, directory / "proc-driver")
    _write(directory / "cmdline", kernel.cmdline + "\n")
    _write(directory / "osrelease", kernel.release + "\n")
    _write(directory / "kernel.log", "".join(f"{line}\n" for line in kernel.log))
    document = hardware.document(kernel.driver_version, "nvidia_uvm" in kernel.modules)
    _write(directory / "lab.json", json.dumps(document, indent=1) + "\n")


def lend_modules(root: Path, release: str, kver: str) -> None:
    """Let programs that ask the kernel for its release, `kver`, and not `uname`, find the modules of `release`.

    There is no build directory: DKMS would take it for another kernel to build for.
    """
    lent = resolve(root, "/lib/modules") / kver
    shutil.rmtree(lent, ignore_errors=True)
    lent.mkdir()
    for name in ("kernel", "updates", *(f"modules.{each}" for each in _MODULE_INDEXES)):
        (lent / name).symlink_to(f"../{release}/{name}")


def _write_pci(kernel: Kernel, hardware: Hardware, directory: Path) -> None:
    directory.mkdir()
    for device in hardware.devices():
        here = directory / device.bdf
        values = {
            "vendor": f"0x{device.vendor:04x}",
            "device": f"0x{device.device:04x}",
            "class": f"0x{device.class_code:06x}",
            "revision": "0xa1",
            "subsystem_vendor": f"0x{device.subsystem_vendor:04x}",
            "subsystem_device": f"0x{device.subsystem_device:04x}",
            "modalias": device.modalias(),
            "irq": "0",
            "numa_node": "0",
            "enable": "1",
            "resource": _regions(device),
            "current_link_width": str(device.lanes),
            "max_link_width": str(device.card_lanes),
        }
        for name, value in values.items():
            _write(here / name, value + "\n")
        _write(here / "config", device.config_space())
        driver = next((name for name in device.drivers if name in kernel.modules), None)
        if driver is not None:
            (here / "driver").symlink_to(f"../../../../bus/pci/drivers/{driver}")


def _regions(device: PciDevice) -> str:
    """Return thirteen lines of first byte, last byte and flags; addresses start at 4 TiB, as firmware assigns them."""
    lines, free = [], 1 << 42
    for size in (*device.regions, *[0] * (13 - len(device.regions))):
        # The address of a region is a multiple of its size.
        first = -(-free // size) * size if size else 0
        lines.append(f"0x{first:016x} 0x{first + size - 1 if size else 0:016x} 0x{0x14220C if size else 0:016x}")
        free = max(free, first + size)
    return "\n".join(lines)


def _write_modules(kernel: Kernel, directory: Path) -> None:
    (directory / "module").mkdir()
    lines = []
    for module in kernel.modules.values():
        here = directory / "module" / module.name
        _write(here / "initstate", "live\n")
        _write(here / "refcnt", "0\n")
        if module.version:
            _write(here / "version", module.version + "\n")
        for name, value in module.parameters.items():
            _write(here / "parameters" / name, value + "\n")
        lines.append(f"{module.name} 16384 0 - Live 0x0000000000000000\n")
    # lsmod lists the youngest module first.
    _write(directory / "proc-modules", "".join(reversed(lines)))


def _write_proc_driver(kernel: Kernel, hardware: Hardware, directory: Path) -> None:
    directory.mkdir()
    version = kernel.driver_version
    if version is None:
        return
    here = directory / "nvidia"
    _write(
        here / "version",
        f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release Build  (root@{hardware.host})  \n"
        "GCC version:  gcc version 14.2.0 (Debian 14.2.0-19) \n",
    )
    _write(here / "params", "".join(f"{name}: {value}\n" for name, value in kernel.nvidia_params.items()))
    _write(here / "registry", 'Binary: ""\n')
    for gpu in hardware.gpus:
        _write(here / "gpus" / gpu.bdf / "information", _information(gpu, version))


def _information(gpu: Gpu, version: str) -> str:
    return (
        f"Model: \t\t {gpu.name}\n"
        f"IRQ:   \t\t {41 + gpu.index}\n"
        f"GPU UUID: \t {gpu.uuid}\n"
        f"Video BIOS: \t {gpu.vbios.lower()}\n"
        "Bus Type: \t PCIe\n"
        "DMA Size: \t 52 bits\n"
        "DMA Mask: \t 0xfffffffffffff\n"
        f"Bus Location: \t {gpu.bdf}\n"
        f"Device Minor: \t {gpu.minor}\n"
        f"GPU Firmware: \t {version}\n"
        "GPU Excluded:\t No\n"
    )
