"""TODO."""

from __future__ import annotations

from collections.abc import Iterable

from rigup.plan.model import EndpointPlan, Mount

__all__ = [
    "DOCKER",
    "cache_volumes",
    "docker_argv",
]


DOCKER = "/usr/bin/docker"


def docker_argv(endpoint: EndpointPlan) -> list[str]:
    """The same for a container. Raises ValueError for an endpoint without."""
    if endpoint.image is None:
        raise ValueError(f"endpoint {endpoint.name} has no image")
    arguments = [DOCKER, "run", "--rm", "--init", f"--name={endpoint.container}"]
    # A pull belongs to the deploy: 30 GB would not arrive within a unit's start.
    arguments.append("--pull=never")
    # The attached client passes the output on to the journal; a log driver would keep it a second time.
    arguments.append("--log-driver=none")
    # NCCL wants the host's shared memory (--shm-size has no effect then); endpoints listen on the host's loopback.
    arguments += ["--network=host", "--ipc=host"]
    arguments += [f"--label=rigup.endpoint={endpoint.name}", f"--label=rigup.plan={endpoint.digest}"]
    # CDI names, not --gpus: the older way loses its GPUs at the next systemctl daemon-reload.
    arguments += _devices(endpoint)
    arguments += [f"--ulimit={limit}={value}" for limit, value in sorted(endpoint.ulimits.items())]
    arguments += _mounts(endpoint.mounts)
    volumes = cache_volumes(endpoint)
    arguments += [f"--mount=type=volume,source={volume},target={path}" for path, volume in volumes.items()]
    arguments += [f"--mount=type=tmpfs,target={path}" for path in endpoint.tmpfs]
    # It serves as the container's root, and needs nothing that makes root more than another user.
    arguments += ["--cap-drop=ALL", "--security-opt=no-new-privileges"]
    arguments += [f"--security-opt={value}" for value in endpoint.security_opt]
    arguments.append(f"--env-file={endpoint.env_file}")
    return [*arguments, endpoint.image, *endpoint.argv]


def _devices(endpoint: EndpointPlan) -> list[str]:
    devices = ["all"] if endpoint.gpus == "all" else [str(gpu) for gpu in endpoint.gpus]
    return [f"--device=nvidia.com/gpu={device}" for device in devices]


def _mounts(mounts: Iterable[Mount]) -> list[str]:
    return [f"--mount=type=bind,source={mount.source},target={mount.target},readonly" for mount in mounts]


def cache_volumes(endpoint: EndpointPlan) -> dict[str, str]:
    """The volumes that keep what an endpoint's server caches, such as compiled kernels, by the path they lie at."""
    return {path: f"{endpoint.container}{path.replace('/', '-')}" for path in endpoint.caches if endpoint.image}
