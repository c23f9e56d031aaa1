"""Puts the lab's images together from their layers and pushes what the registry lacks.

`vllm/vllm-openai:cu130-nightly` has the real vLLM; `rigup-lab/standin:1` a stand-in that starts at once and misbehaves
on request, for tests alone.
"""

import fcntl
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab.registry import base, tree
from lab.registry.client import INDEX_TYPE, MANIFEST_TYPE, Registry
from lab.registry.layers import LAYER_TYPE, Blob, of_bytes, of_file, write_files, write_tree
from lab.settings import CACHE

NAME = "vllm/vllm-openai"
TAG = "cu130-nightly"
CREATED = "2026-02-20T00:00:00Z"
"""A nightly of the days in which the checkpoint appeared: before vLLM learned to leave its routers alone."""
CUDA_VERSION = "13.0.1"

STANDIN_NAME = "rigup-lab/standin"
STANDIN_TAG = "1"
STANDIN = Path(__file__).parents[1] / "standin_engine" / "server.py"
STANDIN_PLACE = "usr/local/lib/standin/server.py"

CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
ENGINE = Path(__file__).parents[1] / "engine"

COMMAND = b"""#!/usr/bin/python3
from lab_engine.entrypoint import main

if __name__ == "__main__":
    main()
"""


@contextmanager
def exclusive() -> Iterator[None]:
    """Keep every other process from building meanwhile; removes what killed or outdated builds left in the cache."""
    folder = CACHE / "image"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for path in folder.iterdir():
            kind, _, rest = path.name.partition("-")
            if kind.startswith("tmp") or (kind == "tree" and rest != tree.key()):
                shutil.rmtree(path)
        yield


def _engine_files() -> dict[str, tuple[bytes, int]]:
    modules = {f"{tree.PLACE}/lab_engine/{path.name}": (path.read_bytes(), 0o644) for path in ENGINE.glob("*.py")}
    return {"usr/local/bin/vllm": (COMMAND, 0o755), **modules}


def standin_config(layers: list[Blob]) -> dict[str, Any]:
    """The stand-in's configuration, with as much of the real image's as a deploy looks at."""
    real = config(layers)
    started = {"Entrypoint": ["python3", f"/{STANDIN_PLACE}"], "WorkingDir": "/"}
    history = [{"created": CREATED, "created_by": what} for what in ("Debian with Python", "the stand-in")]
    return {**real, "config": {**real["config"], **started}, "history": history}


def config(layers: list[Blob]) -> dict[str, Any]:
    """The image's configuration. The layers are not compressed, so their digests are those of their content."""
    environment = {
        "PATH": "/usr/local/cuda/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "CUDA_VERSION": CUDA_VERSION,
        "NVIDIA_VISIBLE_DEVICES": "all",
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
        "VLLM_USAGE_SOURCE": "production-docker-image",
        "VLLM_NO_USAGE_STATS": "1",
        "LAB_IMAGE_CREATED": CREATED,
    }
    return {
        "created": CREATED,
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Env": [f"{name}={value}" for name, value in environment.items()],
            "Entrypoint": ["vllm", "serve"],
            "WorkingDir": "/vllm-workspace",
            "Labels": {"org.opencontainers.image.title": "vLLM for CPUs in rigup's lab"},
        },
        "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
        "history": [
            {"created": CREATED, "created_by": what} for what in ("Debian with Python", "vLLM", "the lab's entry point")
        ],
    }


def _text(content: dict[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":"), sort_keys=True).encode()


def _layer(registry: Registry, name: str, layer_key: str, write: Callable[[Path], None]) -> Blob:
    """The layer as the registry holds it; written and pushed where it does not. Its archive is not kept."""
    record = CACHE / "image" / f"layer-{layer_key}.json"
    if record.exists():
        blob = Blob(**json.loads(record.read_text()))
        if registry.has_blob(name, blob):
            return blob
    record.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=record.parent) as beside:
        archive = Path(beside) / "layer.tar"
        write(archive)
        blob = of_file(archive)
        registry.push_blob(name, blob, archive)
        written = Path(beside) / "record"
        written.write_text(json.dumps({"digest": blob.digest, "size": blob.size}))
        written.rename(record)
    return blob


def _key(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _layers(registry: Registry) -> list[Blob]:
    def vllm(target: Path) -> None:
        write_tree(tree.build(), tree.PLACE, target)

    # vLLM first: its tree takes longest, and brings Debian's archive along.
    middle = _layer(registry, NAME, f"vllm-{tree.key()}", vllm)
    bottom = _layer(registry, NAME, f"base-{base.key()}", _debian)
    files = _engine_files()
    top = _layer(registry, NAME, f"engine-{_key(files)}", lambda target: write_files(files, target))
    return [bottom, middle, top]


def _standin_layers(registry: Registry) -> list[Blob]:
    files = {STANDIN_PLACE: (STANDIN.read_bytes(), 0o644)}
    bottom = _layer(registry, STANDIN_NAME, f"base-{base.key()}", _debian)
    top = _layer(registry, STANDIN_NAME, f"standin-{_key(files)}", lambda target: write_files(files, target))
    return [bottom, top]


def _debian(target: Path) -> None:
    target.hardlink_to(base.build())


def push(registry: Registry) -> str:
    """Make the registry serve the images of the present sources; returns the digest of the real one's index.

    Builds only what is neither in the registry nor in the cache. Raises lab.service.ServiceError where a part cannot
    be made and RegistryError where the registry refuses one.
    """
    layers = _layers(registry)
    digest = _push(registry, NAME, TAG, layers, config(layers))
    layers = _standin_layers(registry)
    _push(registry, STANDIN_NAME, STANDIN_TAG, layers, standin_config(layers))
    return digest


def _push(registry: Registry, name: str, tag: str, layers: list[Blob], configuration: dict[str, Any]) -> str:
    """Returns the digest of the image's index."""
    content = _text(configuration)
    manifest = _text(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": of_bytes(content).descriptor(CONFIG_TYPE),
            "layers": [layer.descriptor(LAYER_TYPE) for layer in layers],
        }
    )
    platform = {"platform": {"architecture": "amd64", "os": "linux"}}
    index = _text(
        {
            "schemaVersion": 2,
            "mediaType": INDEX_TYPE,
            "manifests": [of_bytes(manifest).descriptor(MANIFEST_TYPE) | platform],
        }
    )
    digest = of_bytes(index).digest
    if registry.manifest_digest(name, tag) != digest:
        registry.push_blob(name, of_bytes(content), content)
        registry.push_manifest(name, of_bytes(manifest).digest, MANIFEST_TYPE, manifest)
        registry.push_manifest(name, tag, INDEX_TYPE, index)
    return digest
