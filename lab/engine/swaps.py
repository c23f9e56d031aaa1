"""The arguments and variables that a machine without GPUs cannot honor, and their replacements."""

from argparse import Namespace
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Swap:
    """One requested setting and its replacement."""

    what: str
    asked: object
    done: object
    why: str

    def __str__(self) -> str:
        return f"lab: {self.what} {_shown(self.asked)} -> {_shown(self.done)} ({self.why})"


def _shown(value: object) -> str:
    return "default" if value is None else str(value)


@dataclass(frozen=True)
class _Rule:
    attribute: str
    asked: Callable[[Any], bool]
    done: object
    why: str


def _above_one(value: Any) -> bool:
    return isinstance(value, int) and value > 1


def _given(value: Any) -> bool:
    return value is not None


def _other_than(*allowed: object) -> Callable[[Any], bool]:
    return lambda value: value is not None and str(value) not in allowed


NATIVE_CONTEXT = 262144
"""The context length of the miniature and the real model, in tokens."""

ONE_CPU = "one CPU"
NO_FP = "no FP4 or FP8 on a CPU"
NO_KERNEL = "a GPU's kernel"

_RULES = (
    *(
        _Rule(name, _above_one, 1, ONE_CPU)
        for name in (
            "tensor_parallel_size",
            "pipeline_parallel_size",
            "data_parallel_size",
            "data_parallel_size_local",
            "decode_context_parallel_size",
            "prefill_context_parallel_size",
        )
    ),
    *(
        _Rule(name, bool, False, ONE_CPU)
        for name in ("enable_expert_parallel", "enable_eplb", "enable_dbo", "numa_bind")
    ),
    _Rule("device_ids", _given, None, ONE_CPU),
    _Rule("distributed_executor_backend", _other_than("uni"), "uni", ONE_CPU),
    _Rule("quantization", _given, None, NO_FP),
    _Rule("kv_cache_dtype", _other_than("auto", "bfloat16"), "auto", NO_FP),
    *(
        _Rule(name, _given, None, NO_KERNEL)
        for name in ("attention_backend", "mm_encoder_attn_backend", "gdn_prefill_backend")
    ),
    *(_Rule(name, _other_than("auto"), "auto", NO_KERNEL) for name in ("linear_backend", "moe_backend")),
    *(_Rule(name, _given, None, "no GPU memory") for name in ("kv_cache_memory_bytes", "num_gpu_blocks_override")),
    _Rule("load_format", _other_than("auto", "safetensors"), "auto", "a GPU's loader"),
    # Compiling takes half a minute and more on two cores; an eager pass of four small layers takes no time.
    _Rule("enforce_eager", lambda value: not value, True, "no torch.compile, for a quick start"),
)

_VARIABLES = {
    # One thread suffices for four small layers; the engine is forked, which several OpenMP threads do not survive.
    "OMP_NUM_THREADS": ("1", "small layers"),
    "VLLM_ENABLE_V1_MULTIPROCESSING": ("0", "engine and worker in one process, for a quick start"),
}

_DROPPED = ("VLLM_ATTENTION_BACKEND", "VLLM_NVFP4_GEMM_BACKEND", "VLLM_WORKER_MULTIPROC_METHOD")


def _set(environment: MutableMapping[str, str], name: str, value: str, why: str) -> list[Swap]:
    before = environment.get(name)
    environment[name] = value
    return [] if before == value else [Swap(name, before, value, why)]


def swap_variables(environment: MutableMapping[str, str]) -> list[Swap]:
    """Change the environment before vLLM is imported; return the changes."""
    swaps = []
    for name, (value, why) in _VARIABLES.items():
        swaps += _set(environment, name, value, why)
    for name in sorted(environment):
        if name in _DROPPED or (name.startswith("VLLM_") and "FLASHINFER" in name):
            swaps.append(Swap(name, environment.pop(name), None, NO_KERNEL))
    return swaps


def speculates(arguments: Namespace) -> bool:
    """Whether the arguments enable speculative decoding."""
    return any(getattr(arguments, name, None) is not None for name in ("speculative_config", "spec_method"))


def swap_memory(arguments: Namespace, environment: MutableMapping[str, str]) -> list[Swap]:
    """Size the KV cache for the full context: 1 GiB for the native context, twice that with a draft layer."""
    context = getattr(arguments, "max_model_len", None) or 0
    space = max(1, -(-context // NATIVE_CONTEXT)) * (2 if speculates(arguments) else 1)
    return _set(environment, "VLLM_CPU_KVCACHE_SPACE", str(space), "GiB of KV cache, instead of a share of GPU memory")


def swap_arguments(arguments: Namespace, keep_prefixes: bool = False) -> list[Swap]:
    """Change parsed arguments of `vllm serve`; return the changes.

    With `keep_prefixes` a drafter keeps prefix caching: on a CPU the engine starts and dies at its first request.
    """
    swaps = []
    for rule in _RULES:
        asked = getattr(arguments, rule.attribute, None)
        if hasattr(arguments, rule.attribute) and rule.asked(asked) and asked != rule.done:
            setattr(arguments, rule.attribute, rule.done)
            # A replaced default is reported only if it changes what runs.
            swaps.append(Swap("--" + rule.attribute.replace("_", "-"), asked, rule.done, rule.why))
    cached = getattr(arguments, "enable_prefix_caching", None)
    # With a drafter vLLM caches prefixes of the recurrent state with a Triton kernel (v1/worker/mamba_utils.py).
    if speculates(arguments) and cached is not False and not keep_prefixes:
        arguments.enable_prefix_caching = False
        swaps.append(Swap("--enable-prefix-caching", cached, False, NO_KERNEL))
    attention = getattr(arguments, "attention_config", None)
    if attention is not None and (asked := _differences(attention)) is not None:
        arguments.attention_config = type(attention)()
        swaps.append(Swap("--attention-config", asked, None, NO_KERNEL))
    return swaps


def _differences(config: Any) -> dict[str, Any] | None:
    """Return what was set in a configuration object of vLLM; None when nothing was."""
    if isinstance(config, dict):
        return config or None
    default = vars(type(config)())
    return {name: value for name, value in vars(config).items() if value != default.get(name)} or None
