"""Compute what a model takes of each GPU: weights, the blocks of its cache, and how many sequences fit.

The blocks are those of vLLM 0.33.0 (vllm/v1/core/kv_cache_planning.py and vllm/v1/kv_cache_interface.py): layers of one
kind form groups of equal size, and one block is a page for each layer of a group. With recurrent state a page is as
large as the state of a layer. `tests/data/boots.yaml` has what engines printed; the blocks and tokens differ from it by
at most TOLERANCE.

What an engine needs besides (CUDA graphs, activations, workspaces) is measured, not computed: the middle of what boot
logs showed. That is where the error of the estimate comes from.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from rigup.fit.shape import Heads, ModelShape

GIB = 1 << 30
TOLERANCE = 0.02

# Of the weights on a GPU: what quantization leaves out, and layers that the pipeline cannot divide evenly.
WEIGHTS_ERROR = 0.02

# A latent of 512 values with 4 scales in 4 bytes each, and the rest as it is: what sparse attention reads.
SCALE_EVERY, INDEX_SCALE_EVERY = 128, 128
FLOAT32, BFLOAT16 = 4, 2
ATTENTION_BLOCK, LATENT_BLOCK = 16, 64
# Kinds of layers that differ by less form groups as large as the larger of them.
SIMILAR = 1.5
# GiB from which vLLM 0.33.0 takes larger batches and more sequences (vllm/engine/arg_utils.py).
LARGE = 70
# What it then takes at once, unless told otherwise.
USUAL_BATCH = 8192


@dataclass(frozen=True)
class Overhead:
    """What an engine needs besides weights and cache, in GiB, and how far that can be off in either direction."""

    gib: float
    error: float

    @classmethod
    def usual(cls, memory: float, *, b12x: bool = False, speculation: bool = False) -> Overhead:
        """Return the middle of what boot logs of several models showed on GPUs with `memory` GiB.

        2.5 to 11.5 GiB, and up to 3 on GPUs for which vLLM takes small batches and captures few graphs. The kernels of
        b12x took up to 12 more, speculation up to 7 more, or nothing.
        """
        middle, error = (7.0, 4.5) if memory >= LARGE else (1.5, 1.5)
        return cls(middle + 6.0 * b12x + 3.5 * speculation, error + 6.0 * b12x + 3.5 * speculation)


@dataclass(frozen=True)
class Split:
    """How a model is spread: tensor, pipeline, data and decode-context parallel size, and whether the experts are."""

    tp: int = 1
    pp: int = 1
    dp: int = 1
    dcp: int = 1
    experts: bool = False


@dataclass(frozen=True)
class Cache:
    """How the cache is set up: the engine's name of its type, tokens drafted at a time, and tokens in a batch.

    `prefixes`: vLLM keeps one block of recurrent state more for each sequence, to start other sequences from.
    """

    dtype: str = "bf16"
    drafts: int = 0
    prefixes: bool = True
    batch: int = USUAL_BATCH


@dataclass(frozen=True)
class Blocks:
    """A block of the cache on one GPU: `tokens` and `size` in bytes. A sequence takes blocks of each of the groups.

    `full` groups keep all tokens, `windows` the last `window_tokens`, and `states` take `each` blocks of state.
    """

    tokens: int
    size: int
    full: int
    windows: int = 0
    window_tokens: int = 0
    states: int = 0
    each: int = 0

    def of(self, context: int) -> int:
        """Return how many blocks a sequence of `context` tokens takes."""
        whole = ceil(context / self.tokens)
        window = min(ceil(self.window_tokens / self.tokens) + 1, whole)
        return self.full * whole + self.windows * window + self.states * self.each

    def concurrency(self, memory: float, context: int) -> float:
        """Return how many sequences of `context` tokens fit into `memory` bytes: the engine's `Maximum concurrency`."""
        return (memory // self.size) / self.of(context)

    def tokens_in(self, memory: float) -> int:
        """Return the tokens that fit into `memory` bytes, as releases of vLLM before 0.20 count them."""
        return int(memory // self.size) // (self.full + self.windows + self.states) * self.tokens


@dataclass(frozen=True)
class Fit:
    """The memory of one GPU, in GiB. `blocks` are None if the cache of the model is not known.

    `error` is how far what is left can be from what the engine finds, in either direction.
    """

    weights: float
    overhead: float
    budget: float
    error: float
    blocks: Blocks | None = None
    context: int | None = None
    unknown: str | None = None

    @property
    def left(self) -> float:
        """What is left for the cache, in GiB."""
        return self.budget - self.weights - self.overhead

    @property
    def sequence(self) -> float | None:
        """What a sequence of full context takes, in GiB; None if that is not known."""
        if self.blocks is None or not self.context:
            return None
        return self.blocks.of(self.context) * self.blocks.size / GIB

    @property
    def sequences(self) -> int:
        """How many sequences of full context fit; 0 if their size is not known."""
        return max(0, int(self.left / self.sequence)) if self.sequence else 0

    @property
    def impossible(self) -> bool:
        """Whether the weights do not fit, or not one sequence does with the estimate's error in its favor."""
        return self.weights > self.budget or (self.sequence is not None and self.left + self.error < self.sequence)

    def __str__(self) -> str:
        if self.sequence is None:
            why = f": {self.unknown}" if self.unknown else ""
            return (
                f"weights {self.weights:.1f} of {self.budget:.1f} GiB on each GPU; "
                f"the size of the cache is not known{why}"
            )
        return (
            f"weights {self.weights:.1f} + engine {self.overhead:.1f} of {self.budget:.1f} GiB on each GPU, "
            f"about {self.sequences} sequences of {self.context} tokens at {self.sequence:.2f} GiB "
            f"(±{self.error:.0f} GiB)"
        )


def fit(
    shape: ModelShape,
    split: Split,
    memory: float,
    cache: Cache,
    utilization: float,
    *,
    context: int | None = None,
    overhead: Overhead | None = None,
    drafter: ModelShape | None = None,
    offloaded: float = 0,
) -> Fit:
    """Return what a model takes of GPUs with `memory` GiB each, of which the engine may use the part `utilization`.

    `overhead` is the usual one unless it was measured. `drafter` is the shape of a drafter with a checkpoint of its
    own. `offloaded` are GiB of weights that stay in the host's memory. The shape must know the weights.
    """
    weights = weights_of(shape, split) / GIB - offloaded
    if drafter:
        # The whole drafter is on the last stage of a pipeline, and all of a tensor parallel group has a part of it.
        weights += weights_of(drafter, Split(split.tp)) / GIB
    besides = overhead or Overhead.usual(memory, speculation=bool(cache.drafts))
    unknown = f"of the drafter: {drafter.unknown}" if drafter and drafter.unknown else None
    return Fit(
        weights,
        besides.gib,
        utilization * memory,
        besides.error + WEIGHTS_ERROR * weights,
        blocks_of(shape, split, cache, drafter),
        context or shape.context,
        shape.unknown or unknown,
    )


def weights_of(shape: ModelShape, split: Split) -> float:
    """Return the bytes of weights on the fullest GPU."""
    total, whole = shape.weights or 0, min(shape.whole, shape.weights or 0)
    if not split.experts or split.dp == 1:
        return ((total - whole) / split.tp + whole) / split.pp
    experts = min(shape.experts, total - whole)
    return ((total - whole - experts) / split.tp + whole + experts / (split.tp * split.dp)) / split.pp


def blocks_of(shape: ModelShape, split: Split, cache: Cache, drafter: ModelShape | None = None) -> Blocks | None:
    """Return the blocks of the cache on one GPU; None if they are not known.

    What a `drafter` with a checkpoint of its own keeps is counted as so many more layers of the model.
    """
    if shape.unknown or not (shape.heads or shape.latent) or (drafter and drafter.unknown):
        return None
    full, windows = _full(shape, split, cache, drafter), [each for each in shape.heads if each.window]
    pages = [full, *((ceil(each.layers / split.pp), _head_bytes(each, split, cache)) for each in windows)]
    pages = [(layers, size) for layers, size in pages if layers]
    step = LATENT_BLOCK if shape.latent else ATTENTION_BLOCK
    tokens, page = step, step * max(size for _, size in pages)
    counts = [layers for layers, _ in pages]
    states = 0
    if shape.state:
        states = ceil(shape.state.layers / split.pp)
        counts.append(states)
        tokens = step * ceil(_state_bytes(shape, split, cache) / page)
        page = page // step * tokens
    group = max(counts) if max(counts) < SIMILAR * min(counts) else min(counts)
    window = max((each.window or 0 for each in windows), default=0)
    return Blocks(
        tokens=tokens * split.dcp,
        size=round(group * page),
        full=ceil(full[0] / group),
        windows=sum(ceil(ceil(each.layers / split.pp) / group) for each in windows),
        window_tokens=window - 1 + cache.batch if window else 0,
        states=ceil(states / group),
        each=1 + cache.prefixes + cache.drafts,
    )


def _full(shape: ModelShape, split: Split, cache: Cache, external: ModelShape | None = None) -> tuple[int, float]:
    """Return the layers that keep all tokens, and the bytes of a token in each. With an indexer: all as one layer."""
    drafter = shape.drafter if cache.drafts and not external else 0
    more = sum(each.layers * _head_bytes(each, split, cache) for each in external.heads) if external else 0
    if external and external.latent:
        layers, size = _full(external, Split(split.tp), cache)
        more += layers * size
    if latent := shape.latent:
        layers, indexers = latent.layers + drafter, latent.indexers and latent.indexers + drafter
        size = _latent_bytes(latent.rank, latent.rope, cache.dtype, sparse=bool(indexers))
        if not indexers:
            return ceil(layers / split.pp) + ceil(more / size), size
        index = latent.index + FLOAT32 * latent.index / INDEX_SCALE_EVERY
        return 1, (layers * size + indexers * index) / split.pp + more
    found = next((each for each in shape.heads if not each.window), None)
    if found is None:
        return 0, 0
    size = _head_bytes(found, split, cache)
    return ceil((found.layers + drafter) / split.pp) + ceil(more / size), size


def _head_bytes(each: Heads, split: Split, cache: Cache) -> float:
    # Beyond as many GPUs as heads each keeps a copy of one.
    return ceil(each.heads / split.tp) * each.width * value_bytes(cache.dtype)


def value_bytes(dtype: str) -> float:
    """Return the bytes of a value in a cache, by the engine's name of its type."""
    if dtype.startswith(("nvfp4", "fp4")):
        return 0.5 + 1 / 16
    return 1 if dtype.startswith(("fp8", "int8")) else BFLOAT16


def _latent_bytes(rank: int, rope: int, dtype: str, *, sparse: bool) -> float:
    if dtype == "fp8_ds_mla" or (sparse and dtype.startswith("fp8")):
        return rank + FLOAT32 * rank / SCALE_EVERY + BFLOAT16 * rope
    if dtype == "nvfp4_ds_mla":
        return rank * value_bytes(dtype) + BFLOAT16 * rope
    return (rank + rope) * value_bytes(dtype)


def _state_bytes(shape: ModelShape, split: Split, cache: Cache) -> float:
    state = shape.state
    if state is None:
        return 0
    convolution = state.channels / split.tp * (state.kernel - 1 + cache.drafts) * BFLOAT16
    return convolution + state.heads / split.tp * state.matrix * state.size
