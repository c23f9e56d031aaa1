"""NVIDIA's driver with open kernel modules, at the locked version, from NVIDIA's own repository."""

from __future__ import annotations

from pyinfra.api.deploy import deploy
from pyinfra.context import host
from pyinfra.facts.deb import DebPackages

from rigup.distros.apt_sources import repositories
from rigup.distros.driver import PIN, PREFERENCES, conflicting, other_drivers
from rigup.distros.table import distro_named
from rigup.lock.packages import driver_install
from rigup.operations import apt, files, systemd
from rigup.paths import APT_CUDA_PREFERENCES, PERSISTENCED_DROP_IN, PERSISTENCED_UNIT
from rigup.render.systemd import persistence_text
from tasks.context import Context


@deploy("driver")
def driver(context: Context) -> None:
    """Add the CUDA repository and its key, pin the branch, install the driver, configure persistence."""
    cuda = repositories(context.distro, context.settings)["cuda"]
    files.download(
        name="Download the key of the CUDA repository",
        src=cuda.key_url,
        dest=cuda.key_path,
        sha256sum=context.lock.keys[cuda.key_url].sha256,
        _env=context.proxies.apt,
    )
    if distro_named(context.distro).family == "ubuntu":
        files.install(name="Prefer the CUDA repository", dest=APT_CUDA_PREFERENCES, content=PREFERENCES)
    files.install(name="Add the CUDA repository", dest=cuda.source_path, content=cuda.source_text)

    # Conflicting packages were installed before the run; nothing in it installs one.
    installed = host.get_fact(DebPackages)
    install = driver_install(context.lock, context.distro, context.settings)
    others = other_drivers(installed, install)
    if install.pin:
        # A pin in the same transaction has no effect on it. Only one can be installed.
        pins = [name for name in others if name.startswith(PIN)]
        apt.install(
            name=f"Pin the driver branch {context.settings.driver_branch}", packages=install.pin, instead_of=pins
        )
        others = [name for name in others if name not in pins]
    apt.install(
        name=f"Install the NVIDIA driver {install.version}",
        packages=install.packages,
        instead_of=[*others, *conflicting(installed, "driver")],
    )

    drop_in = files.install(
        name="Configure the persistence daemon",
        dest=PERSISTENCED_DROP_IN,
        content=persistence_text(context.settings.persistence),
    )
    systemd.enabled(name="Enable the persistence daemon", unit=PERSISTENCED_UNIT, reload_for=[drop_in])
