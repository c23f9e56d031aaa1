"""The three apt repositories that a host needs, at the configured mirrors, and the source files that they replace."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from rigup.config.settings import Settings
from rigup.distros.table import distro_named

__all__ = ["SOURCES", "Repository", "entangled_sources", "repositories", "source_uris", "superseded_sources"]


SOURCES = "/etc/apt/sources.list.d/"


@dataclass(frozen=True)
class Repository:
    """An apt repository, as configured on a host.

    `key_url` is a keyring package for NVIDIA's CUDA repository and a key file for the others. `stale` are the source
    files that older guides create: apt refuses to work with two different Signed-By for the same address.
    """

    name: str
    index_url: str
    key_url: str
    key_path: str
    source_path: str
    source_text: str
    stale: tuple[str, ...]

    @property
    def uris(self) -> set[str]:
        """The addresses of the repository, in the form of `source_uris`."""
        return source_uris(self.source_path, self.source_text)


def source_uris(path: str, text: str) -> set[str]:
    """Return the addresses of the enabled repositories in an apt source file (sources.list(5))."""
    found: list[str] = []
    if path.endswith(".sources"):
        for paragraph in re.split(r"\n\s*\n", text):
            lines = "\n".join(line for line in paragraph.splitlines() if not line.startswith("#"))
            fields = [line.partition(":")[::2] for line in re.sub(r"\n[ \t]+", " ", lines).splitlines()]
            values = {name.strip().lower(): value.strip() for name, value in fields}
            if values.get("enabled", "yes").lower() not in ("no", "false", "without", "off", "disable"):
                found += values.get("uris", "").split()
    else:
        found = re.findall(r"^\s*deb(?:-src)?\s+(?:\[[^\]]*\]\s*)?(\S+)", text, re.MULTILINE)
    return {uri.replace("$(ARCH)", "amd64").rstrip("/") for uri in found}


def superseded_sources(repository: Repository, sources: Mapping[str, Collection[str]]) -> list[str]:
    """Return the source files to remove: those of older guides, and those in `sources` with only this repository."""
    same = (path for path, uris in sources.items() if {*uris} == repository.uris and path.startswith(SOURCES))
    return list(dict.fromkeys((*repository.stale, *sorted({*same} - {repository.source_path}))))


def entangled_sources(repository: Repository, sources: Mapping[str, Collection[str]]) -> list[str]:
    """Return other source files with this repository that cannot be removed, because they have others as well."""
    named = [path for path, uris in sources.items() if repository.uris & {*uris} and path != repository.source_path]
    return sorted({*named} - {*superseded_sources(repository, sources)})


def repositories(distro: str, settings: Settings) -> dict[str, Repository]:
    """Return the three repositories `cuda`, `docker` and `toolkit`, at the mirrors in the settings."""
    known = distro_named(distro)
    cuda = f"{settings.cuda_mirror}/{distro}/x86_64"
    docker = f"{settings.docker_mirror}/{known.family}"
    toolkit = settings.toolkit_mirror
    keyring = "/usr/share/keyrings/nvidia-container-toolkit-keyring.gpg"
    return {
        "cuda": Repository(
            name="cuda",
            index_url=f"{cuda}/Packages.gz",
            # The same file name on all distributions, but Debian 13 has a different key: do not share the path.
            key_url=f"{cuda}/cuda-keyring_1.1-1_all.deb",
            key_path="/usr/share/keyrings/cuda-archive-keyring.gpg",
            source_path=f"{SOURCES}cuda-{distro}-x86_64.list",
            source_text=f"deb [signed-by=/usr/share/keyrings/cuda-archive-keyring.gpg] {cuda}/ /\n",
            stale=(f"{SOURCES}cuda.list", f"{SOURCES}cuda-repo.list"),
        ),
        "docker": Repository(
            name="docker",
            index_url=f"{docker}/dists/{known.codename}/stable/binary-amd64/Packages.gz",
            key_url=f"{docker}/gpg",
            key_path="/etc/apt/keyrings/docker.asc",
            source_path=f"{SOURCES}docker.sources",
            source_text=(
                f"Types: deb\nURIs: {docker}\nSuites: {known.codename}\nComponents: stable\n"
                "Architectures: amd64\nSigned-By: /etc/apt/keyrings/docker.asc\n"
            ),
            stale=(f"{SOURCES}docker.list", f"{SOURCES}docker-ce.list"),
        ),
        "toolkit": Repository(
            name="toolkit",
            index_url=f"{toolkit}/stable/deb/amd64/Packages.gz",
            key_url=f"{toolkit}/gpgkey",
            key_path=keyring.replace(".gpg", ".asc"),
            source_path=f"{SOURCES}nvidia-container-toolkit.list",
            source_text=f"deb [signed-by={keyring.replace('.gpg', '.asc')}] {toolkit}/stable/deb/amd64 /\n",
            stale=(
                f"{SOURCES}libnvidia-container.list",
                f"{SOURCES}nvidia-docker.list",
            ),
        ),
    }
