"""Select what each endpoint of a host is made from: recipe, checkpoint, entries of the lock, and patches. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from rigup import commands
from rigup.catalog.apply_patches import needed_patches
from rigup.catalog.checkpoint import Checkpoint
from rigup.catalog.loader import Catalog
from rigup.catalog.patch import Patch
from rigup.catalog.recipe import Recipe
from rigup.catalog.select import need_of, recipe_of
from rigup.config.endpoint import Endpoint
from rigup.config.settings import Settings
from rigup.errors import RigupError
from rigup.lock.lockfile import CheckpointLock, ImageLock, Lock, VenvLock


class Locked(NamedTuple):
    """A checkpoint, and what the lock has of it."""

    checkpoint: Checkpoint
    commit: CheckpointLock


@dataclass(frozen=True)
class Selection:
    """What one endpoint is made from. Either `image` or `venv` is None; `patches` are those that the recipe needs.

    `drafter` is the checkpoint of its drafter, if that is one of its own.
    """

    name: str
    endpoint: Endpoint
    recipe: Recipe
    checkpoint: Checkpoint
    commit: CheckpointLock
    image: ImageLock | None
    venv: VenvLock | None
    patches: tuple[Patch, ...]
    drafter: Locked | None = None

    @property
    def source(self) -> str:
        """The checkpoint at its commit, as REPO@COMMIT."""
        return f"{self.checkpoint.repo}@{self.commit.revision}"


def select(settings: Settings, catalog: Catalog, lock: Lock) -> list[Selection]:
    """Return the selection of each endpoint, by name.

    Raises RigupError for an unknown recipe (with similar names), for one that cannot be deployed or does not fit the
    endpoint's GPUs, and for what the lock does not have.
    """
    return [_select(name, endpoint, settings, catalog, lock) for name, endpoint in sorted(settings.endpoints.items())]


def _select(name: str, endpoint: Endpoint, settings: Settings, catalog: Catalog, lock: Lock) -> Selection:
    if (need := need_of(settings, name)) and need[0] not in lock.choices:
        raise RigupError(f"the lock has no choice of a recipe for {need[0]}", f"run `{commands.rigup('lock')}`")
    recipe = recipe_of(settings, name, catalog, lock.choices)
    checkpoint, *drafters = catalog.checkpoints_of(recipe)
    if recipe.image and recipe.image.tag not in lock.images:
        raise RigupError(f"the lock has no image {recipe.image.tag}", f"run `{commands.rigup('lock')}`")
    if recipe.venv and recipe.venv.key not in lock.venvs:
        raise RigupError(f"the lock has no venv {recipe.venv.key}", f"run `{commands.rigup('lock')}`")
    if endpoint.gpus != "all" and len(endpoint.gpus) != recipe.gpus:
        raise RigupError(
            f"endpoint {name} has {len(endpoint.gpus)} GPUs, but recipe {recipe.id} needs {recipe.gpus}",
            f"change endpoints.{name}.gpus or the recipe",
        )
    image = lock.images[recipe.image.tag] if recipe.image else None
    return Selection(
        name=name,
        endpoint=endpoint,
        recipe=recipe,
        checkpoint=checkpoint,
        commit=lock.checkpoint(checkpoint),
        image=image,
        venv=lock.venvs[recipe.venv.key] if recipe.venv else None,
        patches=needed_patches(recipe, image.created if image else None),
        drafter=next((Locked(each, lock.checkpoint(each)) for each in drafters), None),
    )
