"""Compare what `rigup/fit` computes with what engines printed when they started (`tests/data/boots.yaml`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from rigup.catalog.loader import default_catalog
from rigup.fit.memory import GIB, TOLERANCE, WEIGHTS_ERROR, Cache, Overhead, Split, blocks_of, fit, weights_of
from rigup.fit.shape import describe

BOOTS = Path(__file__).parent.parent / "tests/data/boots.yaml"


class Row(NamedTuple):
    """A number that an engine printed beside the computed one, and how far they may be apart."""

    boot: str
    what: str
    computed: float
    printed: float
    allowed: float

    @property
    def off(self) -> float:
        """How far the computed number is from the printed one."""
        return self.computed - self.printed

    @property
    def holds(self) -> bool:
        """Whether that is within what is allowed."""
        return abs(self.off) <= self.allowed


def rows() -> list[Row]:
    """Return all numbers of all boots."""
    return [row for boot in yaml.safe_load(BOOTS.read_text(encoding="utf-8")) for row in _rows(boot)]


def _rows(boot: dict[str, Any]) -> Iterator[Row]:
    name, printed, context, gpu = boot["name"], boot["printed"], boot["context"], boot.get("gpu")
    model = default_catalog().models[boot["model"]] if "model" in boot else None
    config = boot["config"] if model is None else model.config or {}
    shape = describe(config, {"metadata": {"total_size": gpu["bytes"]}} if gpu else None)
    split, cache, memory = Split(**boot["split"]), Cache(**boot["cache"]), boot.get("gib", 0) * GIB
    blocks = blocks_of(shape, split, cache)
    if blocks is None:
        raise AssertionError(f"{name}: {shape.unknown}")
    concurrency = blocks.concurrency(memory, context)
    tokens = blocks.tokens_in(memory) if printed.get("before_0_20") else int(concurrency * context)
    computed = {
        "block": blocks.tokens,
        "blocks": memory // blocks.size,
        "tokens": tokens,
        "concurrency": concurrency,
        "need": blocks.of(context) * blocks.size / GIB,
    }
    for what, value in computed.items():
        if what in printed:
            yield Row(name, what, value, printed[what], TOLERANCE * printed[what])
    if "weights" in printed:
        weights = weights_of(shape, split) / GIB
        yield Row(name, "weights", weights, printed["weights"], WEIGHTS_ERROR * printed["weights"])
    if gpu:
        usual = Overhead.usual(gpu["gib"], speculation=gpu.get("speculation", False))
        measured = Overhead(model.overhead.gib, model.overhead.error) if model and model.overhead else usual
        estimate = fit(shape, split, gpu["gib"], cache, gpu["share"], overhead=measured)
        found = boot["gib"] if "gib" in boot else boot["holds"] / blocks.tokens * blocks.size / GIB
        yield Row(name, "left, GiB", estimate.left, found, estimate.error)


def main() -> None:
    """Print the table."""
    print("| boot log | number | computed | printed | off | allowed |\n|---|---|---|---|---|---|")
    for row in rows():
        numbers = (f"{value:,.2f}".removesuffix(".00") for value in (row.computed, row.printed))
        share = f"{row.off:+.2f} GiB" if row.what.startswith("left") else f"{row.off / row.printed:+.2%}"
        allowed = f"{row.allowed:.1f} GiB" if row.what.startswith("left") else f"{row.allowed / row.printed:.0%}"
        print(f"| {row.boot} | {row.what} | {' | '.join(numbers)} | {share} | {allowed} |")


if __name__ == "__main__":
    main()
