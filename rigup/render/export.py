"""A recipe as what a host would run: docker, compose, systemd, Kubernetes or a shell, all from the same plan.

Every form hands each argument to the process exactly as it stands in the plan, whatever characters it holds.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rigup.catalog.apply_patches import needed_patches
from rigup.catalog.engine_args import arguments
from rigup.catalog.engine_options import place
from rigup.catalog.loader import Catalog
from rigup.catalog.recipe import Checkpoint, Recipe, Source
from rigup.config.inventory import load_inventory
from rigup.config.settings import Settings
from rigup.errors import RigupError
from rigup.lock import lockfile as locks
from rigup.lock import resolve
from rigup.lock.lockfile import CheckpointLock, ImageLock, Lock, VenvLock
from rigup.lock.pypi import index_arguments
from rigup.plan.build import QUIET, make_plan
from rigup.plan.model import EndpointPlan, VenvPlan
from rigup.render.docker import DOCKER, cache_volumes, docker_argv
from rigup.render.kubernetes import doubled, kubernetes, yaml_text
from rigup.render.systemd import env_file_text, unit_text

__all__ = ["FORMS", "compose", "docker", "kubernetes", "shown", "systemd"]

UNRESOLVED = "sha256:" + "0" * 64
NO_COMMIT = "0" * 40


def shown(
    catalog: Catalog,
    name: str,
    form: str,
    inventory: Path | None = None,
    host: str | None = None,
    endpoint_name: str | None = None,
) -> str:
    """The recipe in one of FORMS, with comments on where each value comes from. Raises RigupError.

    With an inventory the names in its lock are taken; with a host of it also that host's settings, and patched files.
    """
    recipe = catalog.recipe(name)
    if recipe.source:
        if form != "shell":
            raise RigupError(f"recipe {name} is built from source: only `--as shell` shows it")
        if host:
            raise RigupError(f"recipe {name} is built from source, which no host does: name no host")
        notes = [f"by hand, in model/: {patch.model_dump_json(exclude_none=True)}" for patch in recipe.patches]
        text = built(recipe, catalog.checkpoint(recipe.checkpoint), recipe.source)
        return _about(recipe) + _comments(notes) + _origins(catalog, recipe) + text
    if recipe.venv and form not in ("shell", "systemd"):
        raise RigupError(f"recipe {name} runs without a container: `--as shell` and `--as systemd` show it")
    hosts = load_inventory(inventory) if inventory else None
    settings = hosts.host(host).settings if hosts and host else Settings.from_data({})
    lock = locks.read(hosts.lock) if hosts else Lock()
    endpoint, notes = _endpoint(catalog, recipe, lock, settings, bool(host), endpoint_name)
    text = bare(endpoint, endpoint.venv, settings) if endpoint.venv and form == "shell" else FORMS[form](endpoint)
    return _about(recipe) + _comments(notes) + _origins(catalog, recipe) + text


def _endpoint(
    catalog: Catalog, recipe: Recipe, known: Lock, settings: Settings, patched: bool, name: str | None
) -> tuple[EndpointPlan, list[str]]:
    """The plan of the recipe with these settings, `patched` or with its published files, and what it could not know."""
    image, checkpoint = recipe.image, catalog.checkpoint(recipe.checkpoint)
    notes: list[str] = []
    if recipe.not_deployable:
        notes.append(f"rigup does not deploy this: {recipe.not_deployable}")
    images, venvs, checkpoints = dict(known.images), dict(known.venvs), dict(known.checkpoints)
    if recipe.venv and recipe.venv.key not in venvs:
        notes.append("the packages are not in a lock: the environment's path depends on all that they bring along")
        venvs[recipe.venv.key] = VenvLock.model_construct(requirements=recipe.venv.packages)
    if image and image.tag not in images:
        notes.append("the image is not in a lock: its tag stands for the digest, and patches go by today's date")
        images[image.tag] = ImageLock(digest=image.digest or UNRESOLVED, created=datetime.now(UTC), bytes=0)
    if checkpoint.key not in checkpoints:
        notes.append("the checkpoint is not in a lock: the declared revision or branch stands for the commit")
        checkpoints[checkpoint.key] = CheckpointLock(
            revision=checkpoint.revision or NO_COMMIT, bytes=checkpoint.bytes or 0, files=1
        )
    patched = patched and (image is None or image.tag in known.images) and checkpoint.key in known.checkpoints
    if not patched and needed_patches(recipe, images[image.tag].created if image else None):
        notes.append("patched files are left out: name a host to include them, after its first deploy")
    free = recipe.model_copy(update={"not_deployable": None, "status": "reported"})
    settings, where = _serving(settings, recipe, name)
    lock = known.model_copy(update={"images": images, "venvs": venvs, "checkpoints": checkpoints})
    only = Catalog({recipe.id: free}, catalog.checkpoints)
    published = resolve.published_for(settings, only, lock, resolve.CACHE) if patched else None
    endpoint = make_plan("host", settings, only, lock, published).endpoint(where)
    if image and endpoint.image and endpoint.image.endswith(UNRESOLVED):
        endpoint = endpoint.model_copy(update={"image": image.tag})
    if endpoint.checkpoint.revision == NO_COMMIT:
        endpoint = _on_branch(endpoint, checkpoint.wanted)
    return endpoint, notes


def _serving(settings: Settings, recipe: Recipe, name: str | None) -> tuple[Settings, str]:
    """The settings with one endpoint, which serves the recipe: `name`, the one that does so already, or the first."""
    names = sorted(settings.endpoints)
    serving = [name for name in names if (settings.endpoints[name].recipe or settings.recipe) == recipe.id]
    name = name or [*serving, *names][0]
    endpoint = settings.endpoints[name].model_copy(update={"recipe": recipe.id})
    return settings.model_copy(update={"endpoints": {name: endpoint}}), name


def _on_branch(endpoint: EndpointPlan, branch: str) -> EndpointPlan:
    """The endpoint with a branch where its commit is not known."""
    path = endpoint.checkpoint.path.removesuffix(NO_COMMIT) + branch
    old = endpoint.checkpoint.path
    return endpoint.model_copy(
        update={
            "checkpoint": endpoint.checkpoint.model_copy(update={"revision": branch, "path": path}),
            "argv": tuple(word.replace(old, path) for word in endpoint.argv),
        }
    )


def _about(recipe: Recipe) -> str:
    """What is known of the recipe, as comments: what was put together shall not pass for a quotation."""
    status = f"{recipe.status} by {recipe.superseded_by}" if recipe.superseded_by else recipe.status
    lines = [recipe.title, f"{status}; tool calls: {recipe.tool_calls}; {recipe.speed}"]
    for evidence in recipe.evidence:
        who = ", ".join(filter(None, (evidence.who, evidence.when)))
        lines.append(f"{evidence.kind}: {evidence.source}" + (f" ({who})" if who else ""))
        lines += [f"  {evidence.says}", *(f"  changed: {change}" for change in evidence.changed)]
    lines += [f"mind: {caveat}" for caveat in recipe.caveats]
    return _comments(lines)


def _comments(lines: Iterable[str]) -> str:
    return "".join(f"# {_one_line(line)}\n" for line in lines)


def _origins(catalog: Catalog, recipe: Recipe) -> str:
    """One comment line for each value: what it is, which key it comes from, and the file and line of that key."""
    layer = catalog.layers.get(recipe.id)
    rows = [(argument, key) for argument, key in arguments(recipe)]
    rows += [(f"{name}={value}", f"env.{name}") for name, value in sorted(recipe.env.items())]
    rows += [(f"{name}={value}", "rigup") for name, value in sorted(QUIET.items()) if recipe.image]
    lines = []
    for value, key in rows:
        where = layer.place(place(key)) if layer and key != "rigup" else ""
        lines.append(f"# {_one_line(value)}  <- {key} {where}".rstrip() + "\n")
    return "".join(lines)


def _one_line(text: str) -> str:
    """For a comment, which a line break would end."""
    return text if text.isprintable() else json.dumps(text)


def docker(endpoint: EndpointPlan) -> str:
    """The unit's own `docker run`, for a shell; the environment stands in the command in place of its file."""
    words: list[str] = []
    for word in docker_argv(endpoint):
        if word.startswith("--env-file="):
            words += [f"--env={name}={value}" for name, value in sorted(endpoint.env.items())]
        else:
            words.append(word)
    return _lines(words)


