"""Rules of arithmetic: heads over GPUs, tokens and sequences against each other and against the memory."""

from __future__ import annotations

from collections.abc import Iterator

from rigup.catalog.complaint import Case, Complaint, Rule
from rigup.catalog.engine_args import option
from rigup.catalog.engine_options import ordered
from rigup.catalog.memory import LENGTH_OPTIONS, SHARE_OPTIONS, asked_context, asked_share, fit, tokens_of
from rigup.catalog.patch import YarnPatch
from rigup.fit.memory import GIB

LONG_CONTEXT = {"vllm": "VLLM_ALLOW_LONG_MAX_MODEL_LEN", "sglang": "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN"}
BATCH, SEQUENCES = "--max-num-batched-tokens", "--max-num-seqs"

# On cards with 70 GiB and more (vLLM 0.33.0, vllm/engine/arg_utils.py).
USUAL_SEQUENCES = 1024
# Read from the wheels: 0.20.0 has the check (pull request 38270); 0.19.0 captures fewer CUDA graphs instead.
BLOCKS_CHECKED_SINCE = "0.20.0"


def _heads(case: Case) -> Iterator[Complaint]:
    """Apply vLLM 0.33.0's checks (vllm/config/model.py): heads per GPU must be whole, or a whole GPU group per head."""
    model, parallel = case.model, case.recipe.parallel
    if model is None:
        return
    where = ("parallel", "tp")
    heads, kv_heads = model.attention_heads, model.kv_heads
    if heads and heads % parallel.tp:
        message = f"{parallel.tp} GPUs cannot share the {heads} attention heads of {model.id} evenly"
        remedy = f"use a number that divides {heads}, with pp or dp for the other GPUs"
        yield Complaint("recipe-tp-heads", where, message, remedy)
    elif kv_heads and max(kv_heads, parallel.tp) % min(kv_heads, parallel.tp):
        message = f"neither of {kv_heads} KV heads of {model.id} and {parallel.tp} GPUs divides the other"
        yield Complaint("recipe-tp-kv-heads", where, message, f"use a multiple or a divisor of {kv_heads}")
    if kv_heads and case.recipe.engine.name == "vllm" and parallel.dcp > max(1, parallel.tp // kv_heads):
        message = f"{parallel.dcp} GPUs cannot split the cache: {parallel.tp} GPUs hold {kv_heads} KV heads"
        remedy = f"use at most {max(1, parallel.tp // kv_heads)}"
        yield Complaint("recipe-dcp-kv-heads", ("parallel", "dcp"), message, remedy)


def _memory(case: Case) -> Iterator[Complaint]:
    share = asked_share(case.recipe)
    if not 0 < share <= 1:
        message = f"{share:g} is not a part of the GPU's memory"
        yield Complaint("recipe-memory-share", case.where(*SHARE_OPTIONS), message, "use a number such as 0.9")
        return
    estimate = fit(case.recipe, case.checkpoint, case.model, case.vram_mib, case.files, case.drafter)
    if estimate and estimate.impossible:
        remedy = "use more GPUs, a smaller checkpoint or a shorter context"
        yield Complaint("recipe-memory", ("gpus",), f"does not fit: {estimate}", remedy)
        return
    newest = case.recipe.engine.max
    if case.recipe.engine.name != "vllm" or estimate is None or estimate.blocks is None or not estimate.blocks.states:
        return
    if newest is not None and ordered(newest) < ordered(BLOCKS_CHECKED_SINCE):
        return
    asked = _number(case, SEQUENCES)
    sequences = asked or USUAL_SEQUENCES
    need = sequences * estimate.blocks.size / GIB
    if need > estimate.left:
        what = f"{sequences} sequences{'' if asked else ', the default,'} need {need:.1f} GiB of recurrent state"
        left = f"about {max(0.0, estimate.left):.1f} GiB are left (±{estimate.error:.0f} GiB)"
        message = f"{what} on each GPU, and {left}"
        remedy = f"set {SEQUENCES}, for example to 128"
        advice = need <= estimate.left + estimate.error
        yield Complaint("recipe-state-blocks", case.where(SEQUENCES), message, remedy, advice)


def _batch(case: Case) -> Iterator[Complaint]:
    """Apply vLLM 0.33.0's checks of its scheduler (vllm/config/scheduler.py)."""
    if case.recipe.engine.name != "vllm":
        return
    batch, sequences = _number(case, BATCH), _number(case, SEQUENCES)
    if batch is None:
        return
    if sequences is not None and batch < sequences:
        message = f"{batch} tokens in a batch are fewer than the {sequences} sequences that each need one"
        yield Complaint("recipe-batched-tokens", case.where(BATCH), message, f"use at least {sequences}")
    context = asked_context(case.recipe) or (case.model.context if case.model else None)
    if context and batch < context and option(case.recipe, "--no-enable-chunked-prefill") is not None:
        message = f"{batch} tokens in a batch are fewer than the {context} of a prompt, which must not be divided"
        remedy = f"remove --no-enable-chunked-prefill, or use at least {context}"
        yield Complaint("recipe-chunked-prefill", case.where(BATCH), message, remedy)


def _context(case: Case) -> Iterator[Complaint]:
    recipe, native = case.recipe, case.model.context if case.model else None
    tokens, variable = asked_context(recipe) or 0, LONG_CONTEXT[recipe.engine.name]
    if native and tokens > native and recipe.env.get(variable) != "1":
        message, remedy = f"exceeds the native {native} tokens", f'allow it with env: {{{variable}: "1"}}'
        yield Complaint("recipe-context", case.where(*LENGTH_OPTIONS), message, remedy)
    for index, patch in enumerate(recipe.patches):
        if isinstance(patch, YarnPatch) and tokens > patch.factor * patch.tokens:
            reach = f"{patch.factor:g} x {patch.tokens} tokens are {patch.factor * patch.tokens:.0f}"
            message = f"{reach}, but the context is {option(recipe, *LENGTH_OPTIONS)}"
            yield Complaint("recipe-yarn-factor", ("patches", index, "factor"), message, "use a higher factor")


def _number(case: Case, name: str) -> int | None:
    """Return a number of tokens or sequences that the recipe gives; None if there is none, or it is no number."""
    return tokens_of(option(case.recipe, name))


RULES: tuple[Rule, ...] = (_heads, _memory, _batch, _context)
