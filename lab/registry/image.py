"""Assemble the lab's images from their layers and push what the registry lacks.

The real vLLM for CPUs and a stand-in for SGLang have all the names that recipes of the catalog use, with the creation
date of the real image; a stand-in that starts at once and misbehaves on request is for tests only.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import cuda, locking
from lab.registry import base, tree
from lab.registry.client import INDEX_TYPE, MANIFEST_TYPE, Registry
from lab.registry.layers import LAYER_TYPE, Blob, of_bytes, of_file, write_files, write_tree
from lab.settings import CACHE
from rigup.catalog.engine_options import fork_of, ordered, releases

NAME = "vllm/vllm-openai"
TAG = "cu130-nightly"
CREATED = "2026-02-20T00:00:00Z"
"""A nightly from when the checkpoint appeared: its vLLM still reads the routers as quantized."""
CUDA_VERSION = "13.0.1"

REPAIRED = "2026-04-03T00:00:00Z"
"""When the community's images contained vLLM's fixes, or fixes of their own."""


@dataclass(frozen=True)
class Offer:
    """An image under one of its names. Without an entry point the recipe's command starts the server."""

    name: str
    tag: str
    engine: str = "vllm"
    created: str = CREATED
    entrypoint: tuple[str, ...] = ("vllm", "serve")
    fork: str | None = None

    @property
    def title(self) -> str:
        what = {"vllm": "vLLM for CPUs", "sglang": "a stand-in for SGLang", "standin": "a stand-in that misbehaves"}
        return f"{what[self.engine]} in rigup's lab"


OFFERS = (
    Offer(NAME, TAG),
    Offer(NAME, "qwen3_5-cu130"),
    Offer(NAME, "nightly-f91808ae0ddf750acfdeb351fa072c91d4d678fc"),
    Offer("orthozany/vllm-qwen35-mtp", "latest", created=REPAIRED),
    Offer("voipmonitor/vllm", "cu130", created=REPAIRED, entrypoint=()),
    Offer("lmsysorg/sglang", "dev-cu13", "sglang", entrypoint=()),
    Offer("voipmonitor/sglang", "cu130", "sglang", REPAIRED, (), fork="voipmonitor"),
    Offer("rigup-lab/standin", "1", "standin", entrypoint=("python3", "/usr/local/lib/standin.py")),
)

CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
ENGINE = Path(__file__).parents[1] / "engine"
STANDIN = Path(__file__).parents[1] / "standin_engine" / "server.py"
SGLANG = Path(__file__).parents[1] / "sglang"

COMMAND = b"""#!/usr/bin/python3
from lab_engine.entrypoint import main

if __name__ == "__main__":
    main()
"""

# In images without an entry point recipes start the server with Python; this redirects to the lab's vLLM.
LAUNCHER = b"""#!/usr/bin/python3
import os
import sys

if sys.argv[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]:
    os.execv("/usr/local/bin/vllm", ["vllm", "serve", *sys.argv[3:]])
os.execv("/usr/bin/python3", ["python3", *sys.argv[1:]])
"""


@contextmanager
def exclusive() -> Iterator[None]:
    """Lock out other builds; remove what killed or outdated builds left in the cache."""
    folder = CACHE / "image"
    with locking.exclusive(folder / "lock"):
        for path in folder.iterdir():
            kind, _, rest = path.name.partition("-")
            if kind.startswith("tmp") or (kind == "tree" and rest != tree.key()):
                shutil.rmtree(path)
        yield


def _engine_files() -> dict[str, tuple[bytes, int]]:
    modules = {f"{tree.PLACE}/lab_engine/{path.name}": (path.read_bytes(), 0o644) for path in ENGINE.glob("*.py")}
    return {"usr/local/bin/vllm": (COMMAND, 0o755), **modules, **cuda.image_files()}


def known_options(fork: str | None) -> str:
    """Return the options of SGLang's command line, or that of a fork, as JSON for the stand-in."""
    own = [each for each in releases() if each.engine == "sglang"]
    release = fork_of("sglang", fork) if fork else max(own, key=lambda each: ordered(each.version))
    return json.dumps(dict(release.options), indent=0, sort_keys=True)


def _sglang_files(fork: str | None) -> dict[str, tuple[bytes, int]]:
    files = {path.name: (path.read_bytes(), 0o644) for path in (*SGLANG.glob("*.py"), ENGINE / "gpus.py")}
    files["known.json"] = (known_options(fork).encode(), 0o644)
    return {f"{tree.PLACE}/sglang/{name}": file for name, file in files.items()} | cuda.image_files()