def _lines(words: list[str]) -> str:
    return " \\\n  ".join(shlex.quote(word) for word in words) + "\n"


def shell(endpoint: EndpointPlan) -> str:
    """Pull, then run."""
    return _lines([DOCKER, "pull", str(endpoint.image)]) + docker(endpoint)


def systemd(endpoint: EndpointPlan) -> str:
    """The unit that a deploy installs, and its environment file as comments."""
    env = "".join(f"# {line}\n" for line in env_file_text(endpoint).split("\n") if line)
    return f"# {endpoint.env_file}:\n{env}# {endpoint.unit_file}:\n{unit_text(endpoint)}"


def compose(endpoint: EndpointPlan) -> str:
    """A compose file; the same container that docker would run."""
    volumes: list[dict[str, Any]] = [
        {"type": "bind", "source": mount.source, "target": mount.target, "read_only": True} for mount in endpoint.mounts
    ]
    caches = cache_volumes(endpoint)
    volumes += [{"type": "volume", "source": volume, "target": path} for path, volume in caches.items()]
    devices = ["all"] if endpoint.gpus == "all" else [str(index) for index in endpoint.gpus]
    service: dict[str, Any] = {
        "image": endpoint.image,
        "container_name": endpoint.container,
        "command": [doubled(word) for word in endpoint.argv],
        "environment": {name: doubled(value) for name, value in sorted(endpoint.env.items())},
        "init": True,
        "network_mode": "host",
        "ipc": "host",
        "ulimits": dict(sorted(endpoint.ulimits.items())),
        "devices": [f"nvidia.com/gpu={device}" for device in devices],
        "volumes": volumes,
        "restart": "on-failure",
        "stop_grace_period": "60s",
    }
    if endpoint.tmpfs:
        service["tmpfs"] = list(endpoint.tmpfs)
    service["cap_drop"] = ["ALL"]
    service["security_opt"] = ["no-new-privileges", *endpoint.security_opt]
    document: dict[str, Any] = {"services": {endpoint.container: service}}
    if endpoint.caches:
        document["volumes"] = {volume: {} for volume in caches.values()}
    return yaml_text(document)


