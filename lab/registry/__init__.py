"""The lab's container registry: Debian's docker-registry with the images that lab hosts pull."""

import shutil
from pathlib import Path

from lab import service
from lab.errors import LabError
from lab.registry import tree
from lab.registry.client import Registry
from lab.registry.image import exclusive, push
from lab.service import Service
from lab.settings import CACHE, GATEWAY, REGISTRY_PORT, REGISTRY_URL, STATE

NAME = "registry"
STORES = CACHE / "registry"

# How many checkouts with different images can share a cache.
_KEPT_STORES = 4


def storage() -> Path:
    """Return where the registry stores blobs: in the cache, one directory per version of the large layer."""
    return STORES / tree.key()


def configuration(address: str) -> str:
    """Return docker-registry's configuration file for this address."""
    return f"""version: 0.1
log:
  level: warn
storage:
  filesystem:
    rootdirectory: {storage()}
http:
  addr: {address}
"""


def start() -> Service:
    """Start the registry and push the lab's images, as far as they are missing.

    Raises LabError when docker-registry is missing or cannot listen, or an image cannot be built.
    """
    program = shutil.which("docker-registry")
    if program is None:
        raise LabError("docker-registry is not installed: run `apt-get install docker-registry`")
    with exclusive():
        settings = STATE / "registry" / "config.yml"
        text = configuration(f"{GATEWAY}:{REGISTRY_PORT}")
        if not settings.exists() or settings.read_text() != text:
            stop()
            settings.parent.mkdir(parents=True, exist_ok=True)
            settings.write_text(text)
        storage().mkdir(parents=True, exist_ok=True)
        registry = Registry(REGISTRY_URL)
        command: list[str | Path] = [program, "serve", settings]
        started = service.start(NAME, command, url=REGISTRY_URL, ready=registry.answers, timeout=30)
        try:
            push(registry)
        except OSError as error:
            raise LabError(
                f"the lab's images could not be pushed to {REGISTRY_URL}: {error}\n{service.tail(NAME)}"
            ) from error
        storage().touch()
        by_age = sorted(STORES.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for outdated in by_age[_KEPT_STORES:]:
            shutil.rmtree(outdated)
    return started


def stop() -> bool:
    """Stop the registry; return whether it was running. What it stores stays in the cache."""
    return service.stop(NAME)
