"""Fill the lock from the network: on the control machine, once, and only for what is asked.

What cannot be resolved is an error, not a guess; all of them are raised together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rigup.catalog import apply_patches
from rigup.catalog.apply_patches import Published, needed_patches
from rigup.catalog.loader import Catalog, Checkpoint
from rigup.catalog.recipe import Image, Venv
from rigup.catalog.select import recipe_of
from rigup.config.settings import Settings
from rigup.distros.apt_sources import Repository, repositories
from rigup.distros.driver import driver_packages
from rigup.errors import Finding, InputError, RigupError
from rigup.lock import apt, lockfile
from rigup.lock.http import Unresolved, Web
from rigup.lock.hub import checkpoint_lock, published_file
from rigup.lock.lockfile import CheckpointLock, ImageLock, Lock, VenvLock, checkpoint_revision
from rigup.lock.packages import cuda_group, docker_group, driver_group, toolkit_group
from rigup.lock.pypi import venv_lock
from rigup.lock.registry import image_lock

__all__ = ["KINDS", "ResolveError", "Want", "ensure", "published_file", "published_for", "resolve"]

KINDS = ("images", "venvs", "checkpoints", "packages", "keys")


class ResolveError(InputError):
    """Everything that could not be resolved: setting, URL, reason, remedy."""


@dataclass(frozen=True)
class Want:
    """What one host asks of the lock. Without `distro` (a fact of the host) that is image and checkpoint alone."""

    settings: Settings
    distro: str | None = None


def ensure(path: Path, wants: Iterable[Want], catalog: Catalog) -> Lock:
    """The lock at `path` with everything in it that the hosts want; written only where something was missing.

    Raises ResolveError with all that cannot be resolved; what could be is kept even so.
    """
    wants = list(wants)
    known = lockfile.read(path)
    filled, error = _fill(known, wants, catalog)
    if filled != known:
        lockfile.write(path, filled)
    if error:
        raise error
    return filled


def resolve(wants: Iterable[Want], catalog: Catalog, known: Lock) -> Lock:
    """`known` with everything in it that the hosts want; only what is missing is asked for. Raises ResolveError."""
    filled, error = _fill(known, wants, catalog)
    if error:
        raise error
    return filled


CACHE = Path(".rigup/hub")
"""What was read from the hub, below the directory that rigup is started in."""


def published_for(settings: Settings, catalog: Catalog, known: Lock, cache_dir: Path) -> Published:
    """The published config files that these settings' plan patches, as make_plan wants them. Raises ResolveError."""
    found: dict[str, dict[str, str]] = {}
    findings: list[Finding] = []
    for name in settings.endpoints:
        recipe = recipe_of(settings, name, catalog)
        image = known.images.get(recipe.image.tag) if recipe.image else None
        if recipe.image and image is None:
            continue
        wanted = apply_patches.reads(needed_patches(recipe, image.created if image else None))
        if not wanted:
            continue
        checkpoint = catalog.checkpoint(recipe.checkpoint)
        revision = checkpoint_revision(checkpoint, known)
        files = found.setdefault(f"{checkpoint.repo}@{revision}", {})
        for file in wanted:
            try:
                content = published_file(settings.hub_endpoint, checkpoint.repo, revision, file, cache_dir)
            except Unresolved as error:
                findings.append(_finding(error))
                continue
            if content is not None:
                files[file] = content.decode("utf-8", errors="replace")
    if findings:
        raise ResolveError(findings)
    return found


Entry = TypeVar("Entry")


