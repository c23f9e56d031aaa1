"""The lab's container registry: Debian's docker-registry with the image that lab hosts pull."""

import shutil
from pathlib import Path

from lab.registry import tree
from lab.registry.client import Registry
from lab.registry.image import exclusive, push
from lab.service import Service, ServiceError, daemonise, tail
from lab.service import stop as stop_service
from lab.settings import CACHE, GATEWAY, REGISTRY_PORT, REGISTRY_URL, STATE

SERVICE = "registry"
STORES = CACHE / "registry"

# So several checkouts, with images of their own, can share a cache.
_KEPT_STORES = 4


def storage() -> Path:
    """Where the registry keeps what was pushed: a cache, one for each version of the large layer."""
    return STORES / tree.key()


def configuration(address: str) -> str:
    """docker-registry's configuration file for this address."""
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
    """Start the registry and have it serve the lab's image; quick where it does already.

    Raises lab.service.ServiceError where docker-registry is missing, cannot listen, or the image cannot be built.
    """
    program = shutil.which("docker-registry")
    if program is None:
        raise ServiceError("docker-registry is not installed: run `apt-get install docker-registry`")
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
        service = daemonise(SERVICE, command, url=REGISTRY_URL, ready=registry.answers, timeout=30)
        try:
            push(registry)
        except OSError as error:
            raise ServiceError(
                f"the lab's image could not be pushed to {REGISTRY_URL}: {error}\n{tail(SERVICE)}"
            ) from error
        storage().touch()
        by_age = sorted(STORES.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for outdated in by_age[_KEPT_STORES:]:
            shutil.rmtree(outdated)
    return service


def stop() -> bool:
    """Stop the registry; returns whether it ran. What it stores stays in the cache."""
    return stop_service(SERVICE)
