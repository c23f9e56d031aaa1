"""Turn a recipe's fields into arguments of its engine. Option names as in vLLM 0.33.0 and SGLang 0.5.23."""

from __future__ import annotations

import json
from typing import Any

from rigup.catalog.patch import YarnPatch
from rigup.catalog.recipe import LAUNCHER, Recipe, option_name
from rigup.catalog.recipe_parts import Parallel
from rigup.paths import DRAFTER

PARALLEL = {
    "vllm": {
        "tp": "--tensor-parallel-size",
        "pp": "--pipeline-parallel-size",
        "dp": "--data-parallel-size",
        "dcp": "--decode-context-parallel-size",
    },
    "sglang": {"tp": "--tp-size", "pp": "--pp-size", "dp": "--dp-size", "dcp": "--dcp-size"},
}


def arguments(recipe: Recipe, drafter: str = DRAFTER) -> list[tuple[str, str]]:
    """Return all of a recipe's arguments in order, each with the key it comes from (`parallel.tp`, `argv[3]`).

    `drafter` is the directory where the engine finds the checkpoint of `speculation.model`.
    """
    return [*own_arguments(recipe, drafter), *((value, f"argv[{index}]") for index, value in enumerate(recipe.argv))]


def own_arguments(recipe: Recipe, drafter: str = DRAFTER) -> list[tuple[str, str]]:
    """Return the arguments that come from fields, each with its field."""
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
    found += [(value, "speculation") for value in _speculation(recipe, drafter)]
    if recipe.engine.name == "vllm":
        for index, patch in enumerate(recipe.patches):
            if isinstance(patch, YarnPatch):
                rope = json.dumps({"text_config": {"rope_parameters": patch.parameters}}, separators=(",", ":"))
                found.append((f"--hf-overrides={rope}", f"patches[{index}]"))
    return found


def _speculation(recipe: Recipe, drafter: str) -> list[str]:
    speculation = recipe.speculation
    if recipe.engine.fork == LAUNCHER:
        # By default most of its profiles speculate.
        if speculation is None:
            return ["--mode=off"]
        model = [f"--draft-model={drafter}"] if speculation.model else []
        return [f"--mode={speculation.method}", f"--draft-tokens={speculation.n}", *model]
    if speculation is None:
        return []
    if recipe.engine.name == "sglang":
        return [
            f"--speculative-algorithm={speculation.method}",
            *([f"--speculative-draft-model-path={drafter}"] if speculation.model else []),
            *([f"--speculative-num-steps={speculation.steps}"] if speculation.steps else []),
            *([f"--speculative-eagle-topk={speculation.topk}"] if speculation.topk else []),
            f"--speculative-num-draft-tokens={speculation.n}",
        ]
    config: dict[str, Any] = {"method": speculation.method}
    if speculation.model:
        config["model"] = drafter
    if speculation.moe_backend:
        config["moe_backend"] = speculation.moe_backend
    if isinstance(speculation.n, int):
        config["num_speculative_tokens"] = speculation.n
    else:
        # vLLM reserves memory for the largest number; the list says how many are used at which batch size.
        config["num_speculative_tokens"] = max(tokens for _, _, tokens in speculation.n)
        config["num_speculative_tokens_per_batch_size"] = [list(step) for step in speculation.n]
    return [f"--speculative-config={json.dumps(config, separators=(',', ':'))}"]


def option(recipe: Recipe, *names: str) -> str | None:
    """Return the value of the first of these options that the recipe has, "" for a flag; None if it has none."""
    for argument, _ in arguments(recipe):
        if option_name(argument) in names:
            return argument.partition("=")[2]
    return None
