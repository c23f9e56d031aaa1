"""Read from a checkpoint's config.json what each layer keeps in the cache, and how the weights are split.

Six kinds of layers are known: attention with KV heads (all tokens, or those in a window), latent attention (MLA) with
or without an indexer, and three forms of recurrent state (gated delta net, KDA, and Mamba-2 as in Nemotron-H). Whatever
else a config says makes the cache unknown, with the reason, instead of a wrong number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]

KEYS = frozenset(
    {
        "attention_other_setting",
        "block_configs",
        "compress_ratios",
        "conv_kernel",
        "first_k_dense_replace",
        "full_attention_interval",
        "global_head_dim",
        "head_dim",
        "hidden_size",
        "hybrid_override_pattern",
        "index_head_dim",
        "index_kpool",
        "index_n_heads",
        "index_topk_pattern",
        "indexer_types",
        "kv_lora_rank",
        "layer_types",
        "layers_block_type",
        "linear_attn_config",
        "linear_conv_kernel_dim",
        "linear_head_dim",
        "linear_key_head_dim",
        "linear_num_heads",
        "linear_num_key_heads",
        "linear_num_value_heads",
        "linear_value_head_dim",
        "mamba_d_state",
        "mamba_head_dim",
        "mamba_num_heads",
        "mamba_ssm_cache_dtype",
        "max_position_embeddings",
        "moe_intermediate_size",
        "mtp_num_hidden_layers",
        "n_groups",
        "n_routed_experts",
        "num_attention_groups",
        "num_attention_heads",
        "num_experts",
        "num_global_key_value_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "num_kv_shared_layers",
        "num_local_experts",
        "num_nextn_predict_layers",
        "q_lora_rank",
        "qk_rope_head_dim",
        "quantization_config",
        "sliding_window",
        "sliding_window_pattern",
        "sparse_attention_config",
        "ssm_state_size",
        "swa_num_key_value_heads",
        "text_config",
        "transformer_layer_config",
        "use_sliding_window",
    }
)
"""The keys of config.json that are read, at the top and in its parts."""

# More than any model has.
MOST, MOST_LAYERS = 1 << 32, 10_000

# Each means layers that keep something else. The cache of such a model is not computed.
FOREIGN = {
    "compress_ratios": "compressed attention",
    "block_configs": "layers of different sizes",
    # Of other families: Nemotron-H has other names for it.
    "mamba_d_state": "Mamba layers",
    "index_kpool": "a pooled indexer",
    "global_head_dim": "two sizes of heads",
    "attention_other_setting": "other heads in its windows",
    "num_attention_groups": "groups of heads of its own",
    "sparse_attention_config": "an index over blocks of the cache",
    "swa_num_key_value_heads": "other heads in its windows",
    "num_global_key_value_heads": "two numbers of KV heads",
}

# Bytes of a weight in the routed experts, with its scale, by what quantization_config calls the method.
EXPERT_BYTES = {"fp8": 1.0, "modelopt": 0.5625, "modelopt_mixed": 0.5625, "mxfp4": 0.53125, "awq": 0.53, "gptq": 0.53}


@dataclass(frozen=True)
class Heads:
    """Attention layers with KV heads, which tensor parallelism splits; `width` values per head and token (K and V)."""

    layers: int
    heads: int
    width: int
    window: int | None = None


@dataclass(frozen=True)
class Latent:
    """Layers of latent attention, which every GPU keeps whole. `indexers` of them also keep an index of each token."""

    layers: int
    rank: int
    rope: int
    indexers: int = 0
    index: int = 0


@dataclass(frozen=True)
class State:
    """Layers with recurrent state, which tensor parallelism splits: a convolution, and a matrix for each head.

    `size` are the bytes of a value of a matrix.
    """

    layers: int
    channels: int
    kernel: int
    heads: int
    matrix: int
    size: int = 4


@dataclass(frozen=True)
class ModelShape:
    """What a model keeps in the cache and how its weights are split.

    `unknown` says why the cache is not known. `drafter` is the number of MTP layers, each like one of attention.
    `weights` are all bytes, `whole` those that every GPU of a tensor parallel group has, and `experts` those of the
    routed experts.
    """

    heads: tuple[Heads, ...] = ()
    latent: Latent | None = None
    state: State | None = None
    drafter: int = 0
    context: int | None = None
    weights: int | None = None
    whole: int = 0
    experts: int = 0
    unknown: str | None = None


def kept(config: Config) -> dict[str, Any]:
    """Return what `describe` reads of a config.json: the rest, such as lists of layers left out, is long."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if key == "quantization_config" and isinstance(value, Mapping):
            found[key] = {name: value[name] for name in ("quant_method",) if name in value}
        elif key in ("text_config", "transformer_layer_config") and isinstance(value, Mapping):
            found[key] = kept(value)
        elif key in KEYS and value is not None:
            found[key] = value
    return found


