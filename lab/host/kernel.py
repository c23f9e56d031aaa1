"""The simulated kernel: which modules a host's kernel would load, given its hardware and what is on its disk at boot.

Nothing here keeps state: `boot` reads a root directory, `kernel_view` writes what the host sees.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lab.host import modprobe
from lab.host.hardware import Hardware
from lab.host.rooted import resolve
from lab.mirror.kernel_module import read_modinfo

# NVIDIA's modules in load order; each depends on the first.
NVIDIA_MODULES = ("nvidia", "nvidia_modeset", "nvidia_drm", "nvidia_uvm")

# Only the open modules support Blackwell: the proprietary ones load, then refuse the card.
OPEN_LICENSE = "Dual MIT/GPL"

# A subset of the parameters in sysfs, with their defaults (modinfo -p of the open modules).
_PARAMETERS: Mapping[str, Mapping[str, str]] = {
    "nvidia_uvm": {"uvm_disable_hmm": "N", "uvm_ats_mode": "1", "uvm_debug_prints": "0"},
    "nvidia_drm": {"modeset": "Y", "fbdev": "Y"},
    "nvidia_modeset": {"vblank_sem_control": "Y"},
    "nouveau": {"modeset": "-1"},
}

# /proc/driver/nvidia/params of the open modules, in their order; module options set them with the prefix NVreg_.
_NVIDIA_PARAMS = """
ResmanDebugLevel=4294967295 RmLogonRC=1 ModifyDeviceFiles=1 DeviceFileUID=0 DeviceFileGID=0 DeviceFileMode=438
InitializeSystemMemoryAllocations=1 UsePageAttributeTable=4294967295 EnableMSI=1 EnablePCIeGen3=0 MemoryPoolSize=0
KMallocHeapMaxSize=0 VMallocHeapMaxSize=0 IgnoreMMIOCheck=0 EnableStreamMemOPs=0 EnableUserNUMAManagement=1
NvLinkDisable=0 RmProfilingAdminOnly=1 PreserveVideoMemoryAllocations=0 EnableS0ixPowerManagement=0
S0ixPowerManagementVideoMemoryThreshold=256 DynamicPowerManagement=3 DynamicPowerManagementVideoMemoryThreshold=200
RegisterPCIDriver=1 EnablePCIERelaxedOrderingMode=0 EnableResizableBar=0 EnableGpuFirmware=18 EnableGpuFirmwareLogs=2
RmNvlinkBandwidthLinkCount=0 EnableDbgBreakpoint=0 OpenRmEnableUnsupportedGpus=1 DmaRemapPeerMmio=1
ImexChannelCount=2048 CreateImexChannel0=0 GrdmaPciTopoCheckOverride=0 CoherentGPUMemoryMode="" RegistryDwords=""
RegistryDwordsPerDevice="" RmMsg="" GpuBlacklist="" TemporaryFilePath="" ExcludedGpus=""
"""

_TRUE = {"y", "Y", "1", "t", "T", "on", "ON", "On"}
_FALSE = {"n", "N", "0", "f", "F", "off", "OFF", "Off"}


@dataclass(frozen=True)
class Module:
    """A loaded module; `version` is that of its file at boot."""

    name: str
    version: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Kernel:
    """The kernel's state after boot."""

    release: str
    cmdline: str
    modules: Mapping[str, Module]
    nvidia_params: Mapping[str, str]
    log: tuple[str, ...]

    @property
    def driver_version(self) -> str | None:
        """The version of the loaded nvidia module, None without one."""
        return self.modules["nvidia"].version if "nvidia" in self.modules else None


def default_cmdline(kver: str) -> str:
    """Return the command line of a host whose boot loader was never configured."""
    return f"BOOT_IMAGE=/boot/vmlinuz-{kver} root=/dev/vda1 ro quiet"


def boot_release(root: Path, kver: str) -> str:
    """Return the release of the kernel that grub.cfg's first entry boots; `kver` without a menu."""
    match = re.match(r"BOOT_IMAGE=\S*vmlinuz-(\S+)", boot_cmdline(root, kver))
    return match[1] if match else kver


def boot_cmdline(root: Path, kver: str) -> str:
    """Return the command line of grub.cfg's first entry, which boots with GRUB_DEFAULT=0."""
    try:
        text = resolve(root, "/boot/grub/grub.cfg").read_text(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return default_cmdline(kver)
    match = re.search(r"^\s*linux\s+(\S+)[ \t]*(.*)$", text, re.MULTILINE)
    if match is None:
        return default_cmdline(kver)
    return f"BOOT_IMAGE={match[1]} {match[2]}".rstrip()


def module_files(root: Path, kver: str) -> dict[str, Path]:
    """Return the file of each module that modprobe can load: listed by depmod, and still on the disk."""
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
    """Return the parameters in sysfs after loading with these options; None when the kernel would refuse a value."""
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
    """Boot from a disk: determine which modules load, with which parameters, and the kernel log."""
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
    return Kernel(kver, cmdline, modules, _nvidia_params(configuration.module_options("nvidia")), tuple(log))


def _license(path: Path) -> str | None:
    try:
        return read_modinfo(path.read_bytes()).get("license")
    except ValueError:
        return None


def _nvidia_params(options: Mapping[str, str]) -> dict[str, str]:
    params = {key: value for key, _, value in (word.partition("=") for word in _NVIDIA_PARAMS.split())}
    for key, value in options.items():
        name = key.removeprefix("NVreg_")
        if name != key and name in params:
            params[name] = f'"{value}"' if params[name].startswith('"') else value
    return params
