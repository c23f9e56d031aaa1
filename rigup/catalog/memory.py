"""Estimate whether a recipe fits its GPUs (weights, KV cache, context, sequences) before loading it for ten minutes.

`rigup/fit` computes it from the model's config.json: the checkpoint's own, which the lock keeps, or else what
`recipes/models/` quotes of it. Without either, only the weights are compared with the memory.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from rigup.catalog.checkpoint import Checkpoint, Files
from rigup.catalog.engine_args import option
from rigup.catalog.model import Model
from rigup.catalog.recipe import Recipe
from rigup.fit import memory
from rigup.fit.memory import Cache, Fit, Overhead, Split
from rigup.fit.shape import ModelShape, describe

NUMBER = r"\d*\.?\d+"

LENGTH_OPTIONS = ("--max-model-len", "--context-length")
SHARE_OPTIONS = ("--gpu-memory-utilization", "--mem-fraction-static")
EXPERT_OPTIONS = ("--enable-expert-parallel", "-ep", "--ep-size", "--expert-parallel-size")
BATCH = "--max-num-batched-tokens"

# GiB of weights for each GPU that stay in the host's memory.
OFFLOAD = "--cpu-offload-gb"

# The default of both engines is about nine tenths.
USUAL_SHARE = 0.9


def asked_context(recipe: Recipe) -> int | None:
    """Return the context in tokens that a recipe sets; None if it leaves that to the checkpoint."""
    return tokens_of(option(recipe, *LENGTH_OPTIONS))


def tokens_of(text: str | None) -> int | None:
    """Return a number of tokens: reads `262144`, `256K` (binary) and `1m` (decimal), as vLLM does; else None."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmKM])?", text or "")
    powers = {None: 1, "k": 10**3, "m": 10**6, "K": 1 << 10, "M": 1 << 20}
    return int(float(match[1]) * powers[match[2]]) if match else None


def asked_share(recipe: Recipe) -> float:
    """Return the part of the memory that the engine may use; the usual one if the recipe does not say a number."""
    return _number(option(recipe, *SHARE_OPTIONS), USUAL_SHARE)


def _number(text: str | None, otherwise: float) -> float:
    return float(text) if text and re.fullmatch(NUMBER, text) else otherwise


def shape_of(checkpoint: Checkpoint, model: Model | None, files: Files | None = None) -> ModelShape:
    """Return what is known of a checkpoint's shape: from its own files, else what the catalog says of the model."""
    weights = (files.weights if files else None) or checkpoint.bytes
    config = (files.config if files else None) or (model.config if model else None)
    if not config:
        return ModelShape(weights=weights, unknown="its config.json is not here")
    return describe(config, {"metadata": {"total_size": weights}})


class Known(NamedTuple):
    """A checkpoint, what the catalog knows of its model, and what the lock knows of its files."""

    checkpoint: Checkpoint
    model: Model | None = None
    files: Files | None = None

    @property
    def shape(self) -> ModelShape:
        """Its shape: from its own files, else what the catalog says of the model."""
        return shape_of(*self)


def fit(
    recipe: Recipe,
    checkpoint: Checkpoint,
    model: Model | None,
    vram_mib: int | None = None,
    files: Files | None = None,
    drafter: Known | None = None,
) -> Fit | None:
    """Return the estimate for cards of `vram_mib`, by default the recipe's; None if the size is not known.

    `drafter` is the checkpoint of a drafter that has one of its own.
    """
    shape = shape_of(checkpoint, model, files)
    if shape.weights is None:
        return None
    parallel, speculation = recipe.parallel, recipe.speculation
    dtype = option(recipe, "--kv-cache-dtype") or "auto"
    drafts = 0
    if speculation:
        drafts = speculation.n if isinstance(speculation.n, int) else max(n for _, _, n in speculation.n)
    values = {argument.partition("=")[2].lower() for argument in recipe.argv}
    gib = (vram_mib or recipe.vram_mib) / 1024
    overhead = Overhead.usual(gib, b12x="b12x" in values, speculation=bool(drafts))
    if model and model.overhead:
        overhead = Overhead(model.overhead.gib, model.overhead.error)
    return memory.fit(
        shape,
        Split(parallel.tp, parallel.pp, parallel.dp, parallel.dcp, option(recipe, *EXPERT_OPTIONS) is not None),
        gib,
        Cache(
            checkpoint.kv_cache if dtype == "auto" else dtype,
            drafts,
            option(recipe, "--no-enable-prefix-caching") is None,
            tokens_of(option(recipe, BATCH)) or memory.USUAL_BATCH,
        ),
        asked_share(recipe),
        context=asked_context(recipe) or (model.context if model else None),
        overhead=overhead,
        drafter=drafter.shape if drafter else None,
        offloaded=_number(option(recipe, OFFLOAD), 0),
    )
