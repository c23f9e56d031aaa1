"""What the driver needs of the kernel: headers to build against, module options, kernel arguments."""

from __future__ import annotations

from pyinfra.api.deploy import deploy
from pyinfra.context import host

from rigup.boot_loader import grub_drop_in
from rigup.distros.table import KERNEL_PACKAGES, header_packages
from rigup.facts.kernel import KernelState
from rigup.facts.packages import InstalledVersions
from rigup.operations import apt, boot, files
from rigup.paths import GRUB_CONFIG, MODPROBE_CONFIG
from tasks.context import Context


@deploy("kernel")
def kernel(context: Context) -> None:
    """Install headers for the kernel that boots next and for later ones; set module options and kernel arguments."""
    # Both from before the run.
    installed = host.get_fact(InstalledVersions, names=list(KERNEL_PACKAGES))
    headers = header_packages(context.distro, host.get_fact(KernelState).boots_next, installed)
    apt.install(
        name="Install the kernel headers",
        packages=dict.fromkeys((headers.package, *headers.metas)),
        # Mirrors drop the headers of old kernels: then install the newest kernel, which the reboot starts.
        or_else={headers.package: headers.kernels} if headers.kernels else {},
    )

    options = "".join(
        f"options {module} {' '.join(f'{key}={value}' for key, value in sorted(values.items()))}\n"
        for module, values in sorted(context.settings.modprobe_options.items())
    )
    written = files.install(name="Set the module options", dest=MODPROBE_CONFIG, content=options)
    boot.initramfs(name="Update the initramfs", source=MODPROBE_CONFIG, written=written)

    line = grub_drop_in(context.settings.kernel_args)
    written = files.install(name="Set the kernel arguments", dest=GRUB_CONFIG, content=line)
    boot.grub(name="Update the GRUB menu", source=GRUB_CONFIG, written=written)
