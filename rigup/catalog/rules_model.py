"""Rules about a recipe and its model: parsers, drafters, quantization, the first release that serves it."""

from __future__ import annotations

from collections.abc import Iterator

from rigup.catalog.checkpoint import Checkpoint
from rigup.catalog.complaint import Case, Complaint, Rule
from rigup.catalog.engine_args import option
from rigup.catalog.engine_options import ordered
from rigup.catalog.patch import TemplatePatch

# Methods whose drafter is a checkpoint of its own, unless the model's own files have it.
OWN_DRAFT_MODEL = (
    *("eagle", "eagle3", "medusa", "mlp_speculator", "draft_model", "standalone"),
    *("dflash", "dflash2", "dspark"),
)
# SGLang's names of the model's own MTP layer.
MTP = {"nextn": "mtp", "eagle": "mtp"}
# Methods that draft with a layer of the model itself.
WITHIN = ("mtp", "nextn")


def _parsers(case: Case) -> Iterator[Complaint]:
    recipe = case.recipe
    if recipe.tool_parser == "qwen35_coder":
        message = "qwen35_coder never shipped (vLLM pull request 35347 was closed)"
        yield Complaint("recipe-tool-parser", ("tool_parser",), message, "use qwen3_coder")
        return
    known = case.model.parsers.get(recipe.engine.name) if case.model else None
    if case.model is None or known is None:
        return
    if recipe.tool_parser and recipe.tool_parser not in known.tool:
        message = f"{recipe.tool_parser} does not read the tool calls of {case.model.id}: they stay in the text"
        yield Complaint("recipe-tool-parser", ("tool_parser",), message, f"use {' or '.join(known.tool)}")
    if recipe.reasoning_parser and recipe.reasoning_parser not in known.reasoning:
        message = f"{recipe.reasoning_parser} does not read the reasoning of {case.model.id}: it stays in the answer"
        yield Complaint(
            "recipe-reasoning-parser", ("reasoning_parser",), message, f"use {' or '.join(known.reasoning)}"
        )


def _drafter(case: Case) -> Iterator[Complaint]:
    recipe, speculation = case.recipe, case.recipe.speculation
    if speculation is None:
        return
    if case.drafter:
        yield from _external(case, case.drafter.checkpoint)
        return
    if not case.checkpoint.drafter:
        message = f"the drafter does not fit the weights of {case.checkpoint.repo}"
        yield Complaint("recipe-drafter", ("speculation",), message, "use speculation: null")
    method = speculation.method.lower()
    method = MTP.get(method, method) if recipe.engine.name == "sglang" else method
    drafters = case.model.drafters if case.model else None
    if method in (drafters or ()):
        return
    where = ("speculation", "method")
    instead = f"use {' or '.join(drafters)}" if drafters else "use speculation: null"
    if method in OWN_DRAFT_MODEL:
        message = f"{speculation.method} needs a draft model that the files of {case.checkpoint.repo} do not have"
        yield Complaint("recipe-draft-model", where, message, f"name its checkpoint as speculation.model, or {instead}")
    elif method == "mtp" and drafters is not None and case.model:
        message = f"{case.model.id} has no MTP layer in its files"
        yield Complaint("recipe-draft-model", where, message, instead)


def _external(case: Case, drafter: Checkpoint) -> Iterator[Complaint]:
    """Yield what is wrong with a drafter that has a checkpoint of its own."""
    recipe, where = case.recipe, ("speculation", "model")
    method = recipe.speculation.method if recipe.speculation else ""
    if method.lower() in WITHIN:
        message = f"{method} drafts with a layer of the model itself, not with another checkpoint"
        yield Complaint("recipe-draft-model", where, message, "remove it, or use the method of the drafter")
    if drafter.drafts_for is None:
        message = f"the checkpoint {drafter.repo} does not say which model it drafts for"
        yield Complaint(
            "recipe-draft-model", where, message, f"if it is a drafter, add drafts_for to {drafter.id}.yaml"
        )
    elif drafter.drafts_for != case.checkpoint.model:
        message = f"{drafter.repo} drafts for {drafter.drafts_for}, not for {case.checkpoint.model}"
        yield Complaint("recipe-draft-model", where, message, "use a drafter that was trained for this model")


def _served(case: Case) -> Iterator[Complaint]:
    if case.checkpoint.drafts_for:
        message = f"{case.checkpoint.repo} is a drafter of {case.checkpoint.drafts_for}, which nobody can chat with"
        yield Complaint("recipe-draft-model", ("checkpoint",), message, "name it as speculation.model instead")


def _quantization(case: Case) -> Iterator[Complaint]:
    recipe, checkpoint = case.recipe, case.checkpoint
    named, where = option(recipe, "--quantization"), case.where("--quantization")
    if named == "modelopt_fp4" and checkpoint.quantization.startswith("modelopt_mixed"):
        message = f"{checkpoint.repo} has mixed precision"
        yield Complaint("recipe-quantization", where, message, "use --quantization=modelopt_mixed")
    if named is not None and checkpoint.quantization.startswith("AWQ"):
        message = f"the config of {checkpoint.repo} already says how it is quantized"
        yield Complaint("recipe-quantization", where, message, "remove it")
    cache = option(recipe, "--kv-cache-dtype")
    if cache and "fp4" in cache and not recipe.engine.fork:
        message = "there are no FP4 KV cache kernels for these cards"
        yield Complaint("recipe-kv-cache", case.where("--kv-cache-dtype"), message, "use fp8")


def _first_release(case: Case) -> Iterator[Complaint]:
    first = case.model.engines.get(case.recipe.engine.name) if case.model else None
    newest = case.recipe.engine.max
    if first and newest and ordered(newest) < ordered(first):
        message = f"{case.recipe.engine.name} serves {case.checkpoint.model} since {first}, but max is {newest}"
        yield Complaint("recipe-model-engine", ("engine", "max"), message, f"use {first} or newer")


def _thinking(case: Case) -> Iterator[Complaint]:
    switch = case.model.thinking if case.model else None
    for index, patch in enumerate(case.recipe.patches):
        if isinstance(patch, TemplatePatch) and patch.thinking is not None and switch not in (None, "enable_thinking"):
            message = f"has no effect: {case.checkpoint.model} reads {switch} instead of enable_thinking"
            remedy = f'use --default-chat-template-kwargs={{"{switch}":{str(patch.thinking).lower()}}}'
            yield Complaint("recipe-thinking", ("patches", index, "thinking"), message, remedy)


RULES: tuple[Rule, ...] = (_parsers, _drafter, _served, _quantization, _first_release, _thinking)