def config(layers: list[Blob], offer: Offer = OFFERS[0]) -> dict[str, Any]:
    """Return the image's configuration. Layers are uncompressed, so their digests are those of their content."""
    environment = {
        "PATH": "/usr/local/cuda/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "CUDA_VERSION": CUDA_VERSION,
        "NVIDIA_VISIBLE_DEVICES": "all",
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
        "VLLM_USAGE_SOURCE": "production-docker-image",
        "VLLM_NO_USAGE_STATS": "1",
        "LAB_IMAGE_CREATED": offer.created,
    }
    parts = ["Debian with Python", "the lab's stand-in"]
    if offer.engine == "vllm":
        parts[1:] = ["vLLM", "the lab's entry point", "a launcher"]
    return {
        "created": offer.created,
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Env": [f"{name}={value}" for name, value in environment.items()],
            "Entrypoint": list(offer.entrypoint),
            "WorkingDir": "/vllm-workspace",
            "Labels": {"org.opencontainers.image.title": offer.title},
        },
        "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
        "history": [{"created": offer.created, "created_by": what} for what, _ in zip(parts, layers, strict=False)],
    }


def _text(content: dict[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":"), sort_keys=True).encode()


def _layer(registry: Registry, layer_key: str, write: Callable[[Path], None]) -> Blob:
    """Return the layer; write and push it if the registry lacks it. Its archive is not kept."""
    record = CACHE / "image" / f"layer-{layer_key}.json"
    if record.exists():
        blob = Blob(**json.loads(record.read_text()))
        if registry.has_blob(NAME, blob):
            return blob
    record.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=record.parent) as beside:
        archive = Path(beside) / "layer.tar"
        write(archive)
        blob = of_file(archive)
        registry.push_blob(NAME, blob, archive)
        written = Path(beside) / "record"
        written.write_text(json.dumps({"digest": blob.digest, "size": blob.size}))
        written.rename(record)
    return blob


def _key(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _debian(registry: Registry) -> Blob:
    return _layer(registry, f"base-{base.key()}", lambda target: target.hardlink_to(base.build()))


def _vllm(registry: Registry) -> list[Blob]:
    def vllm(target: Path) -> None:
        write_tree(tree.build(), tree.PLACE, target)

    # vLLM first: its tree takes longest and needs Debian's archive too.
    middle = _layer(registry, f"vllm-{tree.key()}", vllm)
    return [_debian(registry), middle, _files(registry, _engine_files())]


def _files(registry: Registry, files: dict[str, tuple[bytes, int]]) -> Blob:
    return _layer(registry, f"engine-{_key(files)}", lambda target: write_files(files, target))


def _layers(registry: Registry, offer: Offer) -> list[Blob]:
    if offer.engine == "sglang":
        return [_debian(registry), _files(registry, _sglang_files(offer.fork))]
    if offer.engine == "standin":
        files = {offer.entrypoint[1].lstrip("/"): (STANDIN.read_bytes(), 0o644), **cuda.image_files()}
        return [_debian(registry), _files(registry, files)]
    launcher = {"usr/local/bin/python3": (LAUNCHER, 0o755)}
    return _vllm(registry) + ([] if offer.entrypoint else [_files(registry, launcher)])


def push(registry: Registry) -> str:
    """Make the registry serve the images of the current sources under all their names; return the first's digest.

    Builds only what is neither in the registry nor in the cache. Raises LabError when a part cannot be built or pushed.
    """
    first, *_ = [_push(registry, offer) for offer in OFFERS]
    return first


def _push(registry: Registry, offer: Offer) -> str:
    layers = _layers(registry, offer)
    content = _text(config(layers, offer))
    config_entry, layer_entries = (
        of_bytes(content).descriptor(CONFIG_TYPE),
        [each.descriptor(LAYER_TYPE) for each in layers],
    )
    manifest = _text({"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config_entry, "layers": layer_entries})
    platform = {"platform": {"architecture": "amd64", "os": "linux"}}
    manifests = [of_bytes(manifest).descriptor(MANIFEST_TYPE) | platform]
    index = _text({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests})
    digest = of_bytes(index).digest
    if registry.manifest_digest(offer.name, offer.tag) != digest:
        for layer in layers:
            registry.mount_blob(offer.name, layer, NAME)
        registry.push_blob(offer.name, of_bytes(content), content)
        registry.push_manifest(offer.name, of_bytes(manifest).digest, MANIFEST_TYPE, manifest)
        registry.push_manifest(offer.name, offer.tag, INDEX_TYPE, index)
    return digest
