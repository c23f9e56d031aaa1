"""The schema of a recipe's patches; `rigup.catalog.apply_patches` applies them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, Strict, model_validator

from rigup.catalog.fields import Data, Version
from rigup.config.types import Date
from rigup.config.yaml_file import complaint

# vLLM looks for a pattern without a star anywhere in a name, and a star at the end matches the rest of it.
BARE_GATE = re.compile(r"\.?(mlp\.)?gate|(.*[.*])?gate\*+")


class When(Data):
    """When a patch is needed: all given conditions must hold. `image_before`: built before that day, in UTC."""

    image_before: Date | None = None
    engine_before: Version | None = None
    speculation: bool | None = None

    @model_validator(mode="after")
    def _something(self) -> When:
        if self.image_before is None and self.engine_before is None and self.speculation is None:
            raise complaint("has no condition", "use image_before, engine_before or speculation, or remove `when`")
        return self


class IgnorePatch(Data):
    """Add patterns to a quantized checkpoint's list of modules that are not quantized.

    Changes `quantization_config.ignore` in config.json and `quantization.exclude_modules` in hf_quant_config.json.
    """

    target: Literal["quantization-ignore"]
    add: Annotated[tuple[str, ...], Field(min_length=1)]
    when: When | None = None
    why: str

    @model_validator(mode="after")
    def _patterns_hit(self) -> IgnorePatch:
        for pattern in self.add:
            # Markdown removed the star of `layers.*.mlp` in most copies of this patch; the rest matches nothing.
            if ".." in pattern or not pattern.strip():
                raise complaint(f"{pattern!r} matches no layer", "write layers.*.mlp.gate, with the star")
            if BARE_GATE.fullmatch(pattern):
                raise complaint(
                    f"{pattern!r} also matches gate_up_proj", "write model.language_model.layers.*.mlp.gate"
                )
        return self


class YarnPatch(Data):
    """Extend the context with YaRN to `factor` times the checkpoint's own `tokens`.

    `rope` repeats the published `rope_parameters` without their type, because what an override leaves out falls back to
    a default. vLLM gets it as --hf-overrides. SGLang's override has no effect in its flat form and crashes in its
    nested form (sglang 27974), so config.json is patched instead.
    """

    target: Literal["yarn"]
    factor: Annotated[float, Field(gt=1)]
    tokens: Annotated[int, Strict(), Field(ge=1)]
    rope: Annotated[dict[str, bool | int | float | tuple[int, ...]], Field(min_length=1)]
    why: str

    @property
    def parameters(self) -> dict[str, Any]:
        """The rope parameters as engines read them."""
        own = {"rope_type": "yarn", "factor": self.factor, "original_max_position_embeddings": self.tokens}
        return {**self.rope, **own}


class TemplatePatch(Data):
    """Change the chat template, which the engine gets as --chat-template.

    `text` replaces the published one. `system: merge` merges all system and developer messages into one at the
    beginning, because Qwen's template refuses any but the first; it is skipped if the template does not need it.
    `thinking` is the default for requests that do not set `enable_thinking`.
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
            raise complaint("changes nothing", "use text, system: merge or thinking: false")
        return self


class Sampling(Data):
    """Default sampling parameters of requests, named as in generation_config.json."""

    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Strict(), Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    max_new_tokens: Annotated[int, Strict(), Field(ge=1)] | None = None


class SamplingPatch(Data):
    """Change the defaults in generation_config.json, which both engines use unless a request says otherwise."""

    target: Literal["generation-defaults"]
    set: Sampling
    when: When | None = None
    why: str


Patch = Annotated[IgnorePatch | YarnPatch | TemplatePatch | SamplingPatch, Field(discriminator="target")]
