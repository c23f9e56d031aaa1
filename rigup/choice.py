"""Which recipe for which need: a ranking that says why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rigup.documents import complaint, words
from rigup.errors import RigupError
from rigup.recipes import Catalogue
from rigup.schema import EngineName, Recipe, Workload

__all__ = ["Choice", "Need", "best", "ranked", "read_need"]

# Best first; what is not listed is never proposed.
STATUS = ("verified", "current", "reported", "assembled")
TOOL_CALLS = ("reliable", "usually", "unknown")

# Where one answer at a time counts, and where the sum of many does.
MANY = ("batch", "benchmark")


class Need(BaseModel):
    """What a recipe shall be good for, in place of its name: `recipe: {for: agents}`."""

    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True)

    workload: Workload = Field(alias="for", description="agents, chat, code, batch or benchmark.")
    gpus: int | None = Field(None, ge=1, description="GPUs to use; without it as many as the endpoint names, else 4.")
    engine: EngineName | None = Field(None, description="vllm or sglang.")
    model: str | None = Field(None, description="The model, such as Qwen3.5-397B-A17B.")


@dataclass(frozen=True)
class Choice:
    recipe: Recipe
    reason: str


def read_need(value: Any) -> Any:
    """For a pydantic field of `str | Need`: a mapping becomes a Need, with complaints in this project's words."""
    if not isinstance(value, Mapping):
        return value
    try:
        return Need.model_validate(value)
    except ValidationError as error:
        details = error.errors()[0]
        message, remedy = words(details, Need)
        raise complaint(f"{'.'.join(map(str, details['loc']))}: {message}", remedy) from None


def ranked(
    catalogue: Catalogue,
    workload: Workload,
    gpus: int | None = None,
    engine: EngineName | None = None,
    model: str | None = None,
) -> list[Choice]:
    """The deployable recipes for this workload on at most that many GPUs, best first, each with the reason."""
    found = [
        recipe
        for recipe in catalogue.recipes.values()
        if workload in recipe.workload
        and recipe.status in STATUS
        and recipe.tool_calls in (*TOOL_CALLS, *([] if workload == "agents" else ["broken"]))
        and (gpus is None or recipe.gpus <= gpus)
        and (engine is None or recipe.engine.name == engine)
        and (model is None or catalogue.checkpoint(recipe.checkpoint).model == model)
        and recipe.source is None
        and recipe.not_deployable is None
    ]

    def order(recipe: Recipe) -> tuple[Any, ...]:
        tools = TOOL_CALLS.index(recipe.tool_calls) if workload == "agents" else 0
        return (tools, STATUS.index(recipe.status), -recipe.gpus, -_speed(recipe, workload), recipe.id)

    return [Choice(recipe, _reason(catalogue, recipe, workload)) for recipe in sorted(found, key=order)]


def best(catalogue: Catalogue, need: Need, gpus: int) -> Recipe:
    """The first of the ranking that uses exactly that many GPUs. Raises RigupError where there is none."""
    for choice in ranked(catalogue, need.workload, gpus, need.engine, need.model):
        if choice.recipe.gpus == gpus:
            return choice.recipe
    limits = " ".join(word for word in (need.engine, need.model) if word)
    raise RigupError(
        f"no recipe for {need.workload} on {gpus} GPUs{f' ({limits})' if limits else ''}: "
        f"`rigup recipes --for {need.workload}` lists what there is"
    )


def _speed(recipe: Recipe, workload: Workload) -> float:
    """The figure that counts, in tokens each second; 0 where nothing was measured."""
    counted = [speed for speed in recipe.speeds if (speed.concurrency > 1) == (workload in MANY)]
    return max((speed.tokens for speed in counted), default=0)


def _reason(catalogue: Catalogue, recipe: Recipe, workload: Workload) -> str:
    speed = _speed(recipe, workload)
    manner = "with many requests" if workload in MANY else "for one request"
    parts = [f"tool calls {recipe.tool_calls}"] if workload == "agents" else []
    parts += [f"{recipe.status}{'' if recipe.quoted else ', put together'}"]
    parts += [f"{speed:g} tok/s {manner}" if speed else f"not measured {manner}"]
    return "; ".join([*parts, catalogue.checkpoint(recipe.checkpoint).model])
