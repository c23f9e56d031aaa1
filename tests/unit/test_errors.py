"""Errors and the remedies that they suggest."""

from rigup.errors import Finding, InputError, RigupError, suggestion


def test_an_error_is_its_message_and_its_remedy() -> None:
    error = RigupError("lab.lock: no image", "run `rigup lock`")
    assert (error.message, error.remedy) == ("lab.lock: no image", "run `rigup lock`")
    assert str(error) == "lab.lock: no image: run `rigup lock`"
    assert str(RigupError("no image")) == "no image"


def test_a_mistake_that_is_found_twice_is_reported_once_and_in_the_order_of_the_lines() -> None:
    second, first = (
        Finding("lab.yaml", 7, "recipe", "is missing"),
        Finding("lab.yaml", 2, "gpus", "is missing", "add it"),
    )
    error = InputError([second, first, second])
    assert str(error) == "lab.yaml:2: gpus: is missing: add it\nlab.yaml:7: recipe: is missing"


def test_similar_words_are_suggested() -> None:
    known = ("vllm-nvfp4-cu130", "vllm-nvfp4-cu130-mtp1", "sglang-awq-cu130")
    assert suggestion("vllm-nvfp4-cu13", known[:1]) == "did you mean vllm-nvfp4-cu130?"
    assert suggestion("mtp", known) == "did you mean vllm-nvfp4-cu130-mtp1?"
    assert suggestion("zzz", known, "`rigup recipes` lists them") == "`rigup recipes` lists them"
