"""Show a recipe in the form of docker, compose, systemd, Kubernetes or shell commands, all from the same plan.

Every form passes each argument to the process exactly as it is in the plan, whatever characters it contains.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rigup.catalog.engine_args import arguments
from rigup.catalog.engine_options import place
from rigup.catalog.loader import Catalog
from rigup.catalog.recipe import Recipe
from rigup.config.inventory import load_inventory
from rigup.config.settings import Settings
from rigup.errors import RigupError
from rigup.lock import lockfile as locks
from rigup.lock.lockfile import CheckpointLock, ImageLock, Lock, VenvLock
from rigup.lock.pypi import index_arguments
from rigup.paths import DOCKER
from rigup.plan.build import QUIET, make_plan
from rigup.plan.host import plan_host
from rigup.plan.model import CheckpointPlan, EndpointPlan, VenvPlan
from rigup.plan.select import select
from rigup.render.docker import NO_LOG, cache_volumes, docker_argv
from rigup.render.kubernetes import doubled, kubernetes, yaml_text
from rigup.render.systemd import env_file_text, unit_text

__all__ = ["FORMS", "compose", "docker", "kubernetes", "shown", "systemd"]

UNRESOLVED = "sha256:" + "0" * 64
NO_COMMIT = "0" * 40
DEFAULTS = Settings.from_data({})


@dataclass(frozen=True)
class Source:
    """A value of the command, the recipe's key that it comes from, and the file and line of that key."""

    value: str
    key: str
    place: str


@dataclass(frozen=True)
class Shown:
    """A recipe in one of FORMS.

    `about` says what is known about the recipe, and what is missing here. `evidence` says where the recipe comes from,
    `sources` where each value comes from.
    """

    text: str
    about: tuple[str, ...]
    evidence: tuple[str, ...]
    sources: tuple[Source, ...]

    def render(self, explain: bool = False) -> str:
        """Return the form, followed by `about` as comments, with `explain` also by `evidence` and `sources`."""
        lines = list(self.about)
        if explain:
            lines += self.evidence
            lines += [f"{each.value}  <- {each.key} {each.place}".rstrip() for each in self.sources]
        return self.text + "\n" + "".join(f"# {_one_line(line)}\n" for line in lines)


def shown(
    catalog: Catalog,
    name: str,
    form: str,
    inventory: Path | None = None,
    host: str | None = None,
    endpoint_name: str | None = None,
) -> Shown:
    """Return the recipe in one of FORMS.

    With an inventory, digests and commits come from its lock; with one of its hosts, that host's settings and patched
    files are used, too. `endpoint_name` picks one of its endpoints.

    Raises RigupError for a recipe that does not have this form.
    """
    recipe = catalog.recipe(name)
    if recipe.source:
        raise RigupError(f"recipe {name} is built from source, which rigup does not do", "choose another recipe")
    if recipe.venv and form not in ("shell", "systemd"):
        raise RigupError(f"recipe {name} runs without a container", "use `--as shell` or `--as systemd`")
    hosts = load_inventory(inventory) if inventory else None
    settings = hosts.host(host).settings if hosts and host else Settings.from_data({})
    lock = locks.read(hosts.lock) if hosts else Lock()
    endpoint, notes = _endpoint(catalog, recipe, lock, settings, bool(host), endpoint_name)
    text = shell(endpoint, settings) if form == "shell" else FORMS[form](endpoint)
    return Shown(text, (*_about(recipe), *notes), tuple(_evidence(recipe)), tuple(_sources(catalog, recipe)))


