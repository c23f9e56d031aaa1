"""TODO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rigup.config.yaml_file import complaint, words

__all__ = [
    "EngineName",
    "Need",
    "Workload",
    "read_need",
]


Workload = Literal["agents", "chat", "code", "batch", "benchmark"]


EngineName = Literal["vllm", "sglang"]


class Need(BaseModel):
    """What a recipe shall be good for, in place of its name: `recipe: {for: agents}`."""

    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True)

    workload: Workload = Field(alias="for", description="agents, chat, code, batch or benchmark.")
    gpus: int | None = Field(None, ge=1, description="GPUs to use; without it as many as the endpoint names, else 4.")
    engine: EngineName | None = Field(None, description="vllm or sglang.")
    model: str | None = Field(None, description="The model, such as Qwen3.5-397B-A17B.")


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
