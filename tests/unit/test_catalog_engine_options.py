"""Draft tokens by batch size: what a recipe gives has the shape that the release of vLLM wants."""

import json
from typing import Any

import pytest

from rigup.catalog.engine_args import option
from rigup.catalog.engine_options import misshapen, releases
from tests.unit.sample import CATALOGUE

VLLM = next(release for release in releases() if release.name == "vllm 0.33.0")
SHAPES = VLLM.keys["--speculative-config"]
ADAPTIVE = CATALOGUE.recipe("vllm-nvfp4-cu130-adaptive")


def config() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(option(ADAPTIVE, "--speculative-config") or "")
    return found


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ([[1, 4, 3]], None),
        ([[1, 4]], "has [1, 4] instead of a list of 3"),
        ([[1, 4, "3"]], 'has "3" instead of a whole number'),
        ([[1, 4, True]], "has true instead of a whole number"),
        ({"1": 3}, 'has {"1": 3} instead of a list'),
        (3, "has 3 instead of a list"),
    ],
    ids=str,
)
def test_the_shape_of_the_list_is_judged(value: Any, fault: str | None) -> None:
    found = misshapen(value, SHAPES["num_speculative_tokens_per_batch_size"])
    assert (found[0] if found else None) == fault


def test_what_the_recipe_gives_has_the_shape_that_the_release_wants() -> None:
    assert {name: misshapen(value, SHAPES[name]) for name, value in config().items()} == dict.fromkeys(config())