def describe(config: Config, index: Mapping[str, Any] | None = None) -> ModelShape:
    """Return the shape of a model from its config.json and its model.safetensors.index.json.

    Of the index only the total size is needed. Never raises: what cannot be read makes the cache unknown.
    """
    metadata = (index or {}).get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, Mapping) else None
    weights = int(total) if isinstance(total, int | float) else None
    try:
        return _sound(_described(config, weights))
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        return ModelShape(weights=weights, unknown=f"config.json cannot be read ({type(error).__name__}: {error})")


def _sound(shape: ModelShape) -> ModelShape:
    """Return the shape. Raises ValueError if a number in it cannot be meant, since the file comes from a stranger."""
    parts = [part for part in (*shape.heads, shape.latent, shape.state) if part]
    numbers = [number for part in parts for number in vars(part).values() if number is not None]
    needed = [number for each in shape.heads for number in (each.heads, each.width)]
    needed += [shape.latent.rank] if shape.latent else []
    needed += [shape.state.kernel, shape.state.heads, shape.state.matrix] if shape.state else []
    if any(not 0 <= number <= MOST for number in numbers) or not all(needed):
        raise ValueError("a size is none")
    return shape


def _described(config: Config, weights: int | None) -> ModelShape:
    # Drafters of the library speculators have theirs below the last of these keys.
    text: Config = config.get("text_config") or config.get("transformer_layer_config") or config
    layers = int(text.get("num_hidden_layers") or len(text["layers_block_type"]))
    if not 0 < layers <= MOST_LAYERS:
        raise ValueError(f"{layers} layers")
    hidden = int(text.get("hidden_size") or 0)
    drafter = int(text.get("mtp_num_hidden_layers") or text.get("num_nextn_predict_layers") or 0)
    experts = int(text.get("num_experts") or text.get("n_routed_experts") or text.get("num_local_experts") or 0)
    sparse = layers - int(text.get("first_k_dense_replace") or 0) + drafter
    method = (config.get("quantization_config") or text.get("quantization_config") or {}).get("quant_method") or ""
    kinds = _kinds(text, layers)
    unknown = next((why for key, why in FOREIGN.items() if text.get(key)), None)
    unknown = unknown or next((f"{kind} layers" for kind in kinds if kind not in KNOWN), None)
    latent = _latent(text, kinds)
    shape = ModelShape(
        heads=() if latent else _heads(text, kinds),
        latent=latent,
        state=_state(text, kinds),
        drafter=drafter,
        context=int(text.get("max_position_embeddings") or 0) or None,
        weights=weights,
        whole=_whole(text, layers, sparse, hidden, experts, drafter),
        experts=int(
            3 * hidden * int(text.get("moe_intermediate_size") or 0) * experts * sparse * EXPERT_BYTES.get(method, 2.0)
        ),
        unknown=unknown and f"the model has {unknown}",
    )
    if latent and latent.indexers and shape.state:
        return ModelShape(weights=weights, unknown="the model has an indexer and recurrent state")
    return shape


FULL, WINDOW, LINEAR = "full_attention", "sliding_attention", "linear_attention"
# Nemotron-H's words and letters for its layers; those that keep nothing are None.
BLOCKS = {"mamba": LINEAR, "attention": FULL, "moe": None, "mlp": None, "M": LINEAR, "*": FULL, "E": None, "-": None}
KNOWN = (FULL, WINDOW, LINEAR)
# Names of layers that keep all tokens, and with an indexer read some of them.
INDEXED = ("indexed_attention", "deepseek_sparse_attention")


