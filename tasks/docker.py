"""Docker CE with NVIDIA's runtime and container devices."""

from __future__ import annotations

from typing import Any

from pyinfra.api.deploy import deploy
from pyinfra.context import host

from rigup.config.settings import Settings
from rigup.distros.apt_sources import repositories, superseded_sources
from rigup.facts.packages import AptSources
from rigup.lock.packages import locked_packages
from rigup.operations import apt, files, systemd
from rigup.operations import docker as docker_operations
from tasks.context import Context

__all__ = ["docker"]


@deploy("docker")
def docker(context: Context) -> None:
    """Both repositories, Docker and the container toolkit at their locked versions, our keys in daemon.json."""
    sources = host.get_fact(AptSources)
    for repository in (repositories(context.distro, context.settings)[key] for key in ("docker", "toolkit")):
        for path in superseded_sources(repository, sources):
            files.absent(name=f"Remove {path}, which names the same repository", path=path)
        files.download(
            name=f"Fetch the {repository.name} repository's key",
            src=repository.key_url,
            dest=repository.key_path,
            sha256sum=context.lock.keys[repository.key_url],
            _env=context.proxies.apt,
        )
        files.install(
            name=f"Name the {repository.name} repository",
            dest=repository.source_path,
            content=repository.source_text,
        )
    wanted = locked_packages(context.lock, context.distro, context.settings)
    rolling: dict[str, Any] = {
        "max_unavailable": context.settings.max_unavailable,
        "ready_timeout": context.settings.ready_timeout,
    }
    apt.install(name="Install Docker", packages=wanted["docker"], **rolling)
    apt.install(name="Install the container toolkit", packages=wanted["toolkit"])
    docker_operations.daemon_config(
        name="Merge our keys into daemon.json", values=daemon_values(context.settings), **rolling
    )
    systemd.enabled(name="Start Docker at boot", unit="docker.service")
    systemd.enabled(name="List the GPUs for containers at boot", unit="nvidia-cdi-refresh.service")


def daemon_values(settings: Settings) -> dict[str, Any]:
    """The keys of /etc/docker/daemon.json that are ours; all others stay as they are."""
    values: dict[str, Any] = {
        "runtimes": {"nvidia": {"path": "nvidia-container-runtime", "args": []}},
        "features": {"cdi": True},
        "log-driver": settings.docker_log_driver,
    }
    if settings.registry_mirror:
        values["registry-mirrors"] = [settings.registry_mirror]
    return values
