"""A recipe as what a host would run: docker, compose, systemd, Kubernetes or a shell, all from the same plan.

Every form hands each argument to the process exactly as it stands in the plan, whatever characters it holds.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from rigup import lock as locks
from rigup.engines import arguments
from rigup.errors import RigupError
from rigup.inventory import load_inventory
from rigup.known import place
from rigup.lock import CheckpointLock, ImageLock, Lock, VenvLock
from rigup.plan import MODEL, QUIET, EndpointPlan, make_plan, needed_patches
from rigup.recipes import Catalogue
from rigup.render import DOCKER, cache_volume, docker_argv, env_file_text, unit_text
from rigup.schema import Recipe
from rigup.settings import Settings

__all__ = ["FORMS", "bare", "compose", "docker", "kubernetes", "shown", "systemd"]

ENDPOINT = "main"
UNRESOLVED = "sha256:" + "0" * 64
NO_COMMIT = "0" * 40


def shown(catalogue: Catalogue, name: str, form: str, inventory: Path | None = None) -> str:
    """The recipe in one of FORMS, with comments on where each value comes from. Raises RigupError."""
    recipe = catalogue.recipe(name)
    if recipe.image is None and (form == "shell" or recipe.source):
        if form != "shell":
            raise RigupError(f"recipe {name} is built from source: only `--as shell` shows it")
        return _origins(catalogue, recipe) + bare(catalogue, recipe)
    if recipe.image is None and form != "systemd":
        raise RigupError(f"recipe {name} runs without a container: `--as shell` and `--as systemd` show it")
    known = locks.read(load_inventory(inventory).lock) if inventory else Lock()
    endpoint, notes = _endpoint(catalogue, recipe, known)
    text = "".join(f"# {note}\n" for note in notes)
    return text + _origins(catalogue, recipe) + FORMS[form](endpoint)


def _endpoint(catalogue: Catalogue, recipe: Recipe, known: Lock) -> tuple[EndpointPlan, list[str]]:
    """The plan of the recipe with the default settings, and what it could not know."""
    image, checkpoint = recipe.image, catalogue.checkpoint(recipe.checkpoint)
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
    if needed_patches(recipe, images[image.tag].created if image else None):
        notes.append("patched files are left out here: a deploy makes them from the published ones")
    free = recipe.model_copy(update={"not_deployable": None, "status": "reported"})
    settings = Settings.from_data({"recipe": recipe.id})
    lock = known.model_copy(update={"images": images, "venvs": venvs, "checkpoints": checkpoints})
    only = Catalogue({recipe.id: free}, catalogue.checkpoints)
    endpoint = make_plan("host", settings, only, lock, None).endpoint(ENDPOINT)
    if image and endpoint.image and endpoint.image.endswith(UNRESOLVED):
        endpoint = endpoint.model_copy(update={"image": image.tag})
    if endpoint.checkpoint.revision == NO_COMMIT:
        endpoint = _on_branch(endpoint, checkpoint.branch)
    return endpoint, notes


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


def _origins(catalogue: Catalogue, recipe: Recipe) -> str:
    """One comment line for each value: what it is, which key it comes from, and the file and line of that key."""
    layer = catalogue.layers.get(recipe.id)
    rows = [(argument, key) for argument, key in arguments(recipe)]
    rows += [(f"{name}={value}", f"env.{name}") for name, value in sorted(recipe.env.items())]
    rows += [(f"{name}={value}", "rigup") for name, value in sorted(QUIET.items()) if recipe.image]
    lines = []
    for value, key in rows:
        where = layer.place(place(key)) if layer and key != "rigup" else ""
        # A line break in a value must not end the comment.
        text = value if value.isprintable() else json.dumps(value)
        lines.append(f"# {text}  <- {key} {where}".rstrip() + "\n")
    return "".join(lines)


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


def _doubled(value: str) -> str:
    """`$` means a variable to compose and to Kubernetes; doubled it is itself."""
    return value.replace("$", "$$")


def compose(endpoint: EndpointPlan) -> str:
    """A compose file; the same container that docker would run."""
    volumes: list[dict[str, Any]] = [
        {"type": "bind", "source": mount.source, "target": mount.target, "read_only": True} for mount in endpoint.mounts
    ]
    volumes += [{"type": "volume", "source": cache_volume(endpoint, path), "target": path} for path in endpoint.caches]
    devices = ["all"] if endpoint.gpus == "all" else [str(index) for index in endpoint.gpus]
    service: dict[str, Any] = {
        "image": endpoint.image,
        "container_name": endpoint.container,
        "command": [_doubled(word) for word in endpoint.argv],
        "environment": {name: _doubled(value) for name, value in sorted(endpoint.env.items())},
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
        document["volumes"] = {cache_volume(endpoint, path): {} for path in endpoint.caches}
    return _yaml(document)


def kubernetes(endpoint: EndpointPlan) -> str:
    """A claim for the weights, a job that fetches them, a deployment with probes that allow a long load, a service."""
    name = endpoint.container
    labels = {"app.kubernetes.io/name": name}
    claim = f"{name}-model"
    # A pod is reached at its own address, not at loopback; who may reach it is for a NetworkPolicy to say.
    argv = ["--host=0.0.0.0" if word == f"--host={endpoint.address}" else word for word in endpoint.argv]
    weights = {"name": "model", "persistentVolumeClaim": {"claimName": claim}}
    probe = {"httpGet": {"path": endpoint.ready_path, "port": "http"}, "periodSeconds": 10, "timeoutSeconds": 5}
    container: dict[str, Any] = {
        "name": "server",
        "image": endpoint.image,
        "args": [_doubled(word) for word in argv],
        "env": [{"name": key, "value": _doubled(value)} for key, value in sorted(endpoint.env.items())],
        "ports": [{"name": "http", "containerPort": endpoint.port}],
        "resources": {"limits": {"nvidia.com/gpu": endpoint.gpu_count}},
        "startupProbe": {**probe, "failureThreshold": -(-endpoint.ready_timeout // 10)},
        "readinessProbe": probe,
        "livenessProbe": {**probe, "failureThreshold": 6},
        "volumeMounts": [
            {"name": "model", "mountPath": MODEL, "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},
            *({"name": f"cache-{index}", "mountPath": path} for index, path in enumerate(endpoint.caches)),
        ],
    }
    pod: dict[str, Any] = {
        "terminationGracePeriodSeconds": 60,
        "containers": [container],
        "volumes": [
            weights,
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "32Gi"}},
            *({"name": f"cache-{index}", "emptyDir": {}} for index, _ in enumerate(endpoint.caches)),
        ],
    }
    fetch = {
        "name": "fetch",
        "image": endpoint.image,
        "command": ["hf", "download", endpoint.checkpoint.repo, "--local-dir", MODEL],
        "args": ["--revision", endpoint.checkpoint.revision],
        # Only the hub's rate limits ask for a token: these checkpoints are public.
        "env": [
            {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf-token", "key": "token", "optional": True}}}
        ],
        "volumeMounts": [{"name": "model", "mountPath": MODEL}],
    }
    room = max(1, -(-endpoint.checkpoint.bytes * 11 // 10 >> 30)) if endpoint.checkpoint.bytes else 300
    meta: Callable[[str], dict[str, Any]] = lambda of: {"name": of, "labels": labels}  # noqa: E731
    documents: list[dict[str, Any]] = [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": meta(claim),
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": f"{room}Gi"}}},
        },
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": meta(f"{name}-fetch"),
            "spec": {
                "backoffLimit": 5,
                "template": {"spec": {"restartPolicy": "OnFailure", "containers": [fetch], "volumes": [weights]}},
            },
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": meta(name),
            "spec": {
                "replicas": 1,
                # Two servers would want the same GPUs.
                "strategy": {"type": "Recreate"},
                "progressDeadlineSeconds": endpoint.ready_timeout + 600,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": meta(name),
            "spec": {"selector": labels, "ports": [{"name": "http", "port": endpoint.port, "targetPort": "http"}]},
        },
    ]
    return "---\n".join(_yaml(document) for document in documents)


def bare(catalogue: Catalogue, recipe: Recipe) -> str:
    """The commands of a recipe without a container, for a shell: environment, installation, server."""
    checkpoint = catalogue.checkpoint(recipe.checkpoint)
    lines: list[list[str]] = []
    if recipe.venv:
        lines.append(["uv", "venv", f"--python={recipe.venv.python}", ".venv"])
        lines.append(["uv", "pip", "install", "--python=.venv/bin/python", *recipe.venv.packages])
    elif recipe.source:
        lines.append(["git", "clone", recipe.source.repo, "source"])
        lines.append(["git", "-C", "source", "checkout", recipe.source.branch or recipe.source.commit or "main"])
        lines += [["env", "--chdir=source", *step] for step in recipe.source.steps]
    revision = checkpoint.revision or checkpoint.branch
    lines.append(["hf", "download", checkpoint.repo, f"--revision={revision}", "--local-dir=model"])
    server = ["vllm", "serve", "model"]
    if recipe.engine.name == "sglang":
        server = ["python3", "-m", "sglang.launch_server", "--model-path=model"]
    if recipe.venv:
        server[0] = f".venv/bin/{server[0]}"
    env = [f"{name}={value}" for name, value in sorted(recipe.env.items())]
    own = [f"--served-model-name={recipe.served_name}", "--host=127.0.0.1", "--port=8000"]
    lines.append(["env", *env, *server, *own, *(argument for argument, _ in arguments(recipe))])
    return "".join(_lines(line) for line in lines)


def _yaml(document: Mapping[str, Any]) -> str:
    return yaml.dump(dict(document), Dumper=_NoAliases, sort_keys=False, width=120)


class _NoAliases(yaml.SafeDumper):
    """Writes equal parts out each time: `&id001` helps no reader."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


FORMS: Mapping[str, Callable[[EndpointPlan], str]] = {
    "docker": docker,
    "compose": compose,
    "systemd": systemd,
    "kubernetes": kubernetes,
    "shell": shell,
}
