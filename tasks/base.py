"""The base system: apt that waits for its lock, tools, kernel settings, no unattended updates of the driver."""

from __future__ import annotations

from pyinfra.api.deploy import deploy
from pyinfra.context import host
from pyinfra.facts.server import Sysctl
from pyinfra.operations import server

from rigup.distros.apt_sources import repositories, superseded_sources
from rigup.facts.packages import AptSources
from rigup.operations import apt, files, host_package, run_lock
from rigup.paths import APT_LOCK_CONFIG, APT_UPGRADES_CONFIG, NEEDRESTART_CONFIG, SYSCTL_CONFIG
from tasks.context import Context

# python3-venv for the downloader; curl to download keys before their repositories are configured.
PACKAGES = ("ca-certificates", "curl", "python3", "python3-venv")

# pyinfra 3.10 does not wait for apt's lock, and a fresh cloud image updates itself when it first boots.
LOCK_TIMEOUT_S = 600

# If the driver changes while an endpoint serves, the next process that starts there fails.
HELD_BACK = ("nvidia-", "libnvidia-", "cuda-", "docker-ce", "containerd\\.io$", "linux-modules-nvidia-")

# Ubuntu 24.04 restarts the services whose libraries were upgraded, with every run of apt and of unattended upgrades
# (discourse.ubuntu.com/t/44671). The value of a unit says whether needrestart may.
NOT_RESTARTED = (
    "# Endpoints, gateways, downloads and switches of rigup: a restart cuts off requests and loads models again.\n"
    r"$nrconf{override_rc}{qr(^(llm\@|model-fetch\@|rigup-))} = 0;"
    "\n"
)


@deploy("base")
def base(context: Context) -> None:
    """Lock the host, configure apt and the kernel settings, install tools and the host programs."""
    run_lock.held(name="Lock the host for this run", wait=context.settings.lock == "wait")
    files.install(
        name="Make apt wait for its lock",
        dest=APT_LOCK_CONFIG,
        content=f'DPkg::Lock::Timeout "{LOCK_TIMEOUT_S}";\n',
    )
    # Before anything else of apt: it does nothing at all while two files name different keys for one repository.
    sources: dict[str, set[str]] = host.get_fact(AptSources)
    for repository in repositories(context.distro, context.settings).values():
        for path in superseded_sources(repository, sources):
            files.absent(name=f"Remove the duplicate source {path}", path=path)
    apt.repair(name="Repair interrupted package installations")
    blacklist = "".join(f'  "{pattern}";\n' for pattern in HELD_BACK)
    files.install(
        name="Exclude the driver and Docker from unattended upgrades",
        dest=APT_UPGRADES_CONFIG,
        content=f"Unattended-Upgrade::Package-Blacklist {{\n{blacklist}}};\n",
    )
    files.install(name="Exclude endpoints from automatic restarts", dest=NEEDRESTART_CONFIG, content=NOT_RESTARTED)
    apt.install(name="Install required tools", packages=dict.fromkeys(PACKAGES))
    host_package.installed(name="Install the host programs")

    # The keys of a kernel do not change within a run; a missing one would make sysctl fail at every boot.
    known = host.get_fact(Sysctl, keys=sorted(context.settings.sysctl))
    values = {key: value for key, value in sorted(context.settings.sysctl.items()) if key in known}
    files.install(
        name="Write the kernel settings",
        dest=SYSCTL_CONFIG,
        content="".join(f"{key} = {value}\n" for key, value in values.items()),
    )
    for key, value in values.items():
        server.sysctl(name=f"Apply {key}", key=key, value=value)