def _endpoint(
    catalog: Catalog, recipe: Recipe, known: Lock, settings: Settings, patched: bool, name: str | None
) -> tuple[EndpointPlan, list[str]]:
    """Return the plan of the recipe with these settings, `patched` or not, and notes on what is not known."""
    image, needed = recipe.image, catalog.checkpoints_of(recipe)
    notes: list[str] = []
    if recipe.not_deployable:
        notes.append(f"rigup does not deploy this recipe: {recipe.not_deployable}")
    images, venvs, checkpoints = dict(known.images), dict(known.venvs), dict(known.checkpoints)
    if recipe.venv and recipe.venv.key not in venvs:
        notes.append("the packages are not in a lock: the environment's path will depend on their dependencies")
        venvs[recipe.venv.key] = VenvLock.model_construct(requirements=recipe.venv.packages)
    if image and image.tag not in images:
        notes.append("the image is not in a lock: its tag is shown instead of the digest, with the patches for today")
        images[image.tag] = ImageLock(digest=image.digest or UNRESOLVED, created=datetime.now(UTC), bytes=0)
    for each in needed:
        if each.key not in checkpoints:
            notes.append(f"{each.repo} is not in a lock: its {each.reference} is shown instead of a commit")
            checkpoints[each.key] = CheckpointLock(revision=each.revision or NO_COMMIT, bytes=each.bytes or 0, files=1)
    locked = all(each.key in known.checkpoints for each in needed)
    patched = patched and (image is None or image.tag in known.images) and locked
    allowed = recipe.model_copy(update={"not_deployable": None, "status": "reported"})
    settings, name = _serving(settings, recipe, name)
    lock = known.model_copy(update={"images": images, "venvs": venvs, "checkpoints": checkpoints})
    only = Catalog({recipe.id: allowed}, catalog.checkpoints)
    if patched:
        plan = plan_host("host", settings, only, lock)
    else:
        plan = make_plan("host", settings, only, lock, None)
        if select(settings, only, lock)[0].patches:
            notes.append("patched files are left out: name a host to see them, after its first deploy")
    endpoint = plan.endpoint(name)
    if image and endpoint.image and endpoint.image.endswith(UNRESOLVED):
        endpoint = endpoint.model_copy(update={"image": image.tag})
    for field, each in zip(("checkpoint", "drafter"), needed, strict=False):
        endpoint = _on_branch(endpoint, field, each.reference)
    return endpoint, notes


def _serving(settings: Settings, recipe: Recipe, name: str | None) -> tuple[Settings, str]:
    """Return the settings with one endpoint for the recipe: `name`, else one that already serves it, else the first."""
    names = sorted(settings.endpoints)
    serving = [name for name in names if (settings.endpoints[name].recipe or settings.recipe) == recipe.id]
    name = name or [*serving, *names][0]
    endpoint = settings.endpoints[name].model_copy(update={"recipe": recipe.id})
    return settings.model_copy(update={"endpoints": {name: endpoint}}), name


def _on_branch(endpoint: EndpointPlan, field: str, branch: str) -> EndpointPlan:
    """Return the endpoint with a branch in place of the commit of one of its checkpoints, if that is unknown."""
    checkpoint: CheckpointPlan = getattr(endpoint, field)
    if checkpoint.revision != NO_COMMIT:
        return endpoint
    before, path = checkpoint.path, checkpoint.path.removesuffix(NO_COMMIT) + branch
    # Without a container the path of a drafter is an argument.
    options = tuple(option.replace(before, path) for option in endpoint.options)
    update = {field: checkpoint.model_copy(update={"revision": branch, "path": path}), "options": options}
    return endpoint.model_copy(update=update)


def _about(recipe: Recipe) -> list[str]:
    """Return what is known about the recipe, so that an assembled one is not taken for a quotation."""
    status = f"{recipe.status} by {recipe.superseded_by}" if recipe.superseded_by else recipe.status
    lines = [recipe.title, f"{status}; tool calls: {recipe.tool_calls}; {recipe.speed}"]
    return lines + [f"caveat: {caveat}" for caveat in recipe.caveats]


def _evidence(recipe: Recipe) -> Iterator[str]:
    for evidence in recipe.evidence:
        who = ", ".join(filter(None, (evidence.who, evidence.when)))
        yield f"{evidence.kind}: {evidence.source}" + (f" ({who})" if who else "")
        yield f"  {evidence.says}"
        yield from (f"  changed: {change}" for change in evidence.changed)


def _sources(catalog: Catalog, recipe: Recipe) -> Iterator[Source]:
    merged = catalog.merged.get(recipe.id)
    rows = [(argument, key) for argument, key in arguments(recipe)]
    rows += [(f"{name}={value}", f"env.{name}") for name, value in sorted(recipe.env.items())]
    rows += [(f"{name}={value}", "rigup") for name, value in sorted(QUIET.items()) if recipe.image]
    for value, key in rows:
        yield Source(value, key, str(merged.place(place(key))) if merged and key != "rigup" else "")


