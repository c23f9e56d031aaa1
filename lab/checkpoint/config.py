"""The miniature's JSON files, with the structure of NVIDIA's published ones."""

import json
from pathlib import Path
from typing import Any

from lab.checkpoint import tensors as sizes
from lab.checkpoint.tokenizer import token_ids

PRODUCER = {"name": "modelopt", "version": "0.42.0"}
CONTEXT = 262144
"""The native context length of the real model."""


def unquantized(repaired: bool) -> list[str]:
    """Return the modules that ModelOpt did not quantize, at least one entry per layer.

    Unless repaired, it lacks entries for the routers (`mlp.gate`) and `mtp.fc`, though both are stored in bfloat16:
    the checkpoint was published this way, and engines of its first weeks need a patched configuration.
    """
    entries = ["lm_head", *(["model.language_model.layers.*.mlp.gate", "mtp.fc"] if repaired else [])]
    for number, kind in enumerate(sizes.layer_types()):
        layer = f"model.language_model.layers.{number}"
        if kind == "linear_attention":
            entries += [f"{layer}.linear_attn.conv1d", f"{layer}.linear_attn*"]
        else:
            entries.append(f"{layer}.self_attn*")
        entries += [f"{layer}.mlp.shared_expert.*", f"{layer}.mlp.shared_expert_gate"]
    return [*entries, "model.visual*", "mtp.layers.0*"]


def _quantization(repaired: bool) -> dict[str, Any]:
    fp4 = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": sizes.GROUP}
    return {
        "config_groups": {"group_0": {"input_activations": fp4, "weights": fp4, "targets": ["Linear"]}},
        "ignore": unquantized(repaired),
        "quant_algo": "NVFP4",
        "kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"},
        "producer": PRODUCER,
        "quant_method": "modelopt",
    }


def model_config(repaired: bool) -> dict[str, Any]:
    """Return config.json: `Qwen3_5MoeConfig` with small sizes and the real `quantization_config`."""
    ids = token_ids()
    return {
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "dtype": "bfloat16",
        "image_token_id": ids["<|image_pad|>"],
        "model_type": "qwen3_5_moe",
        "text_config": {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "attn_output_gate": True,
            "dtype": "bfloat16",
            "eos_token_id": ids["<|endoftext|>"],
            "full_attention_interval": sizes.FULL_ATTENTION_INTERVAL,
            "head_dim": sizes.HEAD_DIM,
            "hidden_act": "silu",
            "hidden_size": sizes.HIDDEN,
            "initializer_range": 0.02,
            "layer_types": sizes.layer_types(),
            "linear_conv_kernel_dim": sizes.CONVOLUTION,
            "linear_key_head_dim": sizes.LINEAR_HEAD_DIM,
            "linear_num_key_heads": sizes.LINEAR_KEY_HEADS,
            "linear_num_value_heads": sizes.LINEAR_VALUE_HEADS,
            "linear_value_head_dim": sizes.LINEAR_HEAD_DIM,
            "mamba_ssm_dtype": "float32",
            "max_position_embeddings": CONTEXT,
            "mlp_only_layers": [],
            "model_type": "qwen3_5_moe_text",
            "moe_intermediate_size": sizes.EXPERT_HIDDEN,
            "mtp_num_hidden_layers": 1,
            "mtp_use_dedicated_embeddings": False,
            "num_attention_heads": sizes.HEADS,
            "num_experts": sizes.EXPERTS,
            "num_experts_per_tok": 2,
            "num_hidden_layers": sizes.LAYERS,
            "num_key_value_heads": sizes.KEY_VALUE_HEADS,
            "rms_norm_eps": 1e-06,
            "rope_parameters": {
                "mrope_interleaved": True,
                "mrope_section": [11, 11, 10],
                "partial_rotary_factor": 0.25,
                "rope_theta": 10000000,
                "rope_type": "default",
            },
            "router_aux_loss_coef": 0.001,
            "shared_expert_intermediate_size": sizes.EXPERT_HIDDEN,
            "use_cache": True,
            "vocab_size": sizes.VOCABULARY,
        },
        "tie_word_embeddings": False,
        "transformers_version": "4.57.0.dev0",
        "video_token_id": ids["<|video_pad|>"],
        "vision_config": {
            "deepstack_visual_indexes": [],
            "depth": sizes.VISION_DEPTH,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": sizes.VISION_HIDDEN,
            "in_channels": 3,
            "initializer_range": 0.02,
            "intermediate_size": sizes.VISION_MLP,
            "model_type": "qwen3_5_moe",
            "num_heads": 4,
            "num_position_embeddings": sizes.VISION_POSITIONS,
            "out_hidden_size": sizes.HIDDEN,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "quantization_config": _quantization(repaired),
    }


def quantization_report(repaired: bool) -> dict[str, Any]:
    """Return hf_quant_config.json: the same in ModelOpt's format."""
    return {
        "producer": PRODUCER,
        "quantization": {
            "quant_algo": "NVFP4",
            "kv_cache_quant_algo": "FP8",
            "group_size": sizes.GROUP,
            "exclude_modules": unquantized(repaired),
        },
    }


def generation_config() -> dict[str, Any]:
    """Return generation_config.json: the sampling that the publisher recommends."""
    ids = token_ids()
    return {
        "bos_token_id": ids["<|endoftext|>"],
        "do_sample": True,
        "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
        "pad_token_id": ids["<|endoftext|>"],
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
        "transformers_version": "4.57.0.dev0",
    }


def _processor(kind: str, name: str, pixels: int) -> dict[str, Any]:
    return {
        "size": {"longest_edge": pixels, "shortest_edge": 4096},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
        kind: name,
    }


def write_configs(folder: Path, repaired: bool) -> None:
    """Write every JSON file except the tokenizer's and the shards' index into `folder`."""
    # Far below the real limits: the engine processes the largest image once at startup, here on a CPU.
    picture = _processor("image_processor_type", "Qwen2VLImageProcessorFast", 262144)
    film = _processor("video_processor_type", "Qwen3VLVideoProcessor", 524288)
    files: dict[str, dict[str, Any]] = {
        "config.json": model_config(repaired),
        "hf_quant_config.json": quantization_report(repaired),
        "generation_config.json": generation_config(),
        "preprocessor_config.json": picture,
        "video_preprocessor_config.json": film,
        "processor_config.json": {"processor_class": "Qwen3VLProcessor"},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
