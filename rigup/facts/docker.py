"""Docker's images and containers."""

from __future__ import annotations

from pyinfra.api.facts import FactBase

from rigup.facts.reading import reading, texts_by_path
from rigup.host_config import dockerd_flags
from rigup.paths import DOCKER_DROP_INS, DOCKER_UNIT, SYSTEM_UNITS


def parse_image_digests(lines: list[str]) -> set[str]:
    """Parse references `REPOSITORY@sha256:...` from `docker image ls --digests`; images built here have none."""
    return set(line.strip() for line in lines if "@sha256:" in line)


class ImageDigests(FactBase[set[str]]):
    """References by digest of all images on the host; empty if Docker is missing or down."""

    @staticmethod
    def default() -> set[str]:
        return set()

    def command(self) -> str:
        return "docker image ls --digests --no-trunc --format '{{.Repository}}@{{.Digest}}' 2>/dev/null || true"

    @reading
    def process(self, output: list[str]) -> set[str]:
        return parse_image_digests(output)


def parse_containers(lines: list[str]) -> list[str]:
    """Parse the names without a plan from `docker ps` lines `NAME<tab>PLAN`."""
    return sorted(name for name, _, plan in (line.partition("\t") for line in lines) if name and not plan)


class OtherContainers(FactBase[list[str]]):
    """The names of running containers that rigup did not start; empty if Docker is missing or down."""

    @staticmethod
    def default() -> list[str]:
        return []

    def command(self) -> str:
        return """docker ps --format '{{.Names}}\t{{.Label "rigup.plan"}}' 2>/dev/null || true"""

    @reading
    def process(self, output: list[str]) -> list[str]:
        return parse_containers(output)


class DockerdFlags(FactBase[dict[str, str]]):
    """The values of the flags that Docker's unit starts dockerd with, by their key in daemon.json."""

    @staticmethod
    def default() -> dict[str, str]:
        return dockerd_flags({})

    def command(self) -> str:
        units = f"/lib/systemd/system/{DOCKER_UNIT} {SYSTEM_UNITS}/{DOCKER_UNIT}"
        return f"grep -H '' {units} {DOCKER_DROP_INS}/*.conf 2>/dev/null || true"

    @reading
    def process(self, output: list[str]) -> dict[str, str]:
        return dockerd_flags(texts_by_path(output))
