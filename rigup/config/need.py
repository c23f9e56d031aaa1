"""A recipe by what it is for, in place of its name: `recipe: {for: agents}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict

Workload = Literal["agents", "chat", "code", "batch", "benchmark"]
EngineName = Literal["vllm", "sglang"]


class Need(BaseModel):
    """What a recipe must be good for; `rigup.catalog.rank` chooses one."""

    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True)

    workload: Workload = Field(alias="for", description="agents, chat, code, batch or benchmark.", examples=["agents"])
    gpus: Annotated[int, Strict(), Field(ge=1)] | None = Field(
        None, description="GPUs to use; without it, as many as the endpoint lists, else 4.", examples=[4]
    )
    engine: EngineName | None = Field(None, description="vllm or sglang.", examples=["vllm"])
    model: str | None = Field(None, description="The model, such as Qwen3.5-397B-A17B.", examples=["Qwen3.5-397B-A17B"])


def name_or_need(value: Any) -> str:
    """Return which of the two a value is meant as: `name` or `need`."""
    return "need" if isinstance(value, Mapping | Need) else "name"
