"""The commands that check an endpoint's arguments and verify that it serves. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import PurePath

from rigup.catalog.apply_patches import TEMPLATE
from rigup.paths import (
    CHECK_ARGS,
    CHECK_CARDS,
    CLIENT,
    DOCKER,
    HOST_PROGRAM,
    PERSISTENCED_UNIT,
    cards_record,
    verification_of,
)
from rigup.plan.model import EndpointPlan, Mount
from rigup.render.docker import device_arguments, mount_arguments
from rigup.render.systemd import USER, binds, start_seconds

REQUEST_SECONDS = 600
VERIFY_SECONDS = 1800
"""For all requests of a verification. Models that think at length take minutes."""


def check_args_argv(endpoint: EndpointPlan) -> list[str]:
    """Return the command that checks the arguments with the engine's own parser, without loading a model.

    It does not need the checkpoint, whose download may still be running. Of the patched files it only sees the one
    whose path is an argument.
    """
    mounts = [mount for mount in endpoint.mounts if PurePath(mount.source).name == TEMPLATE]
    words = [CHECK_ARGS, endpoint.engine, *endpoint.arguments]
    if endpoint.image is None:
        python = f"{PurePath(endpoint.argv[0]).parent}/python3"
        # systemd expands variables in the arguments of a transient unit, too.
        return [*_confined(endpoint, mounts), "--", python, *(word.replace("$", "$$") for word in words)]
    return [*_container(endpoint, CHECK_ARGS, mount_arguments(mounts)), endpoint.image, *words]


def check_cards_argv(endpoint: EndpointPlan, gpus: int) -> list[str]:
    """Return the command that verifies the endpoint's GPUs with the PyTorch and the settings of its engine.

    `gpus` is how many the host has.
    """
    count = gpus if endpoint.gpus == "all" else len(endpoint.gpus)
    argv = [HOST_PROGRAM, "cards", f"--out={cards_record(endpoint.name)}", f"--unit={PERSISTENCED_UNIT}"]
    argv += [f"--digest={cards_digest(endpoint)}", f"--gpus={count}"]
    if endpoint.env.get("NCCL_P2P_DISABLE") == "1":
        argv.append("--no-p2p")
    if endpoint.image is None:
        python = f"{PurePath(endpoint.argv[0]).parent}/python3"
        return [*argv, "--", *_confined(endpoint, []), "--", python, CHECK_CARDS]
    name = f"rigup-cards-{endpoint.name}"
    # NCCL's processes share memory. The CPU's side of a copy is locked in memory.
    more = [f"--name={name}", "--ipc=host", *(f"--ulimit={limit}={value}" for limit, value in endpoint.ulimits.items())]
    run = _container(endpoint, CHECK_CARDS, more)
    return [*argv, f"--container={name}", "--", *run, endpoint.image, CHECK_CARDS]


def cards_digest(endpoint: EndpointPlan) -> str:
    """Return what a verification of GPUs is about: an engine's libraries, and which cards."""
    engine = endpoint.image or (endpoint.venv.path if endpoint.venv else "")
    return f"{engine} {endpoint.gpus if endpoint.gpus == 'all' else ','.join(map(str, endpoint.gpus))}"


def _container(endpoint: EndpointPlan, program: str, more: Iterable[str]) -> list[str]:
    """Return the start of a command that runs `program` in a throwaway container with the endpoint's GPUs."""
    arguments = [DOCKER, "run", "--rm", "--pull=never", "--log-driver=none", "--network=none", "--userns=host"]
    arguments.append(f"--label=rigup.plan={endpoint.digest}")
    arguments += ["--cap-drop=ALL", "--security-opt=no-new-privileges"]
    # vLLM detects its platform from the GPUs.
    arguments += [*device_arguments(endpoint), *more]
    arguments += [f"--mount=type=bind,source={program},target={program},readonly", f"--env-file={endpoint.env_file}"]
    return [*arguments, "--entrypoint=python3"]


def _confined(endpoint: EndpointPlan, mounts: Iterable[Mount]) -> list[str]:
    """Return the start of a command that runs confined like an engine without a container, and waits for it."""
    settings = [
        f"User={USER}",
        f"EnvironmentFile={endpoint.env_file}",
        f"CacheDirectory=rigup/{endpoint.name}",
        *("ProtectSystem=strict", "ProtectHome=tmpfs", "PrivateTmp=yes", "NoNewPrivileges=yes"),
        *(f"BindReadOnlyPaths={bind}" for bind in binds(mounts)),
    ]
    run = ["systemd-run", "--quiet", "--pipe", "--wait", "--collect"]
    return [*run, *(f"--property={setting}" for setting in settings)]


def gpus_verification(image: str) -> str:
    """Return the name of the verification that containers see the GPUs: one per image, as endpoints may differ."""
    return f"gpus-{image.rpartition(':')[2][:12]}"


def result_arguments(name: str, unit: str, digest: str) -> list[str]:
    """Return the arguments of a verification that say what its result is about, and where to write it."""
    return [f"--out={verification_of(name)}", f"--unit={unit}", f"--digest={digest}"]


def verify_argv(endpoint: EndpointPlan) -> list[str]:
    """Return the command that verifies that the endpoint, as it runs now, does what its recipe is for."""
    return [
        f"{CLIENT}/bin/python",
        "-IB",
        HOST_PROGRAM,
        "smoke",
        f"--url={endpoint.url}",
        f"--health={endpoint.ready_path}",
        f"--model={endpoint.served_name}",
        f"--timeout={REQUEST_SECONDS}",
        f"--within={VERIFY_SECONDS}",
        f"--expect={endpoint.smoke.model_dump_json()}",
        *result_arguments(f"endpoint-{endpoint.name}", endpoint.unit, endpoint.digest),
    ]


def record_text(endpoint: EndpointPlan) -> str:
    """Return what `rigup-host switch` and `rigup status` need to know about a generation, as one line of JSON."""
    record = {
        "name": endpoint.name,
        "generation": endpoint.generation,
        "recipe": endpoint.recipe,
        "gpus": endpoint.gpus,
        "address": endpoint.address,
        "port": endpoint.port,
        "ready_path": endpoint.ready_path,
        "served_name": endpoint.served_name,
        "start_seconds": start_seconds(endpoint),
        "verify": verify_argv(endpoint),
    }
    return json.dumps(record, sort_keys=True) + "\n"
