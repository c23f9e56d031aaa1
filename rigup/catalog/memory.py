"""Estimate whether a recipe fits its GPUs (weights, KV cache, context, sequences) before loading it for ten minutes.

The formula was fitted to boot logs of vLLM with Qwen3.5-397B-A17B on RTX PRO 6000 cards. Its error is up to ERROR GiB
in either direction; the engine's own boot line decides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rigup.catalog.checkpoint import Checkpoint
from rigup.catalog.engine_args import option
from rigup.catalog.recipe import Recipe

GIB = 1 << 30
NUMBER = r"\d*\.?\d+"
ERROR = 7.0

# The only model whose cache the formula describes.
MODEL = "Qwen3.5-397B-A17B"
CONTEXT = 262144
LENGTH_OPTIONS = ("--max-model-len", "--context-length")

# 15 attention layers x (K, V) x 256 per KV head at one byte; the drafter's layer adds 1/15; there are two KV heads.
BYTES_PER_TOKEN_AND_HEAD = 7680
HEADS = 2
DRAFTER = 16 / 15
# The recurrent (Gated DeltaNet) state of one sequence.
STATE_GIB = 0.16

# The middle of what logs showed: CUDA graphs, activations and the vision profile run took 4 to 10 GiB.
OVERHEAD, OVERHEAD_B12X, OVERHEAD_SPECULATION = 7.0, 7.5, 3.5


@dataclass(frozen=True)
class Fit:
    """The memory of one GPU, in GiB. `sequences` of `context` tokens fit into what is left for the cache."""

    weights: float
    overhead: float
    sequence: float
    budget: float
    context: int

    @property
    def left(self) -> float:
        """What is left for the cache, in GiB."""
        return self.budget - self.weights - self.overhead

    @property
    def sequences(self) -> int:
        """How many sequences of full context fit."""
        return max(0, int(self.left / self.sequence))

    @property
    def impossible(self) -> bool:
        """Whether not even one sequence fits, with the error of the estimate in the recipe's favor."""
        return self.left + ERROR < self.sequence

    def __str__(self) -> str:
        return (
            f"weights {self.weights:.1f} + engine {self.overhead:.1f} of {self.budget:.1f} GiB on each GPU, "
            f"about {self.sequences} sequences of {self.context} tokens at {self.sequence:.2f} GiB (±{ERROR:.0f} GiB)"
        )


def asked_context(recipe: Recipe) -> int | None:
    """Return the context in tokens that a recipe sets; None if it leaves that to the checkpoint.

    Reads `262144`, `256K` (binary) and `1m` (decimal), as vLLM does.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmKM])?", option(recipe, *LENGTH_OPTIONS) or "")
    powers = {None: 1, "k": 10**3, "m": 10**6, "K": 1 << 10, "M": 1 << 20}
    return int(float(match[1]) * powers[match[2]]) if match else None


def fit(recipe: Recipe, checkpoint: Checkpoint, vram_mib: int | None = None) -> Fit | None:
    """Return the estimate for cards of `vram_mib`, by default the recipe's; None if size or model is not known."""
    if checkpoint.bytes is None or checkpoint.model != MODEL:
        return None
    parallel = recipe.parallel
    share = option(recipe, "--gpu-memory-utilization", "--mem-fraction-static")
    cache = option(recipe, "--kv-cache-dtype") or "auto"
    context = asked_context(recipe) or CONTEXT
    width = 1 if (checkpoint.kv_cache if cache == "auto" else cache).startswith("fp8") else 2
    # Beyond two GPUs each keeps a copy of one head, unless decode-context parallelism splits it.
    heads = HEADS / min(parallel.tp, HEADS) / parallel.dcp / parallel.pp
    tokens = context * heads * BYTES_PER_TOKEN_AND_HEAD * width * (DRAFTER if recipe.speculation else 1) / GIB
    values = {argument.partition("=")[2].lower() for argument in recipe.argv}
    overhead = OVERHEAD + (OVERHEAD_B12X if "b12x" in values else 0)
    return Fit(
        weights=checkpoint.bytes / GIB / (parallel.tp * parallel.pp),
        overhead=overhead + (OVERHEAD_SPECULATION if recipe.speculation else 0),
        sequence=tokens + STATE_GIB,
        # The default of both engines is about nine tenths.
        budget=float(share if share and re.fullmatch(NUMBER, share) else 0.9) * (vram_mib or recipe.vram_mib) / 1024,
        context=context,
    )
