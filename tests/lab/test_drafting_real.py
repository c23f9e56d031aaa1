"""Draft tokens by batch size: what the schema lets pass is what vLLM itself takes, by its own function."""

import importlib.util
import json
from collections.abc import Callable
from typing import Any

import pytest

from lab.registry import tree
from rigup.catalog.engine_args import option
from rigup.catalog.loader import default_catalog
from rigup.catalog.recipe_parts import Speculation

# The same text in the vLLM that the lab has (0.32.0) and in 0.33.0.
SOURCE = "vllm/v1/spec_decode/dynamic/utils.py"
ADAPTIVE = default_catalog().recipe("vllm-nvfp4-cu130-adaptive")

STEPS = [
    [[1, 4, 3], [5, 16, 2], [17, 128, 0]],
    [[1, 1, 1]],
    [[1, 4, 3], [6, 16, 2]],
    [[2, 4, 3]],
    [[1, 4, -1]],
    [[4, 1, 1]],
    [[1, 4, 3], [4, 9, 1]],
    [[0, 4, 3]],
]


@pytest.fixture(scope="module")
def lookup(vllm: None) -> Callable[..., list[int]]:
    spec = importlib.util.spec_from_file_location("dynamic_utils", tree.place() / SOURCE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[..., list[int]] = module.build_dynamic_sd_schedule_lookup
    return found


def test_vllm_drafts_as_the_recipe_says(lookup: Callable[..., list[int]]) -> None:
    given: dict[str, Any] = json.loads(option(ADAPTIVE, "--speculative-config") or "")
    steps = given["num_speculative_tokens_per_batch_size"]
    drafted = lookup(steps, vllm_max_batch_size=256, vllm_num_speculative_tokens=given["num_speculative_tokens"])
    assert [drafted[size] for size in (1, 4, 5, 16, 17, 128, 256)] == [3, 3, 2, 2, 0, 0, 0]


@pytest.mark.parametrize("steps", STEPS, ids=str)
def test_what_vllm_refuses_is_refused_here(lookup: Callable[..., list[int]], steps: list[list[int]]) -> None:
    try:
        Speculation.model_validate({"method": "mtp", "n": steps})
    except ValueError:
        return
    assert lookup(steps, vllm_max_batch_size=64, vllm_num_speculative_tokens=max(tokens for *_, tokens in steps))
