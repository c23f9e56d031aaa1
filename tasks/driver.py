"""NVIDIA's driver with open kernel modules, at the locked version, from NVIDIA's own repository."""

from __future__ import annotations

import posixpath

from pyinfra.api.deploy import deploy
from pyinfra.context import host
from pyinfra.facts.deb import DebPackages
from pyinfra.operations import files as pyinfra_files

from rigup.distros.apt_sources import repositories, superseded_sources
from rigup.distros.driver import PIN, conflicting, other_drivers
from rigup.facts.packages import AptSources
from rigup.lock.packages import driver_install
from rigup.operations import apt, files, systemd
from tasks.context import Context

__all__ = ["PERSISTENCED", "PERSISTENCED_DROP_IN", "driver"]

KEYRING = "/var/cache/rigup/cuda-keyring.deb"
PERSISTENCED = "nvidia-persistenced.service"
PERSISTENCED_DROP_IN = f"/etc/systemd/system/{PERSISTENCED}.d/rigup.conf"


@deploy("driver")
def driver(context: Context) -> None:
    """The CUDA repository and its key, the branch pin, the driver, persistence."""
    # Packages that get in the way were there before the run; nothing in it installs one.
    installed = host.get_fact(DebPackages)
    apt.absent(
        name="Remove packages that conflict with NVIDIA's and Docker's own",
        packages=conflicting(installed),
    )

    cuda = repositories(context.distro, context.settings)["cuda"]
    sources: dict[str, set[str]] = host.get_fact(AptSources)
    for path in superseded_sources(cuda, sources):
        files.absent(name=f"Remove {path}, which names the same repository", path=path)
    pyinfra_files.directory(name="Make a place for the keyring package", path=posixpath.dirname(KEYRING))
    files.download(
        name="Fetch the CUDA repository's keyring package",
        src=cuda.key_url,
        dest=KEYRING,
        sha256sum=context.lock.keys[cuda.key_url],
        _env=context.proxies.apt,
    )
    apt.keyring(
        name="Install the CUDA repository's keyring", package="cuda-keyring", src=KEYRING, brings=cuda.source_path
    )
    # The package brings NVIDIA's own address; a mirror is named here.
    files.install(name="Name the CUDA repository", dest=cuda.source_path, content=cuda.source_text)

    wanted = driver_install(context.lock, context.distro, context.settings)
    others = other_drivers(installed, wanted)
    if wanted.pin:
        # A pin that arrives in the same transaction has no say in it. There can be only one.
        pins = [name for name in others if name.startswith(PIN)]
        apt.install(
            name=f"Pin the driver branch {context.settings.driver_branch}", packages=wanted.pin, instead_of=pins
        )
        others = [name for name in others if name not in pins]
    apt.install(name=f"Install the driver {wanted.version}", packages=wanted.packages, instead_of=others)

    mode = "--persistence-mode" if context.settings.persistence else "--no-persistence-mode"
    drop_in = files.install(
        name="Set the driver's persistence",
        dest=PERSISTENCED_DROP_IN,
        # Ubuntu's unit says --no-persistence-mode; the empty line takes its command away first.
        content=f"[Service]\nExecStart=\nExecStart=/usr/bin/nvidia-persistenced --verbose {mode}\n",
    )
    systemd.enabled(name="Start the persistence daemon at boot", unit=PERSISTENCED, reload_for=[drop_in])
