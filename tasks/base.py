"""What every later step stands on: an apt that waits its turn, tools, kernel settings, updates kept off the driver."""

from __future__ import annotations

from pyinfra.api.deploy import deploy
from pyinfra.context import host
from pyinfra.facts.server import Sysctl
from pyinfra.operations import server

from rigup.operations import apt, files
from tasks.context import Context

__all__ = ["base"]

# python3-venv for the downloader; curl to fetch keys before their repositories are known.
PACKAGES = ("ca-certificates", "curl", "python3", "python3-venv")

# pyinfra 3.10 does not wait for apt's lock, and a fresh cloud image updates itself when it first boots.
LOCK_TIMEOUT_S = 600

# A driver that changes under a serving endpoint breaks the next process that starts.
HELD_BACK = ("nvidia-", "libnvidia-", "cuda-", "docker-ce", "containerd\\.io$", "linux-modules-nvidia-")


@deploy("base")
def base(context: Context) -> None:
    """Packages, apt's lock timeout, sysctl values in effect and kept, unattended upgrades kept off the driver."""
    files.install(
        name="Let apt wait for its lock",
        dest="/etc/apt/apt.conf.d/10rigup-lock-timeout",
        content=f'DPkg::Lock::Timeout "{LOCK_TIMEOUT_S}";\n',
    )
    apt.repair(name="Finish what an interrupted dpkg left behind")
    blacklist = "".join(f'  "{pattern}";\n' for pattern in HELD_BACK)
    files.install(
        name="Keep unattended upgrades off the driver and Docker",
        dest="/etc/apt/apt.conf.d/52rigup-unattended-upgrades",
        content=f"Unattended-Upgrade::Package-Blacklist {{\n{blacklist}}};\n",
    )
    apt.install(name="Install the tools that later steps need", packages=dict.fromkeys(PACKAGES))

    # Which keys a kernel has does not change within a run; one that it lacks would make sysctl fail at every boot.
    known = host.get_fact(Sysctl, keys=sorted(context.settings.sysctl))
    wanted = {key: value for key, value in sorted(context.settings.sysctl.items()) if key in known}
    files.install(
        name="Keep the kernel settings over reboots",
        dest="/etc/sysctl.d/60-rigup.conf",
        content="".join(f"{key} = {value}\n" for key, value in wanted.items()),
    )
    for key, value in wanted.items():
        server.sysctl(name=f"Put {key} into effect", key=key, value=value)
