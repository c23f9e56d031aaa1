"""The kernel's side of the driver: headers to build against, module options, kernel arguments."""

from __future__ import annotations

from pyinfra.api.deploy import deploy
from pyinfra.context import host

from rigup.distros.table import header_packages
from rigup.facts.kernel import KernelState
from rigup.facts.packages import InstalledVersions
from rigup.operations import apt, boot, files
from tasks.context import Context

__all__ = ["kernel"]

MODPROBE = "/etc/modprobe.d/rigup.conf"
GRUB = "/etc/default/grub.d/60-rigup.cfg"


@deploy("kernel")
def kernel(context: Context) -> None:
    """Headers for the kernel that boots next and those after it, options of modules, the arguments it boots with."""
    # Both as they were before the run.
    images = host.get_fact(InstalledVersions, names=["linux-image-*"])
    headers, *metas = header_packages(context.distro, host.get_fact(KernelState).newest, images)
    apt.install(
        name="Install the kernel headers",
        packages=dict.fromkeys((headers, *metas)),
        # Mirrors drop the headers of old kernels: then the newest kernel comes, and the one reboot boots it.
        or_else={headers: [name.replace("linux-headers-", "linux-image-", 1) for name in metas]},
    )

    options = "".join(
        f"options {module} {' '.join(f'{key}={value}' for key, value in sorted(values.items()))}\n"
        for module, values in sorted(context.settings.modprobe_options.items())
    )
    written = files.install(name="Set the module options", dest=MODPROBE, content=options)
    boot.initramfs(name="Carry the module options into the initramfs", source=MODPROBE, written=written)

    # A drop-in that appends: what others have put into GRUB_CMDLINE_LINUX_DEFAULT stays.
    arguments = " ".join(context.settings.kernel_args)
    line = f'GRUB_CMDLINE_LINUX_DEFAULT="${{GRUB_CMDLINE_LINUX_DEFAULT}} {arguments}"\n' if arguments else ""
    written = files.install(name="Set the kernel arguments", dest=GRUB, content=line)
    boot.grub(name="Carry the kernel arguments into GRUB's menu", source=GRUB, written=written)
