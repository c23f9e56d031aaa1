"""Makes the plan of a host from settings, catalog and lock. Pure: it touches neither host nor network.

Equal input gives an equal plan.
"""

from __future__ import annotations

from collections.abc import Mapping

from rigup.catalog import apply_patches
from rigup.catalog.apply_patches import Published, needed_patches
from rigup.catalog.engine_args import arguments
from rigup.catalog.loader import Catalog, Recipe
from rigup.catalog.memory import asked_context
from rigup.catalog.rank import ranked
from rigup.catalog.recipe import Venv
from rigup.catalog.select import recipe_of
from rigup.config.endpoint import Endpoint
from rigup.config.settings import Settings
from rigup.errors import RigupError
from rigup.lock.lockfile import Lock, checkpoint_revision
from rigup.lock.packages import cuda_group
from rigup.plan.model import BESIDE, ENDPOINTS, MODEL, CheckpointPlan, EndpointPlan, Plan, Smoke, VenvPlan

__all__ = [
    "QUIET",
    "make_plan",
]


# Settings that say how a host is looked at or brought there, and not what it shall be.
HOW = {"max_unavailable", "drain_timeout", "retry", "waivers"}


LOOPBACK = "127.0.0.1"
CUDA = "/usr/local/cuda"
CACHES = "/var/cache/rigup"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Of the catalog's models, those that read images.
IMAGE_MODELS = ("Qwen3.5-397B-A17B",)
# Long enough for prompts that are read piece by piece, and read in seconds.
LONG_PROMPT = 16384
# Nothing is understood in it, and the lab's processors are slow.
SHORT_PROMPT = 2048

# The model is a local directory: the engine has no reason to ask anyone on the network.
QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}


def make_plan(host: str, settings: Settings, catalog: Catalog, lock: Lock, published: Published | None) -> Plan:
    """The plan of one host; without `published` its patched files are left out.

    Raises RigupError for an unknown recipe (naming the near ones) and for what the lock or `published` does not hold.
    """
    endpoints = tuple(
        _endpoint(name, endpoint, settings, catalog, lock, published)
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


def _endpoint(
    name: str, endpoint: Endpoint, settings: Settings, catalog: Catalog, lock: Lock, published: Published | None
) -> EndpointPlan:
    recipe = recipe_of(settings, name, catalog)
    checkpoint = catalog.checkpoint(recipe.checkpoint)
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
        patched = apply_patches.patch_files(published[source], wanted, recipe.engine.name)
    # Without a container the engine sees the host's own paths.
    model, beside = (path, f"{ENDPOINTS}/{name}") if venv else (MODEL, BESIDE)
    argv = list(_arguments(recipe, endpoint, model))
    if apply_patches.TEMPLATE in patched:
        argv.append(f"--chat-template={beside}/{apply_patches.TEMPLATE}")
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
        address=LOOPBACK if endpoint.is_public else endpoint.listen,
        port=endpoint.port,
        public_address=endpoint.listen if endpoint.is_public else None,
        allowed_networks=endpoint.allowed_networks,
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
        smoke=_smoke(recipe, catalog, bool(size.random_weights), patched),
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


def _smoke(recipe: Recipe, catalog: Catalog, random_weights: bool, patched: Mapping[str, str]) -> Smoke:
    context, long_prompt = asked_context(recipe), SHORT_PROMPT if random_weights else LONG_PROMPT
    model = catalog.checkpoint(recipe.checkpoint).model
    steady = (
        other.id
        for other in (choice.recipe for choice in ranked(catalog, "agents", recipe.gpus, None, model))
        if other.gpus == recipe.gpus and other.tool_calls == "reliable" and not other.speculation
    )
    return Smoke(
        tools="agents" in recipe.workload and recipe.tool_parser is not None,
        reasoning=recipe.reasoning_parser is not None,
        images=model in IMAGE_MODELS and "--language-model-only" not in recipe.argv,
        # SGLang counts only with --enable-metrics, under other names in each version.
        speculation=recipe.speculation is not None and recipe.engine.name == "vllm",
        merges_system=apply_patches.TEMPLATE in patched,
        random_weights=random_weights,
        long_prompt=min(long_prompt, context // 2) if context else long_prompt,
        context=context,
        instead=next((id for id in steady if id != recipe.id), None),
    )


def _arguments(recipe: Recipe, endpoint: Endpoint, path: str) -> tuple[str, ...]:
    model = "--model" if recipe.engine.name == "vllm" else "--model-path"
    return (
        f"{model}={path}",
        f"--served-model-name={recipe.served_name}",
        f"--host={LOOPBACK if endpoint.is_public else endpoint.listen}",
        f"--port={endpoint.port}",
        *(argument for argument, _ in arguments(recipe)),
    )
