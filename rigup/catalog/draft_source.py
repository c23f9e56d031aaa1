"""What the small files of a published checkpoint say, for drafting a recipe: format, size, drafter, template. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rigup.errors import RigupError
from rigup.fit.shape import ModelShape, describe, kept

# Names of uploads end in how they are quantized; what is left is the model.
FORMS = re.compile(
    r"[-_.](NVFP4|MXFP4|MXFP8|FP8|FP4|AWQ|GPTQ|INT[48]|W[48]A(4|8|16)|BF16|4bit|8bit|Static|Dynamic|PerTensor|V\d|compressed"
    r"|tensors)$",
    re.IGNORECASE,
)

# Of quantization_config.quant_method, and of ModelOpt's and compressed-tensors' own forms: what to call it, and into
# how many values a GPU's part of a layer must divide (vLLM 0.33.0 refuses a part that cuts a block).
MODELOPT = {
    "NVFP4": ("NVFP4 by ModelOpt", 16),
    "FP8": ("FP8 by ModelOpt", 1),
    "MIXED_PRECISION": ("modelopt_mixed", 16),
    "MXFP8": ("MXFP8 by ModelOpt", 32),
}
COMPRESSED = {
    "nvfp4-pack-quantized": ("NVFP4 by compressed-tensors", 16),
    "float-quantized": ("FP8 by compressed-tensors", 1),
    "pack-quantized": ("INT4 by compressed-tensors", 32),
    "int-quantized": ("INT8 by compressed-tensors", 1),
    "mixed-precision": ("compressed-tensors, mixed", 16),
}
# Of MXFP4 vLLM pads the parts: gpt-oss runs on eight GPUs (vllm-project/recipes, models/openai/gpt-oss-120b.yaml).
OTHER = {"mxfp4": ("MXFP4", 1), "awq": ("AWQ", 128), "gptq": ("GPTQ", 128)}

# Architectures of drafters, by the method of vLLM that uses them.
DRAFTERS = {"eagle3": "eagle3", "dflash": "dflash", "dspark": "dspark", "medusa": "medusa"}

WEIGHTS = re.compile(r"[^/]*\.safetensors")
VISION = ("vision_config", "vision_tower_config", "mm_vision_tower")


@dataclass(frozen=True)
class Quantized:
    """How the weights are stored: a name for people, the engine's method, and the values of a block."""

    name: str
    method: str | None = None
    block: int = 1


@dataclass(frozen=True)
class Published:
    """A repository at a commit: its configuration, the sizes of its files, its chat template, its tensors' names.

    `quantization` is that of hf_quant_config.json. `tensors` is None without an index. `custom_tokenizer`: its
    tokenizer is code of the repository.
    """

    repo: str
    branch: str
    commit: str
    config: Mapping[str, Any]
    sizes: Mapping[str, int]
    weights: int | None
    quantization: Mapping[str, Any] | None = None
    template: str | None = None
    tensors: frozenset[str] | None = None
    custom_tokenizer: bool = False

    @property
    def name(self) -> str:
        """The repository without its owner."""
        return self.repo.rpartition("/")[2]

    @property
    def model(self) -> str:
        """The name that all uploads of the model share, as far as the repository's name tells."""
        name = self.name
        while (shorter := FORMS.sub("", name)) != name:
            name = shorter
        return name

    @property
    def source(self) -> str:
        """Where its facts are from."""
        return f"config.json of {self.repo} at {self.commit[:12]}"

    @property
    def text(self) -> Mapping[str, Any]:
        """The part of config.json about the language model."""
        found = self.config.get("text_config")
        return found if isinstance(found, Mapping) else self.config

    @property
    def architecture(self) -> str:
        """The architecture. Raises RigupError if config.json names none."""
        found = self.config.get("architectures")
        if isinstance(found, list) and found and isinstance(found[0], str):
            return found[0]
        raise RigupError(f"config.json of {self.repo} names no architecture", "use the upload of the model's author")

    @property
    def shape(self) -> ModelShape:
        """What it keeps in the cache, with the size of its weights."""
        return describe(kept(self.config), {"metadata": {"total_size": self.weights}})

    def number(self, *names: str) -> int | None:
        """Return the first of these numbers that the language model's configuration has."""
        for name in names:
            if isinstance(value := self.text.get(name), int) and not isinstance(value, bool) and value > 0:
                return value
        return None

    @property
    def images(self) -> bool:
        """Whether it has a vision encoder."""
        return any(self.config.get(key) for key in VISION)

    @property
    def has_code(self) -> bool:
        """Whether its configuration or its tokenizer is code of the repository."""
        return bool(self.config.get("auto_map")) or self.custom_tokenizer

    @property
    def quantized(self) -> Quantized:
        """How its weights are stored."""
        given = self.config.get("quantization_config") or self.text.get("quantization_config") or {}
        method = str(given.get("quant_method") or "").lower()
        if method == "modelopt" or (not method and self.quantization):
            algorithm = given.get("quant_algo") or (self.quantization or {}).get("quant_algo")
            name, block = MODELOPT.get(str(algorithm), (f"{algorithm} by ModelOpt", 16))
            return Quantized(name, "modelopt", block)
        if method == "compressed-tensors":
            form = str(given.get("format"))
            name, block = COMPRESSED.get(form, (f"compressed-tensors, {form}", 16))
            return Quantized(name, method, block)
        if method == "fp8":
            match given.get("weight_block_size"):
                case [int(block), *_]:
                    return Quantized("FP8 in blocks", method, max(block, 1))
            return Quantized("FP8", method)
        if method in OTHER:
            name, block = OTHER[method]
            size = given.get("group_size")
            return Quantized(name, method, size if isinstance(size, int) and size > 0 and block > 1 else block)
        if method:
            return Quantized(method, method)
        dtype = str(self.text.get("dtype") or self.text.get("torch_dtype") or self.config.get("torch_dtype") or "BF16")
        return Quantized({"bfloat16": "BF16", "float16": "FP16"}.get(dtype, dtype))

    @property
    def has_scales(self) -> bool:
        """Whether it brings scales for a cache in FP8."""
        given = self.config.get("quantization_config") or {}
        named = str((self.quantization or {}).get("kv_cache_quant_algo") or given.get("kv_cache_quant_algo") or "")
        scheme = given.get("kv_cache_scheme")
        return named.upper().startswith("FP8") or (isinstance(scheme, Mapping) and scheme.get("num_bits") == 8)

    @property
    def mtp(self) -> int:
        """How many tensors of an MTP layer its index names."""
        layers = self.number("num_hidden_layers") or 0
        after = re.compile(rf"(^|\.)layers\.{layers}\.")
        return sum(1 for name in self.tensors or () if re.search(r"(^|\.)mtp\.", name) or after.search(name))

    @property
    def method(self) -> str | None:
        """The method of speculation that uses it, if it is a drafter."""
        given = f"{self.config.get('speculators_model_type') or ''} {' '.join(self.config.get('architectures') or [])}"
        return next((method for mark, method in DRAFTERS.items() if mark in given.lower()), None)
