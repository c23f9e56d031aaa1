"""Choose how a checkpoint is spread over GPUs, its context and its sequences, from what it takes of their memory. Pure.

The estimate is taken at its worse end: what is chosen here must start.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rigup.catalog.draft_source import Published
from rigup.errors import RigupError
from rigup.fit.memory import Cache, Fit, Overhead, Split, fit
from rigup.fit.shape import ModelShape

# RTX PRO 6000 Blackwell, as the catalog's recipes state it, in MiB.
VRAM_MIB = 97000
SHARE = 0.90
HOST_GPUS = (1, 2, 4, 8)
# Less than this serves no agent and no long document.
LEAST_CONTEXT = 32768
SEQUENCES = 128
# Sizes that tensor parallelism divides, besides the heads.
DIVIDED = (
    "linear_num_key_heads",
    "linear_num_value_heads",
    "mamba_num_heads",
    "moe_intermediate_size",
    "intermediate_size",
    "shared_expert_intermediate_size",
)
IN_BLOCKS = ("moe_intermediate_size", "intermediate_size", "shared_expert_intermediate_size")


@dataclass(frozen=True)
class Spread:
    """GPUs, how the model is spread over them, its context and cache, and the estimate; `why` by what was chosen."""

    gpus: int
    split: Split
    context: int
    cache: Cache
    sequences: int
    estimate: Fit
    why: dict[str, str]


def obstacle(published: Published, tp: int) -> str | None:
    """Return why tensor parallelism of `tp` is impossible; None if it is possible."""
    heads, kv_heads = published.number("num_attention_heads"), published.number("num_key_value_heads")
    if heads and heads % tp:
        return f"{tp} does not divide {heads} attention heads"
    if kv_heads and not published.text.get("kv_lora_rank") and max(kv_heads, tp) % min(kv_heads, tp):
        return f"neither of {tp} and {kv_heads} KV heads divides the other"
    block = published.quantized.block
    for name in DIVIDED:
        if not (size := published.number(name)):
            continue
        if size % tp:
            return f"{tp} does not divide {name} {size}"
        if name in IN_BLOCKS and tp > 1 and size % block == 0 and (size // tp) % block:
            return f"a part of {name} {size} would be {size // tp}, which blocks of {block} do not divide"
    return None


def splits(published: Published, gpus: int) -> Iterator[tuple[Split, str]]:
    """Yield the ways to use all GPUs, the largest tensor parallel size first, each with the reason."""
    layers = published.number("num_hidden_layers") or gpus
    reason = ""
    for tp in range(gpus, 0, -1):
        if gpus % tp:
            continue
        if found := obstacle(published, tp):
            reason = reason or f"{found}, so the other GPUs are stages of a pipeline"
            continue
        pp = gpus // tp
        if pp <= layers:
            yield Split(tp, pp), reason or _divides(published, tp)


def _divides(published: Published, tp: int) -> str:
    if tp == 1:
        return "one GPU"
    heads, kv_heads = published.number("num_attention_heads"), published.number("num_key_value_heads")
    latent = ", the latent cache is on every GPU" if published.text.get("kv_lora_rank") else ""
    groups = f" and {kv_heads} KV heads" if kv_heads and not latent else ""
    return f"{tp} and the {heads} attention heads{groups} divide each other{latent}"


def spread(
    published: Published,
    gpus: int | None,
    *,
    drafts: int = 0,
    drafter: ModelShape | None = None,
    overhead: Overhead | None = None,
    sequences: int = SEQUENCES,
) -> Spread:
    """Return how to serve a checkpoint on so many GPUs, by default on as few as hold it with its full context.

    Raises RigupError if they do not hold it.
    """
    if not published.weights:
        raise RigupError(f"{published.repo} has no weights in safetensors", "use an upload that has them")
    tried = [gpus] if gpus else HOST_GPUS
    found: list[Spread] = []
    for count in tried:
        for split, why in splits(published, count):
            if one := _spread(published, count, split, drafts, drafter, overhead, sequences):
                found.append(_explained(one, why, published))
                break
    whole = [one for one in found if one.context == (published.shape.context or one.context)]
    if chosen := next(iter(whole or found), None):
        return chosen
    raise RigupError(*_too_large(published, tried[-1], drafts, drafter, overhead))


def _spread(
    published: Published,
    gpus: int,
    split: Split,
    drafts: int,
    drafter: ModelShape | None,
    overhead: Overhead | None,
    sequences: int,
) -> Spread | None:
    shape = published.shape
    native = shape.context or LEAST_CONTEXT
    contexts = [native >> step for step in range(8) if native >> step >= min(native, LEAST_CONTEXT)]
    own = "fp8" if published.has_scales else "bf16"
    # Scales or not, a latent cache is left to the engine: not all of its backends read FP8.
    types = [own] if own == "fp8" or shape.latent else [own, "fp8"]
    for context in contexts:
        for dtype in types:
            cache = Cache(dtype, drafts)
            estimate = fit(
                shape, split, VRAM_MIB / 1024, cache, SHARE, context=context, overhead=overhead, drafter=drafter
            )
            worst = estimate.left - estimate.error
            if worst < (estimate.sequence or 0):
                continue
            if estimate.blocks and estimate.blocks.states:
                sequences = max(1, min(sequences, int(worst * (1 << 30) / estimate.blocks.size)))
            return Spread(gpus, split, context, cache, sequences, estimate, {})
    return None


def _explained(one: Spread, why: str, published: Published) -> Spread:
    native, estimate = published.shape.context, one.estimate
    whole = one.context == native
    unknown = f"; the size of the cache is not known: {estimate.unknown}" if estimate.unknown else ""
    reasons = {
        "gpus": f"{estimate.weights:.1f} GiB of weights on each of {one.gpus}, and {estimate.budget:.1f} may be used",
        "parallel": why,
        "context": f"{'as trained' if whole else f'of {native}, more does not certainly fit'}{unknown}",
        "sequences": "as most recipes of the catalog",
        "dtype": "the checkpoint brings scales" if published.has_scales else "",
    }
    if estimate.blocks and estimate.blocks.states and one.sequences < SEQUENCES:
        reasons["sequences"] = (
            "not more than the blocks of recurrent state that certainly fit (vLLM pull request 38270)"
        )
    return Spread(one.gpus, one.split, one.context, one.cache, one.sequences, estimate, reasons)


def _too_large(
    published: Published, gpus: int, drafts: int, drafter: ModelShape | None, overhead: Overhead | None
) -> tuple[str, str]:
    weights = (published.weights or 0) / (1 << 30)
    ways = list(splits(published, gpus))
    if not ways:
        reason = next(found for tp in (gpus, 1) if (found := obstacle(published, tp)))
        return f"{published.repo} cannot be spread over {gpus} GPUs: {reason}", "use another --gpus"
    estimate = fit(
        published.shape,
        ways[0][0],
        VRAM_MIB / 1024,
        Cache("fp8", drafts),
        SHARE,
        context=LEAST_CONTEXT,
        overhead=overhead,
        drafter=drafter,
    )
    message = (
        f"{published.repo} is too large for {gpus} GPU{'s' if gpus > 1 else ''} of {VRAM_MIB} MiB: "
        f"{weights:.0f} GiB of weights; {estimate}"
    )
    enough = [
        count
        for count in HOST_GPUS
        if count > gpus
        and any(_spread(published, count, split, drafts, drafter, overhead, 1) for split, _ in splits(published, count))
    ]
    more = f"use --gpus {enough[0]}, or " if enough else ""
    return message, f"{more}use an upload with fewer bits, such as NVFP4 (an endpoint is served by one host)"