def _one_line(text: str) -> str:
    """Return the text for a comment, which a line break would end."""
    return text if text.isprintable() else json.dumps(text)


def docker(endpoint: EndpointPlan) -> str:
    """Return the unit's `docker run` for a shell.

    The environment is in the command instead of in a file, and without a journal `docker logs` has the output.
    """
    words: list[str] = []
    for word in docker_argv(endpoint):
        if word == NO_LOG:
            words.append("--log-driver=local")
        elif word.startswith("--env-file="):
            words += [f"--env={name}={value}" for name, value in sorted(endpoint.env.items())]
        else:
            words.append(word)
    return _lines(words)


def _lines(words: list[str]) -> str:
    return " \\\n  ".join(shlex.quote(word) for word in words) + "\n"


def shell(endpoint: EndpointPlan, settings: Settings = DEFAULTS) -> str:
    """Return commands to install the engine, to download the checkpoints, and to run the server.

    Raises RigupError if the unit of an endpoint without a container mounts a patched file over a published one, which a
    plain command cannot do.
    """
    if endpoint.venv:
        return _bare(endpoint, endpoint.venv, settings)
    pull = [DOCKER, "pull", str(endpoint.image)]
    return "".join(map(_lines, [pull, *_fetches(endpoint, settings)])) + docker(endpoint)


def _fetches(endpoint: EndpointPlan, settings: Settings) -> list[list[str]]:
    """Return the commands that download the checkpoints to where the server expects them."""
    hub = f"HF_ENDPOINT={settings.hub_mirror or settings.hub_endpoint}"
    return [
        ["env", hub, "hf", "download", each.repo, f"--revision={each.revision}", f"--local-dir={each.path}"]
        for each in endpoint.checkpoints
    ]


def systemd(endpoint: EndpointPlan) -> str:
    """Return the unit that a deploy installs, with its path and its environment file as comments."""
    env = "".join(f"# {line}\n" for line in env_file_text(endpoint).split("\n") if line)
    return f"{unit_text(endpoint)}\n# This is {endpoint.unit_file}. It reads {endpoint.env_file}:\n{env}"


def compose(endpoint: EndpointPlan) -> str:
    """Return a compose file for the same container that docker would run."""
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
        "userns_mode": "host",
        "ulimits": dict(sorted(endpoint.ulimits.items())),
        "devices": [f"nvidia.com/gpu={device}" for device in devices],
        "volumes": volumes,
        "restart": "unless-stopped",
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


def _bare(endpoint: EndpointPlan, venv: VenvPlan, settings: Settings) -> str:
    """Return commands for the virtual environment, the checkpoints and the server, with a deploy's paths."""
    argv = list(endpoint.argv)
    for mount in endpoint.mounts:
        if mount.target.startswith(f"{endpoint.checkpoint.path}/"):
            name = mount.target.rpartition("/")[2]
            raise RigupError(f"a shell would read the published {name}, not the patched one", "use `--as systemd`")
        argv = [word.replace(mount.target, mount.source) for word in argv]
    pinned = [requirement.partition(" ")[0] for requirement in venv.requirements]
    env = [f"{name}={value}" for name, value in sorted(endpoint.env.items())]
    pythons = f"UV_PYTHON_INSTALL_MIRROR={settings.python_mirror}"
    index = index_arguments(settings.pypi_index)
    lines = [
        ["env", pythons, "uv", "venv", f"--python={venv.python}", venv.path],
        ["uv", "pip", "install", *index, f"--python={venv.path}/bin/python3", *pinned],
        *_fetches(endpoint, settings),
        ["env", *env, *argv],
    ]
    return "".join(map(_lines, lines))


FORMS: Mapping[str, Callable[[EndpointPlan], str]] = {
    "docker": docker,
    "compose": compose,
    "systemd": systemd,
    "kubernetes": kubernetes,
    "shell": shell,
}
