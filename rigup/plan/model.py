"""The plan: what one host shall become, as data. `rigup.plan.build` makes it.

Deploy, audit, rendering and the command line all start from here. Everything that makes the served process another one
is in the digest of its endpoint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, computed_field

from rigup.catalog import apply_patches
from rigup.errors import RigupError

__all__ = [
    "PLAN",
    "CheckpointPlan",
    "EndpointPlan",
    "Mount",
    "Plan",
    "Smoke",
    "VenvPlan",
    "engine_unit",
    "fetch_unit",
    "instance_of",
    "kept_plan",
    "key_file",
    "pull_unit",
]

MODEL = "/model"
# A file that the checkpoint may not have cannot be mounted into it: the store is read-only.
BESIDE = "/rigup"
ENDPOINTS = "/etc/rigup/endpoints"
PLAN = "/etc/rigup/plan.json"
UNITS = "/usr/local/lib/systemd/system"

ENGINES = "/usr/local/lib/rigup/engines"


class Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Mount(Data):
    """A read-only mount: a path of the host, and where the container sees it."""

    source: str
    target: str


class CheckpointPlan(Data):
    """A checkpoint at one commit. `path` is its directory in the store; `bytes` and `files` are as published.

    `listing` has the size and checksum of each file, as the lock has them.
    """

    id: str
    repo: str
    revision: str
    path: str
    bytes: int
    files: int
    listing: dict[str, str] = {}

    @computed_field  # type: ignore[prop-decorator]
    @property
    def instance(self) -> str:
        """A name for units and files: without slashes, and different for every commit."""
        return instance_of(self.repo, self.revision)

    def places_in(self, source: str) -> tuple[str, ...]:
        """Where it may lie in a directory that holds a copy of a store, or of checkpoints by name, or it alone."""
        return f"{source}/{self.repo}/{self.revision}", f"{source}/{self.repo.rpartition('/')[2]}", source


class VenvPlan(Data):
    """A Python environment on the host: `packages` as the recipe pins them, `requirements` all of them with hashes."""

    python: str
    packages: tuple[str, ...]
    requirements: tuple[str, ...]

    @property
    def text(self) -> str:
        """The requirements file that it is made from."""
        return f"# Python {self.python}\n" + "".join(f"{requirement}\n" for requirement in self.requirements)

    @property
    def path(self) -> str:
        """Another one for other packages: what serves keeps its own until it is restarted."""
        return f"{ENGINES}/{hashlib.sha256(self.text.encode()).hexdigest()[:16]}"

    @property
    def done(self) -> str:
        """Where the copy of its requirements stands that is written last."""
        return f"{self.path}/requirements.lock"


class Smoke(Data):
    """What an endpoint is tried for once it is up; `files/smoke.py` says what the fields mean."""

    tools: bool
    reasoning: bool
    images: bool
    speculation: bool
    merges_system: bool
    random_weights: bool
    long_prompt: int
    context: int | None
    instead: str | None


# The fields of an endpoint that reach its process; the checkpoint's directory names its commit.
PROCESS: Mapping[str, Any] = {
    **dict.fromkeys(("name", "image", "gpus", "argv", "env", "ulimits", "patched_files"), True),
    "checkpoint": {"path"},
}
# The same, but they count only where there are any: most endpoints have none.
PROCESS_OPTIONS = ("venv", "caches", "tmpfs", "security_opt")


class EndpointPlan(Data):
    """Everything that one served process is made of: an image, or a virtual environment where the others are None.

    The engine itself always listens on loopback (`address`). Beyond it, a gateway on `public_address` asks for the key:
    another key or address then restarts no engine.
    """

    name: str
    recipe: str
    engine: str
    image: str | None
    image_tag: str | None
    image_bytes: int
    image_created: datetime | None
    image_cuda: str | None
    venv: VenvPlan | None = None
    min_driver_cuda: str | None
    checkpoint: CheckpointPlan
    gpus: Literal["all"] | tuple[int | str, ...]
    gpu_count: int
    vram_mib: int
    address: str
    port: int
    public_address: str | None
    allowed_networks: tuple[str, ...]
    served_name: str
    argv: tuple[str, ...]
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
    def unit(self) -> str:
        return f"llm@{self.name}.service"

    @property
    def unit_file(self) -> str:
        """Where the unit lies. In /etc it would have precedence over /run, where a switch tries out another one."""
        return f"{UNITS}/{self.unit}"

    @property
    def container(self) -> str:
        return f"llm-{self.name}"

    @property
    def gpu_uuids(self) -> tuple[str, ...]:
        """The GPUs that are named by UUID."""
        return () if self.gpus == "all" else tuple(gpu for gpu in self.gpus if isinstance(gpu, str))

    @property
    def generation(self) -> str:
        """Names what this endpoint is made of. Each generation has files of its own: two can lie side by side."""
        return self.digest[:12]

    @property
    def directory(self) -> str:
        """Where this generation's environment file and patched files lie on the host."""
        return f"{ENDPOINTS}/{self.name}/{self.generation}"

    @property
    def mounts(self) -> tuple[Mount, ...]:
        """The checkpoint, and over it the patched files; without a container only those that lie elsewhere."""
        model, beside = (self.checkpoint.path, f"{ENDPOINTS}/{self.name}") if self.venv else (MODEL, BESIDE)
        # Files after the directory: podman and Kubernetes mount in this order, Docker sorts by depth anyway.
        mounts = [Mount(source=self.checkpoint.path, target=model)]
        for name in sorted(self.patched_files):
            over = beside if name == apply_patches.TEMPLATE else model
            mounts.append(Mount(source=f"{self.directory}/{name}", target=f"{over}/{name}"))
        return tuple(mount for mount in mounts if mount.source != mount.target)

    @property
    def env_file(self) -> str:
        return f"{self.directory}/env"

    @property
    def key_file(self) -> str:
        return key_file(self.name)

    @property
    def gateway(self) -> str:
        """The unit that checks the API key, in front of an endpoint that is reachable from beyond the host."""
        return f"rigup-gateway@{self.name}.service"

    @property
    def url(self) -> str:
        """Where the engine answers, on the host's loopback."""
        return _url(self.address, self.port)

    @property
    def public_url(self) -> str | None:
        """Where it answers with the key; None for an endpoint on loopback alone."""
        return _url(self.public_address, self.port) if self.public_address else None

    @property
    def digest(self) -> str:
        """sha256 over what the served process is made of: another digest means another process, and an equal one none.

        How long to wait for it, or what its image is called, does not count: no restart reads 240 GB for that.
        """
        return _digest(self, {**PROCESS, **{name: True for name in PROCESS_OPTIONS if getattr(self, name)}})


