"""Build the plan of a host from settings, catalog and lock. Pure: equal input gives an equal plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rigup.catalog.apply_patches import TEMPLATE, patch_files
from rigup.catalog.checkpoint import Checkpoint
from rigup.catalog.engine_args import arguments
from rigup.catalog.loader import Catalog
from rigup.catalog.memory import asked_context
from rigup.catalog.rank import ranked
from rigup.catalog.recipe import Recipe
from rigup.config.endpoint import Endpoint
from rigup.config.settings import Settings
from rigup.errors import RigupError
from rigup.lock.lockfile import CheckpointLock, Lock
from rigup.paths import CACHES, DRAFTER, ENDPOINTS, FILES_MOUNT
from rigup.plan.model import CheckpointPlan, EndpointPlan, Plan, Smoke, VenvPlan
from rigup.plan.select import Selection, select

Published = Mapping[str, Mapping[str, str]]
"""Small published files, by REPO@COMMIT and by name."""

# Settings that say how to look at a host or how to deploy to it, not what it is meant to be.
HOW = {"max_unavailable", "drain_timeout", "retry", "lock", "replace_docker", "waivers"}

LOOPBACK = "127.0.0.1"
CUDA = "/usr/local/cuda"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# In tokens: long enough for chunked prefill, and read in seconds.
LONG_PROMPT = 16384
# The key of most chat templates that turns thinking on and off.
THINKING = "enable_thinking"
# A model with random weights understands nothing anyway, and the lab's processors are slow.
SHORT_PROMPT = 2048

# The model is a local directory, so the engine has no reason to use the network.
QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}


def make_plan(host: str, settings: Settings, catalog: Catalog, lock: Lock, published: Published | None) -> Plan:
    """Select what the endpoints are made from, and build the plan. Raises RigupError as `select` and `build` do."""
    return build(host, settings, catalog, select(settings, catalog, lock), published)


def build(
    host: str, settings: Settings, catalog: Catalog, selections: Iterable[Selection], published: Published | None
) -> Plan:
    """Return the plan of one host; without `published`, patched files are left out.

    Raises RigupError for a patch that does not fit the checkpoint, and if `published` lacks the files to patch.
    """
    endpoints = tuple(_endpoint(selection, settings, catalog, published) for selection in selections)
    return Plan(host=host, endpoints=endpoints, settings=settings.model_dump(mode="json", exclude=HOW))


def _endpoint(selection: Selection, settings: Settings, catalog: Catalog, published: Published | None) -> EndpointPlan:
    name, endpoint, recipe, image = selection.name, selection.endpoint, selection.recipe, selection.image
    store, drafter = settings.model_store, selection.drafter
    tag = recipe.image.tag if recipe.image else None
    venv = _venv(selection)
    patched = _patched(selection, published)
    drafter_plan = _checkpoint(drafter.checkpoint, drafter.commit, store) if drafter else None
    at = drafter_plan.path if drafter_plan and venv else DRAFTER
    options = [argument for argument, _ in arguments(recipe, at)]
    if TEMPLATE in patched:
        # Without a container the engine sees the host's own paths.
        options.append(f"--chat-template={f'{ENDPOINTS}/{name}' if venv else FILES_MOUNT}/{TEMPLATE}")
    return EndpointPlan(
        name=name,
        recipe=recipe.id,
        engine=recipe.engine.name,
        image=f"{tag.rsplit(':', 1)[0]}@{image.digest}" if tag and image else None,
        image_tag=tag,
        image_bytes=image.bytes if image else 0,
        image_cuda=image.cuda if image else None,
        venv=venv,
        min_driver_cuda=recipe.min_driver_cuda,
        checkpoint=_checkpoint(selection.checkpoint, selection.commit, store),
        drafter=drafter_plan,
        gpus=endpoint.gpus,
        gpu_count=recipe.gpus,
        vram_mib=recipe.vram_mib,
        capability=recipe.capability,
        address=LOOPBACK if endpoint.is_public else endpoint.listen,
        port=endpoint.port,
        public_address=endpoint.listen if endpoint.is_public else None,
        allowed_networks=endpoint.allowed_networks,
        served_name=recipe.served_name,
        command=_program(recipe, venv) if venv else recipe.container_image().command,
        options=tuple(options),
        env={**QUIET, **(_bare_env(name, endpoint, settings, venv) if venv else {}), **recipe.env},
        ulimits=dict(settings.container_ulimits),
        patched_files=patched,
        caches=recipe.container.caches,
        tmpfs=recipe.container.tmpfs,
        security_opt=recipe.container.security_opt,
        ready_path=recipe.ready.path,
        ready_timeout=recipe.ready.timeout or settings.ready_timeout,
        stall_timeout=settings.stall_timeout,
        smoke=_smoke(recipe, catalog, bool(selection.commit.random_weights), patched),
    )


def _checkpoint(checkpoint: Checkpoint, commit: CheckpointLock, store: str) -> CheckpointPlan:
    return CheckpointPlan(
        repo=checkpoint.repo,
        revision=commit.revision,
        path=f"{store}/{checkpoint.repo}/{commit.revision}",
        bytes=commit.bytes,
        files=commit.files,
        listing=commit.listing,
    )


def _patched(selection: Selection, published: Published | None) -> dict[str, str]:
    if not selection.patches or published is None:
        return {}
    if selection.source not in published:
        raise RigupError(
            f"recipe {selection.recipe.id} patches config files of {selection.source}, which were not read"
        )
    return patch_files(published[selection.source], selection.patches, selection.recipe.engine.name)


def _venv(selection: Selection) -> VenvPlan | None:
    venv, locked = selection.recipe.venv, selection.venv
    if venv is None or locked is None:
        return None
    return VenvPlan(python=venv.python, packages=venv.packages, requirements=locked.requirements)


def _program(recipe: Recipe, venv: VenvPlan) -> tuple[str, ...]:
    if recipe.engine.name == "vllm":
        return (f"{venv.path}/bin/vllm", "serve")
    return (f"{venv.path}/bin/python3", "-m", "sglang.launch_server")


def _bare_env(name: str, endpoint: Endpoint, settings: Settings, venv: VenvPlan) -> dict[str, str]:
    """Return the variables that an image would set: where programs and compiled kernels are, and which GPUs to use."""
    cuda = {"CUDA_HOME": CUDA} if settings.cuda_toolkit else {}
    path = [f"{venv.path}/bin", *(f"{home}/bin" for home in cuda.values()), SYSTEM_PATH]
    # CUDA orders GPUs by speed by default; the numbers in the inventory are those of nvidia-smi.
    order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    chosen = {} if endpoint.gpus == "all" else {"CUDA_VISIBLE_DEVICES": ",".join(map(str, endpoint.gpus))}
    return {"HOME": f"{CACHES}/{name}", "PATH": ":".join(path), **cuda, **order, **chosen}


def _smoke(recipe: Recipe, catalog: Catalog, random_weights: bool, patched: Mapping[str, str]) -> Smoke:
    context, long_prompt = asked_context(recipe), SHORT_PROMPT if random_weights else LONG_PROMPT
    known, model = catalog.model_of(recipe), catalog.checkpoint(recipe.checkpoint).model
    steady = (
        other.id
        for other in (choice.recipe for choice in ranked(catalog, "agents", recipe.gpus, None, model))
        if other.gpus == recipe.gpus and other.tool_calls == "reliable" and not other.speculation
    )
    return Smoke(
        tools="agents" in recipe.workload and recipe.tool_parser is not None,
        reasoning=recipe.reasoning_parser is not None,
        images=bool(known and known.images) and "--language-model-only" not in recipe.argv,
        # SGLang counts drafted tokens only with --enable-metrics, under different names in each version.
        speculation=recipe.speculation is not None and recipe.engine.name == "vllm",
        merges_system=TEMPLATE in patched,
        random_weights=random_weights,
        long_prompt=min(long_prompt, context // 2) if context else long_prompt,
        context=context,
        instead=next((id for id in steady if id != recipe.id), None),
        thinking=known.thinking if known and known.thinking else THINKING,
    )
