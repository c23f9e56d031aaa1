"""The plan: what one host is meant to become, as data. `rigup.plan.build` makes it.

Deploy, audit, rendering and the command line all start from here. The digest of an endpoint covers everything that
makes it a different process.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal, NotRequired

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, computed_field
from typing_extensions import TypedDict

from rigup.catalog.apply_patches import TEMPLATE
from rigup.errors import RigupError
from rigup.paths import (
    DRAFTER,
    ENDPOINTS,
    ENGINES,
    FILES_MOUNT,
    MODEL,
    UNITS,
    endpoint_unit,
    gateway_unit,
    instance_of,
    key_file,
)
from rigup.text import from_json

ENGINE_MEMORY_BYTES = 12 << 30
"""The memory of the host, not of its GPUs, that an engine needs at least."""


class Data(BaseModel):
    """The base of the plan's models: frozen, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Mount(Data):
    """A read-only mount: a path on the host, and the path in the container."""

    source: str
    target: str


class CheckpointPlan(Data):
    """A checkpoint at one commit. `path` is its directory in the store; `bytes` and `files` are as published.

    `listing` has the size and checksum of each file, as in the lock.
    """

    repo: str
    revision: str
    path: str
    bytes: int
    files: int
    listing: dict[str, str] = {}

    @computed_field  # type: ignore[prop-decorator]
    @property
    def instance(self) -> str:
        """The checkpoint's name for units and files: no slashes, and different for every commit."""
        return instance_of(self.repo, self.revision)

    @property
    def source(self) -> str:
        """The checkpoint as REPO@COMMIT."""
        return f"{self.repo}@{self.revision}"

    def places_in(self, source: str) -> tuple[str, ...]:
        """Return where it may be in a directory with a copy of a store, with checkpoints by name, or with only this."""
        return f"{source}/{self.repo}/{self.revision}", f"{source}/{self.repo.rpartition('/')[2]}", source


class VenvPlan(Data):
    """A Python environment on the host: `packages` as the recipe pins them, `requirements` with hashes for all."""

    python: str
    packages: tuple[str, ...]
    requirements: tuple[str, ...]

    @property
    def text(self) -> str:
        """The text of its requirements file."""
        return f"# Python {self.python}\n" + "".join(f"{requirement}\n" for requirement in self.requirements)

    @property
    def path(self) -> str:
        """Its directory, a different one for other packages: a running engine keeps its own until it is restarted."""
        return f"{ENGINES}/{hashlib.sha256(self.text.encode()).hexdigest()[:16]}"

    @property
    def done(self) -> str:
        """The path of a copy of its requirements, written last: it marks a complete environment."""
        return f"{self.path}/requirements.lock"


class Smoke(Data):
    """What to verify once an endpoint is up; `files/rigup_host/smoke.py` says what the fields mean."""

    tools: bool
    reasoning: bool
    images: bool
    speculation: bool
    merges_system: bool
    random_weights: bool
    long_prompt: int
    context: int | None
    instead: str | None
    thinking: str = "enable_thinking"


# The fields of an endpoint that reach its process. The checkpoint's path includes its commit.
PROCESS: Mapping[str, Any] = {
    **dict.fromkeys(("name", "engine", "image", "venv", "gpus", "address", "port", "served_name"), True),
    **dict.fromkeys(("command", "options", "env", "ulimits", "patched_files"), True),
    **dict.fromkeys(("caches", "tmpfs", "security_opt"), True),
    "checkpoint": {"path"},
}