class _Filling:
    """One pass over what is wanted, gathering what was found and what could not be."""

    def __init__(self, web: Web, known: Lock):
        self.web = web
        self.known = known
        self.images: dict[str, ImageLock] = {}
        self.venvs: dict[str, VenvLock] = {}
        self.checkpoints: dict[str, CheckpointLock] = {}
        self.packages: dict[str, dict[str, dict[str, str]]] = {}
        self.keys: dict[str, str] = {}
        self.findings: list[Finding] = []
        self.indexes: dict[str, apt.Index] = {}

    def index(self, repository: Repository) -> apt.Index:
        if repository.index_url not in self.indexes:
            self.indexes[repository.index_url] = apt.read_index(self.web, repository)
        return self.indexes[repository.index_url]

    def attempt(self, look: Callable[[], Entry]) -> Entry | None:
        try:
            return look()
        except Unresolved as error:
            self.findings.append(_finding(error))
        except RigupError as error:
            self.findings.append(Finding(str(error), None, "", ""))
        return None

    def venv(self, wanted: Venv, settings: Settings) -> None:
        if wanted.key in self.venvs or wanted.key in self.known.venvs:
            return
        if found := self.attempt(lambda: venv_lock(wanted, settings.pypi_index)):
            self.venvs[wanted.key] = found

    def image(self, wanted: Image, settings: Settings) -> None:
        tag, digest = wanted.tag, wanted.digest
        held = self.known.images.get(tag)
        if tag in self.images or (held and digest in (None, held.digest)):
            return
        if found := self.attempt(lambda: image_lock(self.web, tag, settings.registry_mirror, digest)):
            self.images[tag] = found

    def checkpoint(self, checkpoint: Checkpoint, settings: Settings) -> None:
        key = checkpoint.key
        held = self.known.checkpoints.get(key)
        if key in self.checkpoints or (held and held.listing):
            return
        wanted = held.revision if held else checkpoint.wanted
        if found := self.attempt(lambda: checkpoint_lock(self.web, settings.hub_endpoint, checkpoint.repo, wanted)):
            self.checkpoints[key] = found

    def group(self, distro: str, name: str, look: Callable[[], dict[str, str]]) -> None:
        if name in self.known.packages.get(distro, {}) or name in self.packages.get(distro, {}):
            return
        if found := self.attempt(look):
            self.packages.setdefault(distro, {})[name] = found

    def key(self, setting: str, url: str) -> None:
        if url in self.known.keys or url in self.keys:
            return
        if answer := self.attempt(lambda: self.web.get(setting, url)):
            self.keys[url] = hashlib.sha256(answer.content).hexdigest()

    def host_packages(self, settings: Settings, distro: str) -> None:
        sources = repositories(distro, settings)
        cuda, docker, toolkit = sources["cuda"], sources["docker"], sources["toolkit"]

        def driver() -> dict[str, str]:
            table = driver_packages(distro, settings.driver_branch)
            return apt.choose_driver(self.index(cuda), table, settings.driver_version, cuda.index_url)

        def engine() -> dict[str, str]:
            return apt.choose_docker(self.index(docker), settings.docker_version, docker.index_url)

        def runtime() -> dict[str, str]:
            wanted = settings.container_toolkit_version
            return apt.choose_toolkit(self.index(toolkit), wanted, toolkit.index_url)

        self.group(distro, driver_group(settings), driver)
        self.group(distro, docker_group(settings), engine)
        self.group(distro, toolkit_group(settings), runtime)
        if package := cuda_group(settings):
            self.group(distro, package, lambda: apt.choose_cuda(self.index(cuda), package, cuda.index_url))
        for source in sources.values():
            self.key(f"{source.name}_mirror", source.key_url)

    def result(self) -> Lock:
        return self.known.merged(
            Lock(
                images=self.images,
                venvs=self.venvs,
                checkpoints=self.checkpoints,
                packages=self.packages,
                keys=self.keys,
            )
        )


def _fill(known: Lock, wants: Iterable[Want], catalog: Catalog) -> tuple[Lock, ResolveError | None]:
    with Web() as web:
        filling = _Filling(web, known)
        for want in wants:
            for name in want.settings.endpoints:
                recipe = recipe_of(want.settings, name, catalog)
                if recipe.image:
                    filling.image(recipe.image, want.settings)
                if recipe.venv:
                    filling.venv(recipe.venv, want.settings)
                filling.checkpoint(catalog.checkpoint(recipe.checkpoint), want.settings)
            if want.distro is not None:
                filling.host_packages(want.settings, want.distro)
        return filling.result(), ResolveError(filling.findings) if filling.findings else None


def _finding(error: Unresolved) -> Finding:
    return Finding(error.setting, None, error.url, error.reason, error.remedy)
