"""How a recipe's fields are written as arguments of its engine. Names as in vLLM 0.33.0 and SGLang 0.5.23."""

from __future__ import annotations

import json
from typing import Any

from rigup.catalog.patch import YarnPatch
from rigup.catalog.recipe import LAUNCHER, Parallel, Recipe, option_name

__all__ = ["arguments", "option", "own_arguments"]

PARALLEL = {
    "vllm": {
        "tp": "--tensor-parallel-size",
        "pp": "--pipeline-parallel-size",
        "dp": "--data-parallel-size",
        "dcp": "--decode-context-parallel-size",
    },
    "sglang": {"tp": "--tp-size", "pp": "--pp-size", "dp": "--dp-size", "dcp": "--dcp-size"},
}


def arguments(recipe: Recipe) -> list[tuple[str, str]]:
    """All of a recipe's arguments in order, each with the key it comes from (`parallel.tp`, `argv[3]`)."""
    return [*own_arguments(recipe), *((value, f"argv[{index}]") for index, value in enumerate(recipe.argv))]


def own_arguments(recipe: Recipe) -> list[tuple[str, str]]:
    """The arguments that come from fields, each with its field."""
    names = PARALLEL[recipe.engine.name]
    found = [
        (f"{names[field]}={getattr(recipe.parallel, field)}", f"parallel.{field}")
        for field in Parallel.model_fields
        if getattr(recipe.parallel, field) != 1
    ]
    if recipe.tool_parser:
        if recipe.engine.name == "vllm":
            found.append(("--enable-auto-tool-choice", "tool_parser"))
        found.append((f"--tool-call-parser={recipe.tool_parser}", "tool_parser"))
    if recipe.reasoning_parser:
        found.append((f"--reasoning-parser={recipe.reasoning_parser}", "reasoning_parser"))
    found += [(value, "speculation") for value in _speculation(recipe)]
    if recipe.engine.name == "vllm":
        for index, patch in enumerate(recipe.patches):
            if isinstance(patch, YarnPatch):
                rope = json.dumps({"text_config": {"rope_parameters": patch.parameters}}, separators=(",", ":"))
                found.append((f"--hf-overrides={rope}", f"patches[{index}]"))
    return found


def _speculation(recipe: Recipe) -> list[str]:
    wanted = recipe.speculation
    if recipe.engine.fork == LAUNCHER:
        # Left to themselves, most of its profiles speculate.
        return [f"--mode={wanted.method}", f"--draft-tokens={wanted.n}"] if wanted else ["--mode=off"]
    if wanted is None:
        return []
    if recipe.engine.name == "sglang":
        return [
            f"--speculative-algorithm={wanted.method}",
            f"--speculative-num-steps={wanted.steps}",
            f"--speculative-eagle-topk={wanted.topk}",
            f"--speculative-num-draft-tokens={wanted.n}",
        ]
    config: dict[str, Any] = {"method": wanted.method}
    if isinstance(wanted.n, int):
        config["num_speculative_tokens"] = wanted.n
    else:
        # The larger number is what vLLM makes room for; the list says how many are used at which batch size.
        config["num_speculative_tokens"] = max(tokens for _, _, tokens in wanted.n)
        config["num_speculative_tokens_per_batch_size"] = [list(step) for step in wanted.n]
    return [f"--speculative-config={json.dumps(config, separators=(',', ':'))}"]


def option(recipe: Recipe, *names: str) -> str | None:
    """The value of the first of these options that the recipe has; "" for one without a value."""
    for argument, _ in arguments(recipe):
        if option_name(argument) in names:
            return argument.partition("=")[2]
    return None