class EndpointPlan(Data):
    """Everything that one served process is made of: an image, or a virtual environment.

    The engine always listens on loopback (`address`). On `public_address`, if any, a gateway asks for the API key, so
    that a new key or public address does not restart the engine. `command` is what comes before the arguments, and
    `options` are the arguments that the recipe decides. `drafter` is the checkpoint of a drafter that has one of its
    own.
    """

    name: str
    recipe: str
    engine: str
    image: str | None
    image_tag: str | None
    image_bytes: int
    image_cuda: str | None
    venv: VenvPlan | None = None
    min_driver_cuda: str | None
    checkpoint: CheckpointPlan
    drafter: CheckpointPlan | None = None
    gpus: Literal["all"] | tuple[int | str, ...]
    gpu_count: int
    vram_mib: int
    capability: str
    address: str
    port: int
    public_address: str | None
    allowed_networks: tuple[str, ...]
    served_name: str
    command: tuple[str, ...]
    options: tuple[str, ...]
    env: dict[str, str]
    ulimits: dict[str, int]
    patched_files: dict[str, str]
    caches: tuple[str, ...] = ()
    tmpfs: tuple[str, ...] = ()
    security_opt: tuple[str, ...] = ()
    ready_path: str
    ready_timeout: int
    stall_timeout: int
    smoke: Smoke

    @property
    def checkpoints(self) -> tuple[CheckpointPlan, ...]:
        """Its checkpoint, and then that of its drafter, if it has one of its own."""
        return (self.checkpoint, *([self.drafter] if self.drafter else []))

    @property
    def arguments(self) -> tuple[str, ...]:
        """The engine's arguments: model, name and address from the plan, then the options of the recipe."""
        model = "--model" if self.engine == "vllm" else "--model-path"
        return (
            f"{model}={self.checkpoint.path if self.venv else MODEL}",
            f"--served-model-name={self.served_name}",
            f"--host={self.address}",
            f"--port={self.port}",
            *self.options,
        )

    @property
    def argv(self) -> tuple[str, ...]:
        """The command that starts the engine, in the container if there is one."""
        return (*self.command, *self.arguments)

    @property
    def unit(self) -> str:
        """The systemd unit that serves it."""
        return endpoint_unit(self.name)

    @property
    def unit_file(self) -> str:
        """The path of the unit. In /etc it would override /run, where a switch tries another unit."""
        return f"{UNITS}/{self.unit}"

    @property
    def container(self) -> str:
        """The container's name."""
        return f"llm-{self.name}"

    @property
    def gpu_uuids(self) -> tuple[str, ...]:
        """The GPUs that the inventory names by UUID."""
        return () if self.gpus == "all" else tuple(gpu for gpu in self.gpus if isinstance(gpu, str))

    @property
    def generation(self) -> str:
        """A short name for this version of the endpoint. Each generation has its own files, so two can coexist."""
        return self.digest[:12]

    @property
    def directory(self) -> str:
        """The directory of this generation's environment file and patched files on the host."""
        return f"{ENDPOINTS}/{self.name}/{self.generation}"

    @property
    def mounts(self) -> tuple[Mount, ...]:
        """The checkpoints, and over them the patched files; without a container, only those with another path there."""
        model, extra = (self.checkpoint.path, f"{ENDPOINTS}/{self.name}") if self.venv else (MODEL, FILES_MOUNT)
        # Files after the directory: podman and Kubernetes mount in this order; Docker sorts by depth.
        mounts = [Mount(source=self.checkpoint.path, target=model)]
        if self.drafter:
            mounts.append(Mount(source=self.drafter.path, target=self.drafter.path if self.venv else DRAFTER))
        for name in sorted(self.patched_files):
            over = extra if name == TEMPLATE else model
            mounts.append(Mount(source=f"{self.directory}/{name}", target=f"{over}/{name}"))
        return tuple(mount for mount in mounts if mount.source != mount.target)

    @property
    def env_file(self) -> str:
        """The path of this generation's environment file."""
        return f"{self.directory}/env"

    @property
    def key_file(self) -> str:
        """The path of the API key."""
        return key_file(self.name)

    @property
    def gateway(self) -> str:
        """The unit of the gateway, which checks the API key if the endpoint can be reached from other hosts."""
        return gateway_unit(self.name)

    @property
    def url(self) -> str:
        """The URL of the engine, on the host's loopback."""
        return url_of(self.address, self.port)

    @property
    def public_url(self) -> str | None:
        """The URL of the gateway; None for an endpoint on loopback only."""
        return url_of(self.public_address, self.port) if self.public_address else None

    @property
    def digest(self) -> str:
        """The sha256 of everything that makes it a different process; an equal digest means that nothing restarts.

        Timeouts and the image's tag do not count: they are not worth reading 240 GB again.
        """
        # An endpoint without a drafter keeps the digest that versions before drafters gave it.
        return _digest(self, {**PROCESS, "drafter": {"path"}} if self.drafter else PROCESS)