def bare(endpoint: EndpointPlan, venv: VenvPlan, settings: Settings) -> str:
    """For a shell: environment, checkpoint and server without a container, from and to the places that a deploy uses.

    Raises RigupError where the unit binds a patched file over the store's, which no plain command does.
    """
    argv = list(endpoint.argv)
    for mount in endpoint.mounts:
        if mount.target.startswith(f"{endpoint.checkpoint.path}/"):
            name = mount.target.rpartition("/")[2]
            raise RigupError(f"a shell would read the published {name}, not the patched one: `--as systemd` shows both")
        argv = [word.replace(mount.target, mount.source) for word in argv]
    checkpoint = endpoint.checkpoint
    pinned = [requirement.partition(" ")[0] for requirement in venv.requirements]
    env = [f"{name}={value}" for name, value in sorted(endpoint.env.items())]
    pythons = f"UV_PYTHON_INSTALL_MIRROR={settings.python_mirror}"
    index, hub = index_arguments(settings.pypi_index), f"HF_ENDPOINT={settings.hub_mirror or settings.hub_endpoint}"
    fetch = ["hf", "download", checkpoint.repo, f"--revision={checkpoint.revision}", f"--local-dir={checkpoint.path}"]
    lines = [
        ["env", pythons, "uv", "venv", f"--python={venv.python}", venv.path],
        ["uv", "pip", "install", *index, f"--python={venv.path}/bin/python3", *pinned],
        ["env", hub, *fetch],
        ["env", *env, *argv],
    ]
    return "".join(map(_lines, lines))


def built(recipe: Recipe, checkpoint: Checkpoint, source: Source) -> str:
    """The commands of a build from source, for a shell; pull requests are applied as GitHub has them."""
    lines = [
        ["git", "clone", source.repo, "source"],
        ["git", "-C", "source", "checkout", source.commit or source.branch or "main"],
    ]
    for number in source.pull_requests:
        diff = f"{number}.diff"
        page = f"{source.repo.removesuffix('.git')}/pull/{diff}"
        lines.append(["curl", "--fail", "--location", f"--output={diff}", page])
        lines.append(["git", "-C", "source", "apply", "--3way", f"../{diff}"])
    lines += [["env", "--chdir=source", *step] for step in source.steps]
    lines.append(["hf", "download", checkpoint.repo, f"--revision={checkpoint.wanted}", "--local-dir=model"])
    server = ["vllm", "serve", "model"]
    if recipe.engine.name == "sglang":
        server = ["python3", "-m", "sglang.launch_server", "--model-path=model"]
    env = [f"{name}={value}" for name, value in sorted(recipe.env.items())]
    own = [f"--served-model-name={recipe.served_name}", "--host=127.0.0.1", "--port=8000"]
    lines.append(["env", *env, *server, *own, *(argument for argument, _ in arguments(recipe))])
    return "".join(map(_lines, lines))


FORMS: Mapping[str, Callable[[EndpointPlan], str]] = {
    "docker": docker,
    "compose": compose,
    "systemd": systemd,
    "kubernetes": kubernetes,
    "shell": shell,
}
