"""The simulated kernel: what a lab host's kernel would have loaded and shown, given what is on its disk when it boots.

Nothing here keeps state. `boot` reads a root directory, `write` leaves what the host's firmware unit puts in place:

    pci/<bdf>/...        /sys/bus/pci/devices
    module/<name>/...    /sys/module
    proc-driver/...      /proc/driver
    proc-modules         /proc/modules, where the machine below has one; the host's `lsmod` reads it
    cmdline              /proc/cmdline
    lab.json             what the stand-ins for NVIDIA's tools answer from (lab/hardware.py)
"""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lab import modprobe
from lab.hardware import Gpu, Hardware, PciDevice
from lab.kernel_module import read_modinfo
from lab.rooted import resolve

# NVIDIA's modules in the order in which they load; each needs the first.
NVIDIA_MODULES = ("nvidia", "nvidia_modeset", "nvidia_drm", "nvidia_uvm")

# On Blackwell only the open modules work: the proprietary ones load and then refuse the card.
OPEN_LICENSE = "Dual MIT/GPL"

# Sysfs shows these with their defaults; the true ones are many more (modinfo -p of the open modules).
_PARAMETERS: Mapping[str, Mapping[str, str]] = {
    "nvidia_uvm": {"uvm_disable_hmm": "N", "uvm_ats_mode": "1", "uvm_debug_prints": "0"},
    "nvidia_drm": {"modeset": "Y", "fbdev": "Y"},
    "nvidia_modeset": {"vblank_sem_control": "Y"},
    "nouveau": {"modeset": "-1"},
}

# /proc/driver/nvidia/params of the open modules, in their order; options set them with the prefix NVreg_.
_NVIDIA_PARAMS: Mapping[str, str] = {
    "ResmanDebugLevel": "4294967295",
    "RmLogonRC": "1",
    "ModifyDeviceFiles": "1",
    "DeviceFileUID": "0",
    "DeviceFileGID": "0",
    "DeviceFileMode": "438",
    "InitializeSystemMemoryAllocations": "1",
    "UsePageAttributeTable": "4294967295",
    "EnableMSI": "1",
    "EnablePCIeGen3": "0",
    "MemoryPoolSize": "0",
    "KMallocHeapMaxSize": "0",
    "VMallocHeapMaxSize": "0",
    "IgnoreMMIOCheck": "0",
    "EnableStreamMemOPs": "0",
    "EnableUserNUMAManagement": "1",
    "NvLinkDisable": "0",
    "RmProfilingAdminOnly": "1",
    "PreserveVideoMemoryAllocations": "0",
    "EnableS0ixPowerManagement": "0",
    "S0ixPowerManagementVideoMemoryThreshold": "256",
    "DynamicPowerManagement": "3",
    "DynamicPowerManagementVideoMemoryThreshold": "200",
    "RegisterPCIDriver": "1",
    "EnablePCIERelaxedOrderingMode": "0",
    "EnableResizableBar": "0",
    "EnableGpuFirmware": "18",
    "EnableGpuFirmwareLogs": "2",
    "RmNvlinkBandwidthLinkCount": "0",
    "EnableDbgBreakpoint": "0",
    "OpenRmEnableUnsupportedGpus": "1",
    "DmaRemapPeerMmio": "1",
    "ImexChannelCount": "2048",
    "CreateImexChannel0": "0",
    "GrdmaPciTopoCheckOverride": "0",
    "CoherentGPUMemoryMode": '""',
    "RegistryDwords": '""',
    "RegistryDwordsPerDevice": '""',
    "RmMsg": '""',
    "GpuBlacklist": '""',
    "TemporaryFilePath": '""',
    "ExcludedGpus": '""',
}

_TRUE = {"y", "Y", "1", "t", "T", "on", "ON", "On"}
_FALSE = {"n", "N", "0", "f", "F", "off", "OFF", "Off"}


@dataclass(frozen=True)
class Module:
    """A loaded module; `version` is what its file on the disk said at boot."""

    name: str
    version: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Kernel:
    """What the kernel knows after boot."""

    cmdline: str
    modules: Mapping[str, Module]
    nvidia_params: Mapping[str, str]
    log: tuple[str, ...]

    @property
    def driver_version(self) -> str | None:
        """The version of the loaded nvidia module, None without one."""
        return self.modules["nvidia"].version if "nvidia" in self.modules else None


def default_cmdline(kver: str) -> str:
    """The command line of a host whose boot loader was never configured."""
    return f"BOOT_IMAGE=/boot/vmlinuz-{kver} root=/dev/vda1 ro quiet"


