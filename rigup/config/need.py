"""A recipe by what it is for, in place of its name: `recipe: {for: agents}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rigup.config.yaml_file import complaint, describe_error

Workload = Literal["agents", "chat", "code", "batch", "benchmark"]
EngineName = Literal["vllm", "sglang"]


class Need(BaseModel):
    """What a recipe must be good for; `rigup.catalog.rank` chooses one."""

    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True)

    workload: Workload = Field(alias="for", description="agents, chat, code, batch or benchmark.")
    gpus: int | None = Field(None, ge=1, description="GPUs to use; without it, as many as the endpoint lists, else 4.")
    engine: EngineName | None = Field(None, description="vllm or sglang.")
    model: str | None = Field(None, description="The model, such as Qwen3.5-397B-A17B.")


def read_need(value: Any) -> Any:
    """Turn a mapping into a Need, and return any other value as it is: the validator of a `str | Need` field.

    Its errors are complaints, as for all settings.
    """
    if not isinstance(value, Mapping):
        return value
    try:
        return Need.model_validate(value)
    except ValidationError as error:
        details = error.errors()[0]
        message, remedy = describe_error(details, Need)
        raise complaint(f"{'.'.join(map(str, details['loc']))}: {message}", remedy) from None
