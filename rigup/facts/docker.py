"""Docker's images."""

from __future__ import annotations

from pyinfra.api.facts import FactBase

from rigup.facts.reading import reading


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