class _KeptEndpoint(TypedDict):
    """What is read of an endpoint in a plan that is stored on a host."""

    name: str
    recipe: str
    gpus: Literal["all"] | list[int | str]
    address: str
    port: int
    ready_path: str
    served_name: NotRequired[str]
    public_address: NotRequired[str | None]


class _KeptSettings(TypedDict, total=False):
    kernel_args: list[str]


class _KeptPlan(TypedDict, total=False):
    endpoints: list[_KeptEndpoint]
    settings: _KeptSettings


_KEPT = TypeAdapter(_KeptPlan)


class Plan(Data):
    """What one host is meant to become. `text()` is stored on the host."""

    host: str
    endpoints: tuple[EndpointPlan, ...]
    settings: dict[str, Any]

    @property
    def digest(self) -> str:
        """The sha256 of the whole plan."""
        return _digest(self)

    @property
    def checkpoints(self) -> tuple[CheckpointPlan, ...]:
        """The checkpoints of all endpoints, each once."""
        return tuple({each.path: each for endpoint in self.endpoints for each in endpoint.checkpoints}.values())

    @property
    def images(self) -> dict[str, str]:
        """The images of all endpoints: references by digest, and the tag that each was resolved from."""
        return {each.image: each.image_tag for each in self.endpoints if each.image and each.image_tag}

    @property
    def image_bytes(self) -> dict[str, int]:
        """The compressed sizes of the images, by their references."""
        return {each.image: each.image_bytes for each in self.endpoints if each.image}

    @property
    def venvs(self) -> tuple[VenvPlan, ...]:
        """The virtual environments of all endpoints, each once."""
        return tuple({each.venv.path: each.venv for each in self.endpoints if each.venv}.values())

    def endpoint(self, name: str) -> EndpointPlan:
        """Return an endpoint. Raises RigupError if there is none of that name."""
        for endpoint in self.endpoints:
            if endpoint.name == name:
                return endpoint
        names = ", ".join(each.name for each in self.endpoints)
        raise RigupError(f"{self.host} has no endpoint {name!r}", f"it has {names}")

    def text(self) -> str:
        """Return the plan as sorted JSON, with its digest."""
        data = self.model_dump(mode="json") | {"digest": self.digest}
        return json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def kept_plan(text: str | None) -> dict[str, Any]:
    """Return the plan stored on a host, from that file's text; empty if it is missing or damaged."""
    try:
        found: dict[str, Any] = from_json(text or "{}")
        _KEPT.validate_python(found, strict=True)
    except ValueError:
        return {}
    return found


def kept_endpoint(text: str | None, name: str) -> EndpointPlan | None:
    """Return an endpoint of the plan stored on a host; None if it is not there, damaged, or of another version."""
    for each in kept_plan(text).get("endpoints", []):
        if each["name"] == name:
            kept: dict[str, Any] = dict(each)
            for place in ("checkpoint", "drafter"):
                if isinstance(found := kept.get(place), dict):
                    kept[place] = {key: value for key, value in found.items() if key != "instance"}
            try:
                return EndpointPlan.model_validate(kept)
            except ValidationError:
                return None
    return None


def url_of(address: str, port: int) -> str:
    """Return the URL of a server at an address, which may be of IPv6."""
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{port}"


def _digest(model: BaseModel, include: Mapping[str, Any] | None = None) -> str:
    canonical = json.dumps(
        model.model_dump(mode="json", include=dict(include) if include else None),
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=True,
    )
    return hashlib.sha256(canonical.encode()).hexdigest()
