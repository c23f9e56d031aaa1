"""Draft tokens by batch size: what the schema lets pass is what vLLM itself takes, by its own function."""

import importlib.util
import json
from collections.abc import Callable
from typing import Any

import pytest

from lab.registry import tree
from rigup.engines import option
from rigup.known import misshapen, releases
from rigup.recipes import default_catalogue
from rigup.schema import Speculation

# The same text in the vLLM that the lab has (0.32.0) and in 0.33.0.
SOURCE = tree.place() / "vllm" / "v1" / "spec_decode" / "dynamic" / "utils.py"
VLLM = next(release for release in releases() if release.engine == "vllm")
SHAPES = VLLM.keys["--speculative-config"]
ADAPTIVE = default_catalogue().recipe("vllm-nvfp4-cu130-adaptive")

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
def lookup() -> Callable[..., list[int]]:
    if not SOURCE.is_file():
        pytest.skip("the lab has not made its vLLM here yet: make lab")
    spec = importlib.util.spec_from_file_location("dynamic_utils", SOURCE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[..., list[int]] = module.build_dynamic_sd_schedule_lookup
    return found


def config() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(option(ADAPTIVE, "--speculative-config") or "")
    return found


def test_vllm_drafts_as_the_recipe_says(lookup: Callable[..., list[int]]) -> None:
    steps = config()["num_speculative_tokens_per_batch_size"]
    drafted = lookup(steps, vllm_max_batch_size=256, vllm_num_speculative_tokens=config()["num_speculative_tokens"])
    assert [drafted[size] for size in (1, 4, 5, 16, 17, 128, 256)] == [3, 3, 2, 2, 0, 0, 0]


@pytest.mark.parametrize("steps", STEPS, ids=str)
def test_what_vllm_refuses_is_refused_here(lookup: Callable[..., list[int]], steps: list[list[int]]) -> None:
    try:
        Speculation.model_validate({"method": "mtp", "n": steps})
    except ValueError:
        return
    assert lookup(steps, vllm_max_batch_size=64, vllm_num_speculative_tokens=max(tokens for *_, tokens in steps))


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ([[1, 4, 3]], None),
        ([[1, 4]], "has [1, 4] where a list of 3 is due"),
        ([[1, 4, "3"]], 'has "3" where a whole number is due'),
        ([[1, 4, True]], "has true where a whole number is due"),
        ({"1": 3}, 'has {"1": 3} where a list is due'),
        (3, "has 3 where a list is due"),
    ],
    ids=str,
)
def test_the_shape_of_the_list_is_judged(value: Any, fault: str | None) -> None:
    found = misshapen(value, SHAPES["num_speculative_tokens_per_batch_size"])
    assert (found[0] if found else None) == fault


def test_what_the_recipe_gives_has_the_shape_that_the_release_wants() -> None:
    assert {name: misshapen(value, SHAPES[name]) for name, value in config().items()} == dict.fromkeys(config())
