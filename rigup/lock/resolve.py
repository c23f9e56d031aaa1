"""Fill the lock: resolve on the control machine, once, and only what hosts need and the lock does not have.

What cannot be resolved is an error, never a guess. All errors are raised together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rigup.catalog.checkpoint import Checkpoint
from rigup.catalog.loader import Catalog
from rigup.catalog.recipe_parts import Image, Venv
from rigup.catalog.select import need_of, recipe_of
from rigup.config.settings import Settings
from rigup.distros.apt_sources import Repository, repositories
from rigup.distros.driver import driver_packages
from rigup.errors import Finding, InputError, RigupError
from rigup.lock import apt, lockfile
from rigup.lock.http import Unresolved, Web
from rigup.lock.hub import checkpoint_lock
from rigup.lock.lockfile import CheckpointLock, ImageLock, KeyLock, Lock, VenvLock
from rigup.lock.packages import cuda_group, docker_group, driver_group, toolkit_group
from rigup.lock.pypi import venv_lock
from rigup.lock.registry import image_lock

UNEXPECTED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""Errors of an answer that lacks something: answers are read as what they should be, and a server may send anything."""


class ResolveError(InputError):
    """Everything that could not be resolved: setting, URL, reason, remedy."""

    @classmethod
    def of(cls, errors: Iterable[Unresolved]) -> ResolveError:
        """Return one error for all of these."""
        return cls(Finding(error.setting, None, error.url, error.reason, error.remedy) for error in errors)


@dataclass(frozen=True)
class Want:
    """A host that needs entries in the lock. Without its `distro` (a fact), its packages are left out."""

    settings: Settings
    distro: str | None = None


def ensure(path: Path, wants: Iterable[Want], catalog: Catalog) -> Lock:
    """Return the lock at `path` with everything that the hosts need; write it only if something was missing.

    Raises ResolveError with all that cannot be resolved; what could be resolved is written first.
    """
    known = lockfile.read(path)
    filled, error = _fill(known, wants, catalog)
    if filled != known:
        lockfile.write(path, filled)
    if error:
        raise error
    return filled


def resolve(wants: Iterable[Want], catalog: Catalog, known: Lock) -> Lock:
    """Return `known` with everything that the hosts need; resolves only what is missing. Raises ResolveError."""
    filled, error = _fill(known, wants, catalog)
    if error:
        raise error
    return filled


Entry = TypeVar("Entry")


class _Filling:
    """One pass over what hosts need: what was resolved, and what could not be."""

    def __init__(self, web: Web, known: Lock):
        self.web = web
        self.known = known
        self.choices: dict[str, str] = {}
        self.images: dict[str, ImageLock] = {}
        self.venvs: dict[str, VenvLock] = {}
        self.checkpoints: dict[str, CheckpointLock] = {}
        self.packages: dict[str, dict[str, dict[str, str]]] = {}
        self.keys: dict[str, KeyLock] = {}
        self.findings: list[Finding] = []
        self.indexes: dict[str, apt.Index] = {}

    def index(self, repository: Repository) -> apt.Index:
        if repository.index_url not in self.indexes:
            self.indexes[repository.index_url] = apt.read_index(self.web, repository)
        return self.indexes[repository.index_url]

    def attempt(self, what: str, look: Callable[[], Entry]) -> Entry | None:
        try:
            return look()
        except Unresolved as error:
            self.findings.extend(ResolveError.of([error]).findings)
        except RigupError as error:
            self.findings.append(Finding(error.message, None, "", "", error.remedy))
        except UNEXPECTED as error:
            wrong = f"a server's answer has an unexpected form ({type(error).__name__}: {error})"
            self.findings.append(Finding(what, None, "", wrong, "check the mirrors that the inventory names"))
        return None

    def endpoint(self, settings: Settings, name: str, catalog: Catalog) -> None:
        recipe = recipe_of(settings, name, catalog, self.known.choices)
        if (need := need_of(settings, name)) and need[0] not in self.known.choices:
            self.choices[need[0]] = recipe.id
        if recipe.image:
            self.image(recipe.image, settings)
        if recipe.venv:
            self.venv(recipe.venv, settings)
        for checkpoint in catalog.checkpoints_of(recipe):
            self.checkpoint(checkpoint, settings)

    def venv(self, venv: Venv, settings: Settings) -> None:
        if venv.key in self.venvs or venv.key in self.known.venvs:
            return
        if found := self.attempt(venv.key, lambda: venv_lock(venv, settings.pypi_index)):
            self.venvs[venv.key] = found

    def image(self, image: Image, settings: Settings) -> None:
        tag, digest = image.tag, image.digest
        held = self.known.images.get(tag)
        if tag in self.images or (held and digest in (None, held.digest)):
            return
        if found := self.attempt(tag, lambda: image_lock(self.web, tag, settings.registry_mirror, digest)):
            self.images[tag] = found

    def checkpoint(self, checkpoint: Checkpoint, settings: Settings) -> None:
        key, endpoint = checkpoint.key, settings.hub_endpoint
        if key in self.checkpoints or key in self.known.checkpoints:
            return
        if found := self.attempt(
            key, lambda: checkpoint_lock(self.web, endpoint, checkpoint.repo, checkpoint.reference)
        ):
            self.checkpoints[key] = found

    def group(self, distro: str, name: str, look: Callable[[], dict[str, str]]) -> None:
        if name in self.known.packages.get(distro, {}) or name in self.packages.get(distro, {}):
            return
        if found := self.attempt(name, look):
            self.packages.setdefault(distro, {})[name] = found

    def key(self, repository: Repository) -> None:
        url = repository.key_url
        held = self.known.keys.get(url) or self.keys.get(url)
        if found := self.attempt(url, lambda: apt.accepted_key(held or apt.read_key(self.web, repository), repository)):
            self.keys[url] = found

    def host_packages(self, settings: Settings, distro: str) -> None:
        sources = repositories(distro, settings)
        cuda, docker, toolkit = sources["cuda"], sources["docker"], sources["toolkit"]

        def choose_driver() -> dict[str, str]:
            table = driver_packages(distro, settings.driver_branch)
            return apt.choose_driver(self.index(cuda), table, settings.driver_version, cuda.index_url)

        def choose_docker() -> dict[str, str]:
            return apt.choose_docker(self.index(docker), settings.docker_version, docker.index_url)

        def choose_toolkit() -> dict[str, str]:
            version = settings.container_toolkit_version
            return apt.choose_toolkit(self.index(toolkit), version, toolkit.index_url)

        self.group(distro, driver_group(settings), choose_driver)
        self.group(distro, docker_group(settings), choose_docker)
        self.group(distro, toolkit_group(settings), choose_toolkit)
        if package := cuda_group(settings):
            self.group(distro, package, lambda: apt.choose_cuda(self.index(cuda), package, cuda.index_url))
        for source in sources.values():
            self.key(source)

    def result(self) -> Lock:
        return self.known.merged(
            Lock(
                choices=self.choices,
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
                filling.endpoint(want.settings, name, catalog)
            if want.distro is not None:
                filling.host_packages(want.settings, want.distro)
        return filling.result(), ResolveError(filling.findings) if filling.findings else None