def boot_cmdline(root: Path, kver: str) -> str:
    """The command line of grub.cfg's first entry, the one that boots with GRUB_DEFAULT=0."""
    try:
        text = resolve(root, "/boot/grub/grub.cfg").read_text(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return default_cmdline(kver)
    match = re.search(r"^\s*linux\s+(\S+)[ \t]*(.*)$", text, re.MULTILINE)
    if match is None:
        return default_cmdline(kver)
    return f"BOOT_IMAGE={match[1]} {match[2]}".rstrip()


def module_files(root: Path, kver: str) -> dict[str, Path]:
    """Where modprobe finds each module: only what depmod has listed, and only where the file is still there."""
    tree = resolve(root, f"/lib/modules/{kver}")
    try:
        lines = (tree / "modules.dep").read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    found = {}
    for line in lines:
        path = tree / line.partition(":")[0]
        name = modprobe.kernel_name(path.name.partition(".ko")[0])
        if path.is_file():
            found[name] = path
    return found


def _parameters(module: str, options: Mapping[str, str]) -> dict[str, str] | None:
    """Sysfs's parameters after loading with these options; None when the kernel would refuse a value."""
    parameters = dict(_PARAMETERS.get(module, {}))
    for key, value in options.items():
        if key not in parameters:
            continue
        if parameters[key] in "YN":
            if value not in _TRUE | _FALSE:
                return None
            parameters[key] = "Y" if value in _TRUE else "N"
        else:
            parameters[key] = value
    return parameters


def boot(root: Path, hardware: Hardware, kver: str) -> Kernel:
    """Boot from a disk: which modules load, with which parameters, and what the kernel log says about it."""
    cmdline = boot_cmdline(root, kver)
    configuration = modprobe.read(root, cmdline)
    files = module_files(root, kver)
    modules: dict[str, Module] = {}
    log: list[str] = []

    def load(name: str) -> bool:
        parameters = _parameters(name, configuration.module_options(name))
        if parameters is None:
            log.append(f"{name}: a parameter's value is invalid, the module is not loaded")
            return False
        try:
            info = read_modinfo(files[name].read_bytes())
        except (ValueError, OSError) as error:
            log.append(f"{name}: Invalid ELF header magic or format ({error})")
            return False
        if info.get("vermagic", kver).split(" ")[0] != kver:
            log.append(f"{name}: version magic {info['vermagic']!r} should be {kver!r}")
            return False
        modules[name] = Module(name, info.get("version", ""), parameters)
        return True

    wanted = {driver for device in hardware.devices() for driver in device.drivers} - {"nvidia"}
    blocked = configuration.blacklist | configuration.disabled
    for name in sorted(wanted & files.keys() - blocked):
        load(name)
    if hardware.gpus and "nvidia" in files:
        if "nvidia" in blocked:
            log.append("nvidia: blacklisted")
        elif "nouveau" in modules:
            log.append("NVRM: GPU is already bound to nouveau; No NVIDIA devices probed.")
        elif _license(files["nvidia"]) != OPEN_LICENSE:
            log.append("NVRM: installed in this system requires use of the NVIDIA open kernel modules.")
        elif load("nvidia"):
            for name in NVIDIA_MODULES[1:]:
                if name in files and name not in blocked:
                    load(name)
    return Kernel(cmdline, modules, _nvidia_params(configuration.module_options("nvidia")), tuple(log))


def _license(path: Path) -> str | None:
    try:
        return read_modinfo(path.read_bytes()).get("license")
    except ValueError:
        return None


def _nvidia_params(options: Mapping[str, str]) -> dict[str, str]:
    params = dict(_NVIDIA_PARAMS)
    for key, value in options.items():
        name = key.removeprefix("NVreg_")
        if name != key and name in params:
            params[name] = f'"{value}"' if params[name].startswith('"') else value
    return params


def _write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def write(kernel: Kernel, hardware: Hardware, directory: Path) -> None:
    """Write what the host shall see into `directory`, in place of what was there."""
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
    _write(directory / "kernel.log", "".join(f"{line}\n" for line in kernel.log))
    document = hardware.document(kernel.driver_version, "nvidia_uvm" in kernel.modules)
    _write(directory / "lab.json", json.dumps(document, indent=1) + "\n")


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
    """Thirteen lines with first byte, last byte and flags, one behind the other from the 4 TiB that firmware likes."""
    lines, free = [], 1 << 42
    for size in (*device.regions, *[0] * (13 - len(device.regions))):
        # A region lies at a multiple of its size.
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
