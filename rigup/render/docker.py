"""Render an endpoint as a `docker run` command. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from rigup.paths import DOCKER
from rigup.plan.model import EndpointPlan, Mount

__all__ = ["DOCKER", "NO_LOG", "cache_volumes", "device_arguments", "docker_argv", "mount_arguments"]

NO_LOG = "--log-driver=none"


def docker_argv(endpoint: EndpointPlan) -> list[str]:
    """Return the command that serves an endpoint in a container. Raises ValueError for one without a container."""
    if endpoint.image is None:
        raise ValueError(f"endpoint {endpoint.name} has no image")
    arguments = [DOCKER, "run", "--rm", "--init", f"--name={endpoint.container}"]
    # The deploy pulls: 30 GB would take longer than a unit may take to start.
    arguments.append("--pull=never")
    # The attached client forwards the output to the journal; a log driver would store it a second time.
    arguments.append(NO_LOG)
    # NCCL needs the host's shared memory (then --shm-size has no effect); endpoints listen on the host's loopback.
    # Docker refuses both to a container whose users are remapped (`userns-remap` in daemon.json).
    arguments += ["--network=host", "--ipc=host", "--userns=host"]
    arguments += [f"--label=rigup.endpoint={endpoint.name}", f"--label=rigup.plan={endpoint.digest}"]
    # CDI names, not --gpus: with that a container loses its GPUs at the next systemctl daemon-reload.
    arguments += device_arguments(endpoint)
    arguments += [f"--ulimit={limit}={value}" for limit, value in sorted(endpoint.ulimits.items())]
    arguments += mount_arguments(endpoint.mounts)
    volumes = cache_volumes(endpoint)
    arguments += [f"--mount=type=volume,source={volume},target={path}" for path, volume in volumes.items()]
    arguments += [f"--mount=type=tmpfs,target={path}" for path in endpoint.tmpfs]
    # It runs as the container's root but needs none of root's privileges.
    arguments += ["--cap-drop=ALL", "--security-opt=no-new-privileges"]
    arguments += [f"--security-opt={value}" for value in endpoint.security_opt]
    arguments.append(f"--env-file={endpoint.env_file}")
    return [*arguments, endpoint.image, *endpoint.argv]


def device_arguments(endpoint: EndpointPlan) -> list[str]:
    """Return the arguments that give a container its GPUs."""
    devices = ["all"] if endpoint.gpus == "all" else [str(gpu) for gpu in endpoint.gpus]
    return [f"--device=nvidia.com/gpu={device}" for device in devices]


def mount_arguments(mounts: Iterable[Mount]) -> list[str]:
    """Return the arguments for these read-only mounts."""
    return [f"--mount=type=bind,source={mount.source},target={mount.target},readonly" for mount in mounts]


def cache_volumes(endpoint: EndpointPlan) -> dict[str, str]:
    """Return the volumes for an endpoint's caches, such as compiled kernels, by their path in the container."""
    return {path: f"{endpoint.container}{path.replace('/', '-')}" for path in endpoint.caches if endpoint.image}
