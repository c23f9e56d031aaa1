"""Makes the plan of a host from settings, catalogue and lock. Pure: it touches neither host nor network.

Equal input gives an equal plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from rigup import patches
from rigup.choice import Need, best, ranked
from rigup.engines import arguments
from rigup.errors import RigupError
from rigup.fit import asked_context
from rigup.lock import Lock
from rigup.packages import cuda_group
from rigup.plan import BESIDE, ENDPOINTS, MODEL, CheckpointPlan, EndpointPlan, Plan, Smoke, VenvPlan
from rigup.recipes import Catalogue, Checkpoint, Patch, Recipe
from rigup.schema import Venv
from rigup.settings import Endpoint, Settings

__all__ = ["QUIET", "Published", "checkpoint_revision", "make_plan", "needed_patches", "recipe_of"]

# Small published files by "repo@revision", then by name.
Published = Mapping[str, Mapping[str, str]]

# Settings that say how a host is looked at or brought there, and not what it shall be.
HOW = {"at_a_time", "drain_timeout", "retry", "waivers"}

# Of an endpoint that takes all of its host's GPUs, where neither it nor the need says how many those are.
USUAL_GPUS = 4

LOOPBACK = "127.0.0.1"
CUDA = "/usr/local/cuda"
CACHES = "/var/cache/rigup"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Of the catalogue's models, those that read images.
IMAGE_MODELS = ("Qwen3.5-397B-A17B",)
# Long enough for prompts that are read piece by piece, and read in seconds.
LONG_PROMPT = 16384
# Nothing is understood in it, and the lab's processors are slow.
SHORT_PROMPT = 2048

# The model is a local directory: the engine has no reason to ask anyone on the network.
QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}


def make_plan(host: str, settings: Settings, catalogue: Catalogue, lock: Lock, published: Published | None) -> Plan:
    """The plan of one host; without `published` its patched files are left out.

    Raises RigupError for an unknown recipe (naming the near ones) and for what the lock or `published` does not hold.
    """
    endpoints = tuple(
        _endpoint(name, endpoint, settings, catalogue, lock, published)
        for name, endpoint in sorted(settings.endpoints.items())
    )
    return Plan(
        host=host,
        endpoints=endpoints,
        driver_branch=settings.driver_branch,
        driver_version=settings.driver_version,
        cuda_toolkit=cuda_group(settings),
        model_store=settings.model_store,
        settings=settings.model_dump(mode="json", exclude=HOW),
    )


def recipe_of(settings: Settings, name: str, catalogue: Catalogue) -> Recipe:
    """The recipe that an endpoint of these settings serves.

    Raises RigupError where there is none of that name (naming the near ones), and for one that cannot be deployed.
    """
    endpoint = settings.endpoints[name]
    wanted = endpoint.recipe or settings.recipe
    if isinstance(wanted, Need):
        gpus = wanted.gpus or (USUAL_GPUS if endpoint.gpus == "all" else len(endpoint.gpus))
        recipe = best(catalogue, wanted, gpus)
    else:
        recipe = catalogue.recipe(wanted)
    if recipe.status == "broken":
        raise RigupError(f"recipe {recipe.id} is broken: {recipe.caveats[0]}")
    if recipe.not_deployable:
        raise RigupError(f"recipe {recipe.id} cannot be deployed: {recipe.not_deployable}")
    if recipe.source:
        raise RigupError(
            f"recipe {recipe.id} is built from source, which rigup does not do: `rigup show` has the commands"
        )
    return recipe


def needed_patches(recipe: Recipe, image_created: datetime | None) -> list[Patch]:
    """The recipe's patches that an image made at that time needs."""
    return [patch for patch in recipe.patches if patches.applies(patch, recipe, image_created)]


def checkpoint_revision(checkpoint: Checkpoint, lock: Lock) -> str:
    """The commit of a checkpoint. Raises RigupError where it is neither declared nor locked."""
    if checkpoint.key in lock.checkpoints:
        return lock.checkpoints[checkpoint.key].revision
    raise RigupError(f"the lock has no checkpoint {checkpoint.key}: run `rigup lock`")


