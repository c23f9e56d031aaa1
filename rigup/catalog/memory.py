"""Estimate whether a recipe fits its GPUs (weights, KV cache, context, sequences) before loading it for ten minutes.

What a model's cache takes is in `recipes/models/`; without it only the weights are compared with the memory. The
overheads were fitted to boot logs of vLLM with Qwen3.5-397B-A17B on RTX PRO 6000 cards. The error of the estimate is up
to ERROR GiB in either direction; the engine's own boot line decides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rigup.catalog.checkpoint import Checkpoint
from rigup.catalog.engine_args import option
from rigup.catalog.model import Model
from rigup.catalog.recipe import Recipe

GIB = 1 << 30
NUMBER = r"\d*\.?\d+"
ERROR = 7.0

LENGTH_OPTIONS = ("--max-model-len", "--context-length")
SHARE_OPTIONS = ("--gpu-memory-utilization", "--mem-fraction-static")

# GiB of weights for each GPU that stay in the host's memory.
OFFLOAD = "--cpu-offload-gb"

# The default of both engines is about nine tenths.
USUAL_SHARE = 0.9

# The middle of what logs showed: CUDA graphs, activations and the vision profile run took 4 to 10 GiB.
OVERHEAD, OVERHEAD_B12X, OVERHEAD_SPECULATION = 7.0, 7.5, 3.5


@dataclass(frozen=True)
class Fit:
    """The memory of one GPU, in GiB. `sequences` of `context` tokens fit into what is left for the cache.

    `sequence` and `context` are None if the cache of the model is not known.
    """

    weights: float
    overhead: float
    budget: float
    sequence: float | None = None
    context: int | None = None

    @property
    def left(self) -> float:
        """What is left for the cache, in GiB."""
        return self.budget - self.weights - self.overhead

    @property
    def sequences(self) -> int:
        """How many sequences of full context fit; 0 if their size is not known."""
        return max(0, int(self.left / self.sequence)) if self.sequence else 0

    @property
    def impossible(self) -> bool:
        """Whether the weights do not fit, or not one sequence does with the estimate's error in the recipe's favor."""
        return self.weights > self.budget or (self.sequence is not None and self.left + ERROR < self.sequence)

    def __str__(self) -> str:
        if self.sequence is None:
            return (
                f"weights {self.weights:.1f} of {self.budget:.1f} GiB on each GPU; the size of the cache is not known"
            )
        return (
            f"weights {self.weights:.1f} + engine {self.overhead:.1f} of {self.budget:.1f} GiB on each GPU, "
            f"about {self.sequences} sequences of {self.context} tokens at {self.sequence:.2f} GiB (±{ERROR:.0f} GiB)"
        )


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


def fit(recipe: Recipe, checkpoint: Checkpoint, model: Model | None, vram_mib: int | None = None) -> Fit | None:
    """Return the estimate for cards of `vram_mib`, by default the recipe's; None if the size is not known."""
    if checkpoint.bytes is None:
        return None
    parallel = recipe.parallel
    weights = checkpoint.bytes / GIB / (parallel.tp * parallel.pp) - _number(option(recipe, OFFLOAD), 0)
    budget = asked_share(recipe) * (vram_mib or recipe.vram_mib) / 1024
    values = {argument.partition("=")[2].lower() for argument in recipe.argv}
    overhead = OVERHEAD + (OVERHEAD_B12X if "b12x" in values else 0)
    overhead += OVERHEAD_SPECULATION if recipe.speculation else 0
    if model is None or model.memory is None or model.kv_heads is None:
        return Fit(weights, overhead, budget)
    cache = option(recipe, "--kv-cache-dtype") or "auto"
    width = 1 if (checkpoint.kv_cache if cache == "auto" else cache).startswith("fp8") else 2
    # Beyond as many GPUs as heads each keeps a copy of one, unless decode-context parallelism splits it.
    heads = model.kv_heads / min(parallel.tp, model.kv_heads) / parallel.dcp / parallel.pp
    context = asked_context(recipe) or model.context or 0
    tokens = context * heads * model.memory.bytes_per_token_and_head * width / GIB
    tokens *= model.memory.drafter if recipe.speculation else 1
    return Fit(weights, overhead, budget, tokens + model.memory.state_gib, context)
