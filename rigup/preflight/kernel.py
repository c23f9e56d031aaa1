"""Preflight's checks of the kernel: its arguments, the boot loader that sets them, and the modules that may load."""

from __future__ import annotations

from rigup.boot_loader import GRUB_ARGUMENTS, GRUB_DEFAULTS, grub_drop_in
from rigup.host_config import shell_variables
from rigup.paths import GRUB_CONFIG
from rigup.preflight.snapshot import HostCheck

# On a machine with 256 CPUs, `amd_iommu=off` cost one (the kernel logged "CPU 239 has invalid APIC ID ff").
CPUS_WITHOUT_IOMMU = 254
IOMMU_OFF = ("iommu=off", "amd_iommu=off", "intel_iommu=off")


def disabled(host: HostCheck) -> None:
    """Check that nothing keeps the driver's modules from loading."""
    found = [f"`{line}` in {path}" for path, lines in host.facts.system.disabled_modules.items() for line in lines]
    for argument in host.facts.system.kernel_arguments:
        name, _, modules = argument.partition("=")
        if name == "module_blacklist" and "nvidia" in modules.split(","):
            found.append(f"`{argument}` among the kernel's arguments")
    if found:
        host.problem(
            "driver-disabled",
            f"{', '.join(found)}: the driver would be installed, but never load",
            "remove that, and run `update-initramfs -u -k all`; Ubuntu's tool for it is `prime-select on-demand`",
        )


def kernel_args(host: HostCheck) -> None:
    """Check that missing kernel arguments can be set: only GRUB is supported."""
    lacking = [argument for argument in host.settings.kernel_args if argument not in host.facts.system.kernel_arguments]
    if lacking and not host.facts.system.uses_grub:
        host.problem(
            "kernel-boot-loader",
            f"the kernel was booted without {' '.join(lacking)} (`kernel_args`), and not by GRUB",
            "add them to the configuration of this host's boot loader, such as /etc/kernel/cmdline, apply that (on "
            "Proxmox with `proxmox-boot-tool refresh`), and reboot; or set `kernel_args: []`",
        )
    elif lacking and (found := _overriding(host)):
        path, lost = found
        host.problem(
            "kernel-grub-file",
            f"{path} sets {GRUB_ARGUMENTS} anew, without {' '.join(lost)} (`kernel_args`) of {GRUB_CONFIG}",
            f'begin its value with "${GRUB_ARGUMENTS} ", or add the arguments to it',
        )


def _overriding(host: HostCheck) -> tuple[str, list[str]] | None:
    """Return the default file of GRUB in which arguments of ours get lost, and those; None if there is none."""
    texts = {**host.facts.system.grub_defaults, GRUB_CONFIG: grub_drop_in(host.settings.kernel_args)}
    names: dict[str, str] = {}
    # grub-mkconfig reads the directory after the file.
    for path in sorted(texts, key=lambda path: (path != GRUB_DEFAULTS, path)):
        names = shell_variables([texts[path]], names)
        words = f"{names.get('GRUB_CMDLINE_LINUX', '')} {names.get(GRUB_ARGUMENTS, '')}".split()
        lost = [argument for argument in host.settings.kernel_args if argument not in words]
        if lost and path > GRUB_CONFIG:
            return path, lost
    return None


def iommu(host: HostCheck) -> None:
    """Check that no kernel argument turns the IOMMU off on a machine that needs it."""
    off = [argument for argument in host.settings.kernel_args if argument in IOMMU_OFF]
    if off and host.facts.hardware.cpus > CPUS_WITHOUT_IOMMU:
        host.problem(
            "kernel-iommu",
            f"{' '.join(off)} (`kernel_args`), and {host.facts.hardware.cpus} CPUs: without an IOMMU, CPUs with an "
            "APIC ID of 255 or more do not start",
            "set iommu=pt instead, which also lets GPUs access each other's memory",
        )