def key_file(endpoint: str) -> str:
    """Where the API key of an endpoint that is reachable from beyond its host lies on the host."""
    return f"{ENDPOINTS}/{endpoint}/key"


class Plan(Data):
    """What one host shall become. `text()` is what is kept on the host."""

    host: str
    endpoints: tuple[EndpointPlan, ...]
    driver_branch: int
    driver_version: str | None
    cuda_toolkit: str | None
    model_store: str
    settings: dict[str, Any]

    @property
    def digest(self) -> str:
        return _digest(self)

    @property
    def checkpoints(self) -> tuple[CheckpointPlan, ...]:
        """The checkpoints of all endpoints, each once."""
        return tuple({endpoint.checkpoint.path: endpoint.checkpoint for endpoint in self.endpoints}.values())

    @property
    def images(self) -> dict[str, str]:
        """The images of all endpoints: reference by digest, to the tag it was resolved from."""
        return {each.image: each.image_tag for each in self.endpoints if each.image and each.image_tag}

    @property
    def venvs(self) -> tuple[VenvPlan, ...]:
        """The virtual environments of all endpoints, each once."""
        return tuple({each.venv.path: each.venv for each in self.endpoints if each.venv}.values())

    def endpoint(self, name: str) -> EndpointPlan:
        """Raises RigupError where there is no such endpoint."""
        for endpoint in self.endpoints:
            if endpoint.name == name:
                return endpoint
        raise RigupError(f"{self.host} has no endpoint {name!r}: {', '.join(e.name for e in self.endpoints)}")

    def text(self) -> str:
        """The plan as JSON, sorted, with its digest."""
        data = self.model_dump(mode="json") | {"digest": self.digest}
        return json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def fetch_unit(instance: str) -> str:
    """The unit that fetches the checkpoint of this instance."""
    return f"model-fetch@{instance}.service"


def pull_unit(reference: str) -> str:
    """The unit that pulls the image `REPOSITORY@sha256:...`."""
    return f"rigup-pull-{reference.rpartition(':')[2][:12]}.service"


def engine_unit(path: str) -> str:
    """The unit that fills an engine's virtual environment."""
    return f"rigup-engine-{path.rpartition('/')[2]}.service"


def instance_of(repo: str, revision: str) -> str:
    """A checkpoint's name for units and files: without slashes, and different for every commit."""
    return f"{repo.replace('/', '--')}--{revision[:12]}"


def kept_plan(text: str | None) -> dict[str, Any]:
    """The plan that a host keeps, from that file's text; empty where it is gone or damaged."""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _url(address: str, port: int) -> str:
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{port}"


def _digest(model: BaseModel, include: dict[str, Any] | None = None) -> str:
    canonical = json.dumps(
        model.model_dump(mode="json", include=include), sort_keys=True, separators=(",", ":"), ensure_ascii=True
    )
    return hashlib.sha256(canonical.encode()).hexdigest()
