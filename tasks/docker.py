"""Docker CE with NVIDIA's runtime and container devices."""

from __future__ import annotations

from typing import Any

from pyinfra.api.deploy import deploy
from pyinfra.context import host
from pyinfra.facts.deb import DebPackages

from rigup.distros.apt_sources import repositories
from rigup.distros.driver import conflicting
from rigup.lock.packages import locked_packages
from rigup.operations import apt, files, systemd
from rigup.operations import docker as docker_operations
from rigup.paths import CDI_UNIT, DOCKER_UNIT
from rigup.plan.docker import daemon_values, kept_keys
from tasks.context import Context


@deploy("docker")
def docker(context: Context) -> None:
    """Add both repositories, install Docker and the container toolkit at their locked versions, configure Docker."""
    for repository in (repositories(context.distro, context.settings)[key] for key in ("docker", "toolkit")):
        files.download(
            name=f"Download the key of the {repository.name} repository",
            src=repository.key_url,
            dest=repository.key_path,
            sha256sum=context.lock.keys[repository.key_url].sha256,
            _env=context.proxies.apt,
        )
        files.install(
            name=f"Add the {repository.name} repository",
            dest=repository.source_path,
            content=repository.source_text,
        )
    packages = locked_packages(context.lock, context.distro, context.settings)
    rolling: dict[str, Any] = {
        "max_unavailable": context.settings.max_unavailable,
        "ready_timeout": context.settings.ready_timeout,
    }
    # Conflicting packages were installed before the run; nothing in it installs one.
    installed = host.get_fact(DebPackages)
    apt.install(
        name="Install Docker", packages=packages["docker"], instead_of=conflicting(installed, "docker"), **rolling
    )
    apt.install(
        name="Install the container toolkit",
        packages=packages["toolkit"],
        instead_of=conflicting(installed, "toolkit"),
    )
    docker_operations.daemon_config(
        name="Configure Docker in daemon.json",
        values=daemon_values(context.settings),
        unless=kept_keys(context.settings),
        **rolling,
    )
    systemd.enabled(name="Enable Docker", unit=DOCKER_UNIT)
    systemd.enabled(name="Enable the GPU list for containers", unit=CDI_UNIT)
