"""The miniature's tensors: real names, data types and layout of the NVFP4 checkpoint, small shapes, seeded values.

Names and layout follow `Qwen3_5MoeForConditionalGeneration` as transformers 5 saves it. What NVIDIA's ModelOpt
quantizes (the routed experts) is stored in its format: two FP4 codes in a byte, one FP8 scale for 16 values, one
FP32 scale for the tensor. Values come from SHAKE-256 of the tensor's name, so the bytes are the same on every machine
and need no numerical library.
"""

import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

SEED = "rigup-miniature-1"
SHARDS = 5

VOCABULARY = 512
HIDDEN = 256
LAYERS = 4
FULL_ATTENTION_INTERVAL = 4
HEADS = 4
KEY_VALUE_HEADS = 2
HEAD_DIM = 256
"""As in the real model: vLLM's CPU attention fails with small head dimensions."""
LINEAR_KEY_HEADS = 2
LINEAR_VALUE_HEADS = 4
LINEAR_HEAD_DIM = 128
CONVOLUTION = 4
EXPERTS = 16
EXPERT_HIDDEN = 128
VISION_DEPTH = 2
VISION_HIDDEN = 128
VISION_MLP = 256
VISION_POSITIONS = 2304
GROUP = 16
"""Values that share one FP8 scale in NVFP4."""

WIDTHS = {"BF16": 2, "U8": 1, "F8_E4M3": 1, "F32": 4}

# The high byte of a bfloat16 holds the sign and seven bits of the exponent: these two give +-2^-7 to 2^-5.
_BF16_HIGH = bytes(0xBC if byte & 1 else 0x3C for byte in range(256))
# FP8 E4M3 codes 0x38 to 0x3f are 1 to 1.875.
_FP8 = bytes(0x38 | (byte & 7) for byte in range(256))
_TENSOR_SCALE = 0.0078125
_ACTIVATION_SCALE = 0.00390625
_CACHE_SCALE = 0.0625


