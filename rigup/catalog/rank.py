"""Rank the recipes for a need, each with the reason for its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rigup.catalog.loader import Catalog
from rigup.catalog.recipe import Recipe
from rigup.config.need import EngineName, Need, Workload
from rigup.errors import RigupError

# Best first. A recipe whose status is not listed is never proposed.
STATUS = ("verified", "current", "reported", "assembled")
TOOL_CALLS = ("reliable", "usually", "unknown")

# The workloads for which the throughput of many requests counts, rather than the speed of one answer.
MANY = ("batch", "benchmark")


@dataclass(frozen=True)
class Choice:
    """A ranked recipe, and what its place is based on."""

    recipe: Recipe
    reason: str


def ranked(
    catalog: Catalog,
    workload: Workload,
    gpus: int | None = None,
    engine: EngineName | None = None,
    model: str | None = None,
) -> list[Choice]:
    """Return the deployable recipes for this workload on at most that many GPUs, best first."""
    found = [
        recipe
        for recipe in catalog.recipes.values()
        if workload in recipe.workload
        and recipe.status in STATUS
        and recipe.tool_calls in (*TOOL_CALLS, *([] if workload == "agents" else ["broken"]))
        and (gpus is None or recipe.gpus <= gpus)
        and (engine is None or recipe.engine.name == engine)
        and (model is None or catalog.checkpoint(recipe.checkpoint).model == model)
        and recipe.source is None
        and recipe.not_deployable is None
    ]

    def order(recipe: Recipe) -> tuple[Any, ...]:
        tools = TOOL_CALLS.index(recipe.tool_calls) if workload == "agents" else 0
        return (tools, STATUS.index(recipe.status), -recipe.gpus, -_speed(recipe, workload), recipe.id)

    return [Choice(recipe, _reason(catalog, recipe, workload)) for recipe in sorted(found, key=order)]


def best(catalog: Catalog, need: Need, gpus: int) -> Recipe:
    """Return the best recipe that uses exactly that many GPUs. Raises RigupError if there is none."""
    for choice in ranked(catalog, need.workload, gpus, need.engine, need.model):
        if choice.recipe.gpus == gpus:
            return choice.recipe
    limits = " ".join(word for word in (need.engine, need.model) if word)
    raise RigupError(
        f"there is no recipe for {need.workload} on {gpus} GPUs{f' ({limits})' if limits else ''}",
        f"`rigup recipes --for {need.workload}` lists the available ones",
    )


def _speed(recipe: Recipe, workload: Workload) -> float:
    """Return the throughput that counts, in tokens per second; 0 if nothing was measured."""
    counted = [speed for speed in recipe.speeds if (speed.concurrency > 1) == (workload in MANY)]
    return max((speed.tokens for speed in counted), default=0)


def _reason(catalog: Catalog, recipe: Recipe, workload: Workload) -> str:
    speed = _speed(recipe, workload)
    manner = "with many requests" if workload in MANY else "for one request"
    parts = [f"tool calls {recipe.tool_calls}"] if workload == "agents" else []
    parts += [f"{recipe.status}{'' if recipe.quoted else ', assembled from several sources'}"]
    parts += [f"{speed:g} tok/s {manner}" if speed else f"not measured {manner}"]
    return "; ".join([*parts, catalog.checkpoint(recipe.checkpoint).model])
