"""What `rigup new-recipe` drafts for the catalog's own checkpoints, compared with the catalog's recipes for them.

Whatever differs has its reason here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rigup.catalog.engine_args import option
from rigup.catalog.loader import Catalog, default_catalog
from rigup.catalog.recipe import Recipe
from tests.unit.loopback import Site
from tests.unit.published_checkpoints import CHECKPOINTS
from tests.unit.test_cli_new_recipe import drafted, project

__all__ = ["project"]

FORK = "the source measured a fork's image; a draft takes the newest release that is on file"
WORST = "a draft counts with the worse end of its estimate and with vLLM's default share of the memory"
TUNED = f"the source raises the share of the memory; {WORST}"
SPREAD = "measured faster, or with a larger cache, by the source; a draft leaves it alone"
FP8 = "chosen by the source; a draft halves the cache only where the context does not fit otherwise"

# By recipe: the upload that it is drafted from, where not its own, and why each difference is one.
COMPARED: dict[str, tuple[str, dict[str, str]]] = {
    "vllm-nvfp4-cu130": ("", {"patches": "lists of layers in this upload that nobody finds without starting it"}),
    "vllm-stock-b12x": ("", {}),
    "glm-5.1-8gpu": ("nvidia/GLM-5.1-NVFP4", {"fork": FORK, "parallel": SPREAD}),
    "glm-5.2-8gpu-mtp3": ("nvidia/GLM-5.2-NVFP4", {"fork": FORK}),
    "qwen3.6-27b-1gpu": ("", {}),
    "qwen3.6-27b-1gpu-mtp3": ("", {}),
    "qwen3.6-35b-a3b-1gpu": ("", {}),
    "qwen3.6-35b-a3b-1gpu-mtp3": ("", {}),
    "nemotron-3-super-1gpu-mtp3": (
        "",
        {"gpus": TUNED, "parallel": TUNED, "tool": "both names are one class in vLLM 0.33.0"},
    ),
    "minimax-m2.7-2gpu": ("", {"gpus": TUNED, "parallel": TUNED, "cache": FP8}),
    "kimi-k2.7-code-8gpu": (
        "nvidia/Kimi-K2.7-Code-NVFP4",
        {"fork": FORK, "parallel": SPREAD, "context": f"without decode-context parallelism, {WORST}"},
    ),
    "deepseek-v4-flash-2gpu": (
        "deepseek-ai/DeepSeek-V4-Flash",
        {
            "fork": FORK,
            "gpus": "the size of its cache is not known, so that a draft leaves room",
            "parallel": "the size of its cache is not known, so that a draft leaves room",
            "speculation": "a layer for DSpark is in the weights, and no release drafts with it on these cards",
        },
    ),
    "deepseek-v4-flash-8gpu": (
        "deepseek-ai/DeepSeek-V4-Flash",
        {"gpus": "the source had eight cards; it fits on fewer", "parallel": "follows the cards", "cache": FP8},
    ),
    "sglang-awq-cu130": (
        "acme/Qwen3.5-397B-A17B-AWQ",
        {
            "engine": "the source measured SGLang; a draft takes vLLM before SGLang",
            "fork": FORK,
            "cache": FP8,
            "speculation": "the name of the same layer in the other engine",
        },
    ),
}


def facts(catalog: Catalog, recipe: Recipe) -> dict[str, Any]:
    """What a draft decides."""
    checkpoint = catalog.checkpoints[recipe.checkpoint]
    model = catalog.models[checkpoint.model]
    native = model.context or (model.config or {}).get("max_position_embeddings")
    return {
        "engine": recipe.engine.name,
        "fork": recipe.engine.fork,
        "gpus": recipe.gpus,
        "parallel": recipe.parallel.model_dump(exclude_defaults=True),
        "context": int(option(recipe, "--max-model-len", "--context-length") or native or 0),
        "cache": option(recipe, "--kv-cache-dtype") or checkpoint.kv_cache,
        "tool": recipe.tool_parser,
        "reasoning": recipe.reasoning_parser,
        "speculation": recipe.speculation and recipe.speculation.method,
        "patches": sorted(patch.target for patch in recipe.patches),
    }


@pytest.mark.parametrize("name", COMPARED)
def test_a_draft_agrees_with_the_catalog_or_there_is_a_reason(project: tuple[Path, Site], name: str) -> None:
    recipe = default_catalog().recipe(name)
    repo, reasons = COMPARED[name]
    own = default_catalog().checkpoints[recipe.checkpoint].repo
    workload = ("--for", "chat") if recipe.speculation else ()
    draft = drafted(project, CHECKPOINTS[repo or own], "--as", "draft", *workload)
    catalog = default_catalog()
    ours, theirs = facts(catalog, draft), facts(catalog, recipe)
    assert {key for key in ours if ours[key] != theirs[key]} == set(reasons), (ours, theirs)
