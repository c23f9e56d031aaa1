"""Check the checkpoint as vLLM with FP4 kernels would, and convert it so that vLLM can serve it without them."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

GATE_FIXED = date(2026, 2, 24)
"""vLLM #35156: from then on the router is never read as quantized."""

MTP_FIXED = date(2026, 4, 2)
"""vLLM #38832: from then on `mtp.fc` is never read as quantized."""

GROUP = 16
"""Values that share one scale in NVFP4."""


class Unloadable(Exception):
    """vLLM could not load these weights with this configuration; the message is vLLM's."""


@dataclass(frozen=True)
class Stored:
    """A tensor's entry in a shard's header."""

    dtype: str
    shape: tuple[int, ...]


def read_headers(model: Path) -> dict[str, Stored]:
    """Return every tensor of the shards in the folder, by name."""
    tensors = {}
    for shard in sorted(model.glob("*.safetensors")):
        with shard.open("rb") as content:
            length = int.from_bytes(content.read(8), "little")
            header = json.loads(content.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                tensors[name] = Stored(entry["dtype"], tuple(entry["shape"]))
    return tensors


def nvfp4(config: dict[str, Any]) -> dict[str, Any] | None:
    """Return the quantization_config of config.json if it is ModelOpt's NVFP4, else None."""
    quantization = config.get("quantization_config")
    if not isinstance(quantization, dict) or quantization.get("quant_method") != "modelopt":
        return None
    return quantization if quantization.get("quant_algo") == "NVFP4" else None


def _plain_linear(tensors: dict[str, Stored]) -> Iterator[tuple[str, Stored]]:
    for name, stored in tensors.items():
        module = name.removesuffix(".weight")
        if module == name or stored.dtype != "BF16" or len(stored.shape) != 2:
            continue
        if not module.endswith(("embed_tokens", "pos_embed")):
            yield module, stored


def check_ignored(
    tensors: dict[str, Stored],
    excluded: Callable[[str], bool],
    image_made: date,
    *,
    speculation: bool,
) -> None:
    """Raise Unloadable if the patterns do not match the weights, as the vLLM of the image's date would.

    `excluded` says whether the configuration's ignore patterns match a module.
    """
    for module, stored in _plain_linear(tensors):
        if excluded(module) or (module.startswith("mtp.") and not speculation):
            continue
        if module.endswith(".mlp.gate") and image_made >= GATE_FIXED:
            continue
        if module == "mtp.fc":
            if image_made < MTP_FIXED:
                raise Unloadable(f"{module}: AssertionError: assert self.data.shape == loaded_weight.shape")
            continue
        rows, columns = stored.shape
        raise Unloadable(
            f"{module}: AssertionError: Tried to load weights of size torch.Size([{rows}, {columns}])"
            f"to a parameter of size torch.Size([{rows}, {columns // 2}])"
        )
    for name, stored in tensors.items():
        module = name.removesuffix(".weight")
        if stored.dtype == "U8" and excluded(module):
            columns = stored.shape[-1]
            raise Unloadable(
                f"{module}: RuntimeError: The size of tensor a ({2 * columns}) must match the size of tensor b "
                f"({columns}) at non-singleton dimension {len(stored.shape) - 1}"
            )


def vllm_matcher(quantization: dict[str, Any]) -> Callable[[str], bool]:
    """Return a matcher of ignore patterns built from vLLM's own class, mapper and names for Qwen3.5."""
    from vllm.model_executor.layers.quantization.modelopt import ModelOptNvFp4Config
    from vllm.model_executor.models.qwen3_5 import Qwen3_5MoeForConditionalGeneration as Model
    from vllm.model_executor.models.utils import WeightsMapper

    language = ModelOptNvFp4Config.from_config(quantization)
    language.packed_modules_mapping = Model.packed_modules_mapping
    language.apply_vllm_mapper(Model.hf_to_vllm_mapper)
    # In vLLM the speculative head is a separate model and keeps its names.
    speculative = ModelOptNvFp4Config.from_config(quantization)
    speculative.apply_vllm_mapper(WeightsMapper())

    def excluded(module: str) -> bool:
        if module.startswith("mtp."):
            return bool(speculative.is_layer_excluded(module))
        mapped = Model.hf_to_vllm_mapper.apply_list([f"{module}."])
        return bool(language.is_layer_excluded(mapped[0].removesuffix(".")))

    return excluded


def lay_out(model: Path, target: Path) -> int:
    """Fill `target` with links to the model's files, the FP4 weights as bfloat16, and a config.json without FP4.

    Returns how many tensors were converted to bfloat16.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    for path in model.iterdir():
        if path.suffix != ".safetensors" and path.name not in _REWRITTEN:
            os.symlink(path, target / path.name)
    config = json.loads((model / "config.json").read_text())
    del config["quantization_config"]
    (target / "config.json").write_text(json.dumps(config, indent=2))
    # Codes of FP4 E2M1: a sign, then these eight values.
    values = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    table = torch.cat([values, -values])
    weights: dict[str, Any] = {}
    count = 0
    for shard in sorted(model.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as content:
            for name in content.keys():  # noqa: SIM118 - it has keys() and no iterator
                if name.endswith(_SCALES):
                    continue
                weight = content.get_tensor(name)
                if weight.dtype == torch.uint8:
                    codes = torch.stack([weight & 15, weight >> 4], dim=-1).flatten(-2)
                    scale = content.get_tensor(f"{name}_scale").float() * content.get_tensor(f"{name}_scale_2")
                    weight = (table[codes.long()] * scale.repeat_interleave(GROUP, dim=-1)).to(torch.bfloat16)
                    count += 1
                weights[name] = weight
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return count


_SCALES = (".weight_scale", ".weight_scale_2", ".input_scale", ".k_scale", ".v_scale")
_REWRITTEN = ("config.json", "hf_quant_config.json", "model.safetensors.index.json")