def _kinds(text: Config, layers: int) -> list[str]:
    """Return the kind of each layer that has a cache of its own."""
    kinds = [FULL] * layers
    if types := text.get("layer_types"):
        kinds = [FULL if kind in INDEXED else str(kind) for kind in types]
    elif blocks := text.get("layers_block_type") or text.get("hybrid_override_pattern"):
        kinds = [kind for kind in (BLOCKS.get(block, str(block)) for block in blocks) if kind]
    elif linear := text.get("linear_attn_config"):
        kinds = [LINEAR if number in linear["kda_layers"] else FULL for number in range(1, layers + 1)]
    elif interval := text.get("full_attention_interval"):
        kinds = [FULL if number % interval == 0 else LINEAR for number in range(1, layers + 1)]
    elif text.get("sliding_window") and text.get("use_sliding_window") is not False:
        pattern = text.get("sliding_window_pattern") or layers + 1
        kinds = [FULL if number % pattern == 0 else WINDOW for number in range(1, layers + 1)]
    return kinds[: layers - int(text.get("num_kv_shared_layers") or 0)]


def _heads(text: Config, kinds: list[str]) -> tuple[Heads, ...]:
    attention = int(text["num_attention_heads"])
    heads = int(text.get("num_key_value_heads") or attention)
    width = 2 * int(text.get("head_dim") or text["hidden_size"] // attention)
    found = [
        Heads(kinds.count(FULL), heads, width),
        Heads(kinds.count(WINDOW), heads, width, text.get("sliding_window")),
    ]
    return tuple(each for each in found if each.layers)


def _latent(text: Config, kinds: list[str]) -> Latent | None:
    if not (rank := text.get("kv_lora_rank")):
        return None
    layers = kinds.count(FULL)
    index = int(text.get("index_head_dim") or 0)
    return Latent(
        layers, int(rank), int(text.get("qk_rope_head_dim") or 0), _indexers(text, layers) if index else 0, index
    )


def _indexers(text: Config, layers: int) -> int:
    """Return how many layers have an indexer of their own; the others use that of a layer before."""
    if types := text.get("indexer_types"):
        return list(types).count("full")
    pattern = text.get("index_topk_pattern")
    return str(pattern).count("F") if pattern else layers


def _state(text: Config, kinds: list[str]) -> State | None:
    if not (layers := kinds.count(LINEAR)):
        return None
    if "mamba_num_heads" in text:
        return _mamba(text, layers)
    kda = text.get("linear_attn_config") or {}
    heads = kda.get("num_heads") or text.get("linear_num_heads")
    size = kda.get("head_dim") or text.get("linear_head_dim")
    if heads and size:
        kernel = int(kda.get("short_conv_kernel_size") or text.get("linear_conv_kernel_dim") or 4)
        return State(layers, 3 * heads * size, kernel, heads, size * size)
    keys = text["linear_num_key_heads"] * text["linear_key_head_dim"]
    heads, size = text["linear_num_value_heads"], text["linear_value_head_dim"]
    kernel = int(text["linear_conv_kernel_dim"])
    return State(layers, 2 * keys + heads * size, kernel, heads, size * text["linear_key_head_dim"])


def _mamba(text: Config, layers: int) -> State:
    # Without a type in its config vLLM 0.33.0 takes float32 (vllm/model_executor/models/config.py).
    size = 2 if str(text.get("mamba_ssm_cache_dtype")) in ("bfloat16", "float16") else 4
    heads, width, depth = text["mamba_num_heads"], text["mamba_head_dim"], text["ssm_state_size"]
    channels = heads * width + 2 * text["n_groups"] * depth
    return State(layers, channels, text["conv_kernel"], heads, width * depth, size)


def _whole(text: Config, layers: int, sparse: int, hidden: int, experts: int, drafter: int) -> int:
    """Return the bytes of weights that tensor parallelism does not split: norms, routers, latent and index parts."""
    values = 2 * hidden * (layers + drafter) + experts * hidden * sparse + 2 * hidden * hidden * drafter
    if rank := text.get("kv_lora_rank"):
        queries = int(text.get("q_lora_rank") or 0)
        values += hidden * (queries + rank + int(text.get("qk_rope_head_dim") or 0)) * (layers + drafter)
        if index := text.get("index_head_dim"):
            heads = int(text.get("index_n_heads") or 0)
            values += (queries * heads * index + hidden * (index + heads)) * (_indexers(text, layers) + drafter)
    return 2 * values
