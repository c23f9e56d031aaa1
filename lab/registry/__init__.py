"""The lab's container registry: Debian's docker-registry with the image that lab hosts pull."""

import shutil

from lab.registry.client import Registry
from lab.registry.image import push
from lab.service import Service, ServiceError, daemonise
from lab.service import stop as stop_service
from lab.settings import CACHE, GATEWAY, REGISTRY_PORT, REGISTRY_URL, STATE

SERVICE = "registry"
STORAGE = CACHE / "registry"
"""What was pushed. It is a cache: an image that is not there is built and pushed again."""


def configuration(address: str) -> str:
    """docker-registry's configuration file for this address."""
    return f"""version: 0.1
log:
  level: warn
storage:
  filesystem:
    rootdirectory: {STORAGE}
  cache:
    blobdescriptor: inmemory
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
    settings = STATE / "registry" / "config.yml"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(configuration(f"{GATEWAY}:{REGISTRY_PORT}"))
    STORAGE.mkdir(parents=True, exist_ok=True)
    registry = Registry(REGISTRY_URL)
    service = daemonise(SERVICE, [program, "serve", settings], url=REGISTRY_URL, ready=registry.answers, timeout=30)
    push(registry)
    return service


def stop() -> bool:
    """Stop the registry; returns whether it ran. What it stores stays in the cache."""
    return stop_service(SERVICE)
