"""What the patches of a recipe are made of; `rigup.catalog.apply_patches` applies them."""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import Field, Strict, model_validator

from rigup.catalog.fields import Data, Version
from rigup.config.yaml_file import complaint

__all__ = ["IgnorePatch", "Patch", "Sampling", "SamplingPatch", "TemplatePatch", "When", "YarnPatch"]

# A pattern without a star is a part of a name for vLLM, and a star at the end is the rest of a name for both engines.
BARE_GATE = re.compile(r"\.?(mlp\.)?gate|(.*[.*])?gate\*+")


class When(Data):
    """All conditions that are given must hold. `image_before`: made before that day, in UTC."""

    image_before: date | None = None
    engine_before: Version | None = None
    speculation: bool | None = None

    @model_validator(mode="after")
    def _something(self) -> When:
        if self.image_before is None and self.engine_before is None and self.speculation is None:
            raise complaint("names no condition", "image_before, engine_before or speculation; or leave `when` out")
        return self


class IgnorePatch(Data):
    """Patterns to add to a quantized checkpoint's list of modules that are not quantized.

    It acts on `quantization_config.ignore` in config.json and `quantization.exclude_modules` in hf_quant_config.json.
    """

    target: Literal["quantization-ignore"]
    add: Annotated[tuple[str, ...], Field(min_length=1)]
    when: When | None = None
    why: str

    @model_validator(mode="after")
    def _patterns_hit(self) -> IgnorePatch:
        for pattern in self.add:
            # Markdown ate the star of `layers.*.mlp` in most copies of this patch; what is left matches nothing.
            if ".." in pattern or not pattern.strip():
                raise complaint(f"{pattern!r} matches no layer", "layers.*.mlp.gate, with the star")
            if BARE_GATE.fullmatch(pattern):
                raise complaint(f"{pattern!r} hits gate_up_proj as well", "model.language_model.layers.*.mlp.gate")
        return self


class YarnPatch(Data):
    """A longer context by YaRN: `factor` times the checkpoint's own `tokens`.

    `rope` repeats the published `rope_parameters`, less their type: what an override leaves out falls to a default.
    vLLM gets it as --hf-overrides. SGLang's own override does nothing in its flat form and crashes in its nested one
    (sglang 27974), so there config.json is patched.
    """

    target: Literal["yarn"]
    factor: Annotated[float, Field(gt=1)]
    tokens: Annotated[int, Strict(), Field(ge=1)]
    rope: Annotated[dict[str, bool | int | float | tuple[int, ...]], Field(min_length=1)]
    why: str

    @property
    def parameters(self) -> dict[str, Any]:
        """The rope as engines read it."""
        own = {"rope_type": "yarn", "factor": self.factor, "original_max_position_embeddings": self.tokens}
        return {**self.rope, **own}


class TemplatePatch(Data):
    """Another chat template, given to the engine as --chat-template.

    `text` takes the place of the published one. `system: merge` puts all system and developer messages together at
    the beginning, where Qwen's template refuses any but the first. `thinking` is what holds unless a request says
    `enable_thinking`. A merge that the template does not need is not made.
    """

    target: Literal["chat-template"]
    text: Annotated[str, Field(min_length=1)] | None = None
    system: Literal["merge"] | None = None
    thinking: Annotated[bool, Strict()] | None = None
    when: When | None = None
    why: str

    @model_validator(mode="after")
    def _something(self) -> TemplatePatch:
        if self.text is None and self.system is None and self.thinking is None:
            raise complaint("changes nothing", "text, system: merge or thinking: false")
        return self


class Sampling(Data):
    """Defaults for requests that do not say; names as in generation_config.json."""

    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Strict(), Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    max_new_tokens: Annotated[int, Strict(), Field(ge=1)] | None = None


class SamplingPatch(Data):
    """Other defaults in generation_config.json, which both engines read unless a request says otherwise."""

    target: Literal["generation-defaults"]
    set: Sampling
    when: When | None = None
    why: str


Patch = Annotated[IgnorePatch | YarnPatch | TemplatePatch | SamplingPatch, Field(discriminator="target")]
