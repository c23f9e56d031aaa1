"""The apt packages that the lock has for a host: the names of its groups, and their versions."""

from __future__ import annotations

from collections.abc import Mapping

from rigup import commands
from rigup.config.settings import Settings
from rigup.distros.driver import PIN, DriverInstall, driver_packages, upstream
from rigup.errors import RigupError
from rigup.lock.lockfile import Lock


def driver_group(settings: Settings) -> str:
    """Return the driver's group in the lock."""
    return f"driver-{settings.driver_version or settings.driver_branch}"


def docker_group(settings: Settings) -> str:
    """Return Docker's group in the lock."""
    return f"docker-{settings.docker_version}" if settings.docker_version else "docker"


def toolkit_group(settings: Settings) -> str:
    """Return the container toolkit's group in the lock."""
    version = settings.container_toolkit_version
    return f"toolkit-{version}" if version else "toolkit"


def cuda_group(settings: Settings) -> str | None:
    """Return the CUDA toolkit's apt package, which is also its group in the lock; None if the setting is off.

    Never `cuda` or `cuda-13-2`: those metapackages depend on a driver.
    """
    return f"cuda-toolkit-{settings.cuda_toolkit}" if settings.cuda_toolkit else None


def driver_install(lock: Lock, distro: str, settings: Settings) -> DriverInstall:
    """Return the driver's exact packages from the lock. Raises RigupError if they were never resolved."""
    table = driver_packages(distro, settings.driver_branch)
    versions = dict(lock.versions(distro, driver_group(settings)))
    pin = {name: version for name, version in versions.items() if name.startswith(PIN)}
    module = versions.get(table.module)
    if module is None:
        raise RigupError(
            f"the lock has no {table.module} for {distro}", f"run `{commands.rigup('update', 'packages')}`"
        )
    packages = {name: version for name, version in versions.items() if name not in pin}
    return DriverInstall(upstream(module), table.module, pin, packages)


def locked_packages(lock: Lock, distro: str, settings: Settings) -> dict[str, Mapping[str, str]]:
    """Return what a host needs: `docker`, `toolkit`, and `cuda` if it is on. Raises RigupError if one is absent."""
    groups = {
        "docker": lock.versions(distro, docker_group(settings)),
        "toolkit": lock.versions(distro, toolkit_group(settings)),
    }
    if cuda := cuda_group(settings):
        groups["cuda"] = lock.versions(distro, cuda)
    return groups
