"""Find the recipe that an endpoint serves: by name, or by the need that the lock has a choice for."""

from __future__ import annotations

from collections.abc import Mapping

from rigup import commands
from rigup.catalog.loader import Catalog
from rigup.catalog.rank import best
from rigup.catalog.recipe import Recipe
from rigup.config.need import Need
from rigup.config.settings import Settings
from rigup.errors import RigupError

# The number of GPUs for an endpoint that takes all of its host's, if the need does not say one.
USUAL_GPUS = 4


def need_of(settings: Settings, name: str) -> tuple[str, Need, int] | None:
    """Return the need that an endpoint has in place of a recipe's name: its key in the lock, itself, and the GPUs.

    The key is such as `agents-4gpu`. None if the endpoint names a recipe.
    """
    endpoint = settings.endpoints[name]
    need = endpoint.recipe or settings.recipe
    if not isinstance(need, Need):
        return None
    gpus = need.gpus or (USUAL_GPUS if endpoint.gpus == "all" else len(endpoint.gpus))
    return "-".join(filter(None, (need.workload, f"{gpus}gpu", need.engine, need.model))), need, gpus


def recipe_of(settings: Settings, name: str, catalog: Catalog, choices: Mapping[str, str]) -> Recipe:
    """Return the recipe that an endpoint of these settings serves.

    `choices` are the recipes that the lock has for needs. A need without one gets the best recipe of the catalog.
    Raises RigupError if there is no such recipe (with similar names), and for one that cannot be deployed.
    """
    found = need_of(settings, name)
    if found is None:
        recipe = catalog.recipe(str(settings.endpoints[name].recipe or settings.recipe))
        instead = "`rigup recipes` lists the others"
    else:
        key, need, gpus = found
        instead = f"`{commands.rigup('update', key)}` chooses another"
        if key in choices and choices[key] not in catalog.recipes:
            raise RigupError(f"the lock has recipe {choices[key]} for {key}, which the catalog does not have", instead)
        recipe = catalog.recipe(choices[key]) if key in choices else best(catalog, need, gpus)
    if recipe.status == "broken":
        raise RigupError(f"recipe {recipe.id} is broken ({recipe.caveats[0].rstrip('.')})", instead)
    if recipe.not_deployable:
        raise RigupError(f"recipe {recipe.id} cannot be deployed ({recipe.not_deployable})", instead)
    if recipe.source:
        raise RigupError(f"recipe {recipe.id} is built from source, which rigup does not do", instead)
    return recipe
