"""TODO."""

from __future__ import annotations

from rigup.catalog.loader import Catalog, Recipe
from rigup.catalog.rank import best
from rigup.config.need import Need
from rigup.config.settings import Settings
from rigup.errors import RigupError

__all__ = [
    "USUAL_GPUS",
    "recipe_of",
]


# Of an endpoint that takes all of its host's GPUs, where neither it nor the need says how many those are.
USUAL_GPUS = 4


def recipe_of(settings: Settings, name: str, catalog: Catalog) -> Recipe:
    """The recipe that an endpoint of these settings serves.

    Raises RigupError where there is none of that name (naming the near ones), and for one that cannot be deployed.
    """
    endpoint = settings.endpoints[name]
    wanted = endpoint.recipe or settings.recipe
    if isinstance(wanted, Need):
        gpus = wanted.gpus or (USUAL_GPUS if endpoint.gpus == "all" else len(endpoint.gpus))
        recipe = best(catalog, wanted, gpus)
    else:
        recipe = catalog.recipe(wanted)
    if recipe.status == "broken":
        raise RigupError(f"recipe {recipe.id} is broken", recipe.caveats[0])
    if recipe.not_deployable:
        raise RigupError(f"recipe {recipe.id} cannot be deployed", recipe.not_deployable)
    if recipe.source:
        raise RigupError(
            f"recipe {recipe.id} is built from source, which rigup does not do", "`rigup show` has the commands"
        )
    return recipe