def _endpoint(
    name: str, endpoint: Endpoint, settings: Settings, catalogue: Catalogue, lock: Lock, published: Published | None
) -> EndpointPlan:
    recipe = recipe_of(settings, name, catalogue)
    checkpoint = catalogue.checkpoint(recipe.checkpoint)
    tag = recipe.image.tag if recipe.image else None
    if tag and tag not in lock.images:
        raise RigupError(f"the lock has no image {tag}: run `rigup lock`")
    if endpoint.gpus != "all" and len(endpoint.gpus) != recipe.gpus:
        raise RigupError(
            f"endpoint {name} names {len(endpoint.gpus)} GPUs and recipe {recipe.id} needs {recipe.gpus}: "
            f"change endpoints.{name}.gpus or the recipe"
        )
    image = lock.images[tag] if tag else None
    venv = _venv(recipe.venv, lock) if recipe.venv else None
    revision = checkpoint_revision(checkpoint, lock)
    size = lock.checkpoints[checkpoint.key]
    path = f"{settings.model_store}/{checkpoint.repo}/{revision}"
    wanted = needed_patches(recipe, image.created if image else None)
    patched: dict[str, str] = {}
    if wanted and published is not None:
        source = f"{checkpoint.repo}@{revision}"
        if source not in published:
            raise RigupError(f"the config files of {source} were not read, and recipe {recipe.id} patches them")
        patched = patches.patch_files(published[source], wanted, recipe.engine.name)
    # Without a container the engine sees the host's own paths.
    model, beside = (path, f"{ENDPOINTS}/{name}") if venv else (MODEL, BESIDE)
    argv = list(_arguments(recipe, endpoint, model))
    if patches.TEMPLATE in patched:
        argv.append(f"--chat-template={beside}/{patches.TEMPLATE}")
    return EndpointPlan(
        name=name,
        recipe=recipe.id,
        engine=recipe.engine.name,
        image=f"{tag.rsplit(':', 1)[0]}@{image.digest}" if tag and image else None,
        image_tag=tag,
        image_bytes=image.bytes if image else 0,
        image_created=image.created if image else None,
        image_cuda=image.cuda if image else None,
        venv=venv,
        min_driver_cuda=recipe.min_driver_cuda,
        checkpoint=CheckpointPlan(
            id=checkpoint.id,
            repo=checkpoint.repo,
            revision=revision,
            path=path,
            bytes=size.bytes,
            files=size.files,
            listing=size.listing,
        ),
        gpus=endpoint.gpus,
        gpu_count=recipe.gpus,
        vram_mib=recipe.vram_mib,
        address=LOOPBACK if endpoint.is_public else endpoint.address,
        port=endpoint.port,
        public_address=endpoint.address if endpoint.is_public else None,
        networks=endpoint.networks,
        served_name=recipe.served_name,
        argv=(*(_program(recipe, venv) if venv else recipe.container_image().command), *argv),
        env={**QUIET, **(_bare_env(name, endpoint, settings, venv) if venv else {}), **recipe.env},
        ulimits=dict(settings.container_ulimits),
        patched_files=patched,
        caches=recipe.container.caches,
        tmpfs=recipe.container.tmpfs,
        security_opt=recipe.container.security_opt,
        ready_path=recipe.ready.path,
        ready_timeout=recipe.ready.timeout or settings.ready_timeout,
        stall_timeout=settings.stall_timeout,
        smoke=_smoke(recipe, catalogue, settings, patched),
    )


def _venv(wanted: Venv, lock: Lock) -> VenvPlan:
    if wanted.key not in lock.venvs:
        raise RigupError(f"the lock has no venv {wanted.key}: run `rigup lock`")
    return VenvPlan(python=wanted.python, packages=wanted.packages, requirements=lock.venvs[wanted.key].requirements)


def _program(recipe: Recipe, venv: VenvPlan) -> tuple[str, ...]:
    if recipe.engine.name == "vllm":
        return (f"{venv.path}/bin/vllm", "serve")
    return (f"{venv.path}/bin/python3", "-m", "sglang.launch_server")


def _bare_env(name: str, endpoint: Endpoint, settings: Settings, venv: VenvPlan) -> dict[str, str]:
    """What an image would bring: where programs are, where compiled kernels are kept, which GPUs there are."""
    cuda = {"CUDA_HOME": CUDA} if settings.cuda_toolkit else {}
    path = [f"{venv.path}/bin", *(f"{home}/bin" for home in cuda.values()), SYSTEM_PATH]
    # CUDA's own order is by speed; the inventory's numbers are nvidia-smi's.
    order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    chosen = {} if endpoint.gpus == "all" else {"CUDA_VISIBLE_DEVICES": ",".join(map(str, endpoint.gpus))}
    return {"HOME": f"{CACHES}/{name}", "PATH": ":".join(path), **cuda, **order, **chosen}


def _smoke(recipe: Recipe, catalogue: Catalogue, settings: Settings, patched: Mapping[str, str]) -> Smoke:
    context, long_prompt = asked_context(recipe), SHORT_PROMPT if settings.random_weights else LONG_PROMPT
    model = catalogue.checkpoint(recipe.checkpoint).model
    steady = (
        other.id
        for other in (choice.recipe for choice in ranked(catalogue, "agents", recipe.gpus, None, model))
        if other.gpus == recipe.gpus and other.tool_calls == "reliable" and not other.speculation
    )
    return Smoke(
        tools="agents" in recipe.workload and recipe.tool_parser is not None,
        reasoning=recipe.reasoning_parser is not None,
        images=model in IMAGE_MODELS and "--language-model-only" not in recipe.argv,
        # SGLang counts only with --enable-metrics, under other names in each version.
        speculation=recipe.speculation is not None and recipe.engine.name == "vllm",
        merges_system=patches.TEMPLATE in patched,
        random_weights=settings.random_weights,
        long_prompt=min(long_prompt, context // 2) if context else long_prompt,
        context=context,
        instead=next((id for id in steady if id != recipe.id), None),
    )


def _arguments(recipe: Recipe, endpoint: Endpoint, path: str) -> tuple[str, ...]:
    model = "--model" if recipe.engine.name == "vllm" else "--model-path"
    return (
        f"{model}={path}",
        f"--served-model-name={recipe.served_name}",
        f"--host={LOOPBACK if endpoint.is_public else endpoint.address}",
        f"--port={endpoint.port}",
        *(argument for argument, _ in arguments(recipe)),
    )