@dataclass(frozen=True)
class Tensor:
    """One tensor of the checkpoint: its name, safetensors data type and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """The size of its values in bytes."""
        return prod(self.shape) * WIDTHS[self.dtype]

    def values(self) -> bytes:
        """Return the values, little-endian; they depend only on the name and the seed."""
        if self.dtype == "F32":
            scale = _CACHE_SCALE if self.name.endswith(("k_scale", "v_scale")) else _TENSOR_SCALE
            return struct.pack("<f", _ACTIVATION_SCALE if self.name.endswith("input_scale") else scale)
        raw = hashlib.shake_256(f"{SEED}/{self.name}".encode()).digest(self.size)
        if self.dtype == "F8_E4M3":
            return raw.translate(_FP8)
        if self.dtype == "BF16":
            mixed = bytearray(raw)
            mixed[1::2] = raw[1::2].translate(_BF16_HIGH)
            return bytes(mixed)
        return raw


def _weight(name: str, *shape: int) -> Tensor:
    return Tensor(f"{name}.weight", "BF16", shape)


def _biased(name: str, *shape: int) -> Iterator[Tensor]:
    yield _weight(name, *shape)
    yield Tensor(f"{name}.bias", "BF16", shape[:1])


def _fp4(name: str, rows: int, columns: int) -> Iterator[Tensor]:
    yield Tensor(f"{name}.weight", "U8", (rows, columns // 2))
    yield Tensor(f"{name}.weight_scale", "F8_E4M3", (rows, columns // GROUP))
    yield Tensor(f"{name}.weight_scale_2", "F32", ())
    yield Tensor(f"{name}.input_scale", "F32", ())


def _feed_forward(name: str, *, quantized: bool) -> Iterator[Tensor]:
    yield _weight(f"{name}.gate", EXPERTS, HIDDEN)
    yield _weight(f"{name}.shared_expert_gate", 1, HIDDEN)
    experts = [f"{name}.experts.{number}" for number in range(EXPERTS)]
    for expert in (f"{name}.shared_expert", *experts):
        for projection, rows, columns in (
            ("gate_proj", EXPERT_HIDDEN, HIDDEN),
            ("up_proj", EXPERT_HIDDEN, HIDDEN),
            ("down_proj", HIDDEN, EXPERT_HIDDEN),
        ):
            if quantized and expert in experts:
                yield from _fp4(f"{expert}.{projection}", rows, columns)
            else:
                yield _weight(f"{expert}.{projection}", rows, columns)


def _full_attention(name: str, *, scales: bool) -> Iterator[Tensor]:
    # The query projection includes the output gate, hence twice the heads.
    yield _weight(f"{name}.q_proj", 2 * HEADS * HEAD_DIM, HIDDEN)
    yield _weight(f"{name}.k_proj", KEY_VALUE_HEADS * HEAD_DIM, HIDDEN)
    yield _weight(f"{name}.v_proj", KEY_VALUE_HEADS * HEAD_DIM, HIDDEN)
    yield _weight(f"{name}.o_proj", HIDDEN, HEADS * HEAD_DIM)
    yield _weight(f"{name}.q_norm", HEAD_DIM)
    yield _weight(f"{name}.k_norm", HEAD_DIM)
    if scales:
        yield Tensor(f"{name}.k_proj.k_scale", "F32", ())
        yield Tensor(f"{name}.v_proj.v_scale", "F32", ())


def _linear_attention(name: str) -> Iterator[Tensor]:
    keys = LINEAR_KEY_HEADS * LINEAR_HEAD_DIM
    values = LINEAR_VALUE_HEADS * LINEAR_HEAD_DIM
    yield Tensor(f"{name}.A_log", "BF16", (LINEAR_VALUE_HEADS,))
    yield Tensor(f"{name}.dt_bias", "BF16", (LINEAR_VALUE_HEADS,))
    yield _weight(f"{name}.conv1d", 2 * keys + values, 1, CONVOLUTION)
    yield _weight(f"{name}.in_proj_a", LINEAR_VALUE_HEADS, HIDDEN)
    yield _weight(f"{name}.in_proj_b", LINEAR_VALUE_HEADS, HIDDEN)
    yield _weight(f"{name}.in_proj_qkv", 2 * keys + values, HIDDEN)
    yield _weight(f"{name}.in_proj_z", values, HIDDEN)
    yield _weight(f"{name}.norm", LINEAR_HEAD_DIM)
    yield _weight(f"{name}.out_proj", HIDDEN, values)


def layer_types() -> list[str]:
    """Return the kind of attention of each layer: every fourth is full, as in the real model."""
    return [
        "linear_attention" if (number + 1) % FULL_ATTENTION_INTERVAL else "full_attention" for number in range(LAYERS)
    ]


def _language_model(name: str) -> Iterator[Tensor]:
    yield _weight(f"{name}.embed_tokens", VOCABULARY, HIDDEN)
    for number, kind in enumerate(layer_types()):
        layer = f"{name}.layers.{number}"
        yield _weight(f"{layer}.input_layernorm", HIDDEN)
        if kind == "linear_attention":
            yield from _linear_attention(f"{layer}.linear_attn")
        else:
            yield from _full_attention(f"{layer}.self_attn", scales=True)
        yield from _feed_forward(f"{layer}.mlp", quantized=True)
        yield _weight(f"{layer}.post_attention_layernorm", HIDDEN)
    yield _weight(f"{name}.norm", HIDDEN)


def _vision(name: str) -> Iterator[Tensor]:
    yield from _biased(f"{name}.patch_embed.proj", VISION_HIDDEN, 3, 2, 16, 16)
    yield _weight(f"{name}.pos_embed", VISION_POSITIONS, VISION_HIDDEN)
    for number in range(VISION_DEPTH):
        block = f"{name}.blocks.{number}"
        yield from _biased(f"{block}.norm1", VISION_HIDDEN)
        yield from _biased(f"{block}.attn.qkv", 3 * VISION_HIDDEN, VISION_HIDDEN)
        yield from _biased(f"{block}.attn.proj", VISION_HIDDEN, VISION_HIDDEN)
        yield from _biased(f"{block}.norm2", VISION_HIDDEN)
        yield from _biased(f"{block}.mlp.linear_fc1", VISION_MLP, VISION_HIDDEN)
        yield from _biased(f"{block}.mlp.linear_fc2", VISION_HIDDEN, VISION_MLP)
    merged = 4 * VISION_HIDDEN
    yield from _biased(f"{name}.merger.norm", VISION_HIDDEN)
    yield from _biased(f"{name}.merger.linear_fc1", merged, merged)
    yield from _biased(f"{name}.merger.linear_fc2", HIDDEN, merged)


def _speculation(name: str) -> Iterator[Tensor]:
    yield _weight(f"{name}.fc", HIDDEN, 2 * HIDDEN)
    yield _weight(f"{name}.pre_fc_norm_embedding", HIDDEN)
    yield _weight(f"{name}.pre_fc_norm_hidden", HIDDEN)
    layer = f"{name}.layers.0"
    yield _weight(f"{layer}.input_layernorm", HIDDEN)
    yield from _full_attention(f"{layer}.self_attn", scales=False)
    yield from _feed_forward(f"{layer}.mlp", quantized=False)
    yield _weight(f"{layer}.post_attention_layernorm", HIDDEN)
    yield _weight(f"{name}.norm", HIDDEN)


def tensors() -> list[Tensor]:
    """Return every tensor of the checkpoint, in the order of the shards."""
    return [
        *_vision("model.visual"),
        *_language_model("model.language_model"),
        _weight("lm_head", VOCABULARY, HIDDEN),
        *_speculation("mtp"),
    ]


def _write_shard(path: Path, members: list[Tensor]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in members:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.size],
        }
        end += tensor.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data to eight bytes
    with path.open("wb") as shard:
        shard.write(struct.pack("<Q", len(text)) + text)
        for tensor in members:
            shard.write(tensor.values())


def write_shards(folder: Path) -> None:
    """Write `model-0000N-of-0000M.safetensors` and their index into `folder`."""
    members = tensors()
    total = sum(tensor.size for tensor in members)
    shards: list[list[Tensor]] = [[] for _ in range(SHARDS)]
    done = 0
    for tensor in members:
        shards[min(done * SHARDS // total, SHARDS - 1)].append(tensor)
        done += tensor.size
    weight_map: dict[str, str] = {}
    for number, content in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{SHARDS:05d}.safetensors"
        _write_shard(folder / name, content)
        weight_map.update({tensor.name: name for tensor in content})
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
