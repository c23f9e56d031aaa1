"""Check that GPUs compute, keep what is written to them, and copy it to each other unchanged.

Runs in a throwaway container of the image that is to serve, or with the Python of its virtual environment:
`check_cards.py CHECK`. nvidia-smi shows none of these faults. On some boards a copy between two cards reports success
and delivers wrong data; a collective operation over a misconfigured PCIe path hangs. Each check is a process of its own
that the caller ends when its time is up. This file is mounted into images on its own: it imports only the standard
library and PyTorch.

Prints one JSON object: `cards`, how many it saw; `wrong`, a sentence for each fault; `figures`, in GB/s, by
what was measured; `summary`. Exit status: 0 unless it could not check.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

BLOCK = 256 * 1024 * 1024
SIDE = 1024
"""Rows and columns of the matrices."""

REPEATS = 5
FREE_SHARE = 0.9
"""Which part of the free memory is written: CUDA itself needs some."""


@dataclass
class Found:
    """What a check found."""

    cards: int = 0
    wrong: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    summary: str = ""


def main(argv: list[str]) -> int:
    """Run the check that the argument names, and print what it found."""
    checks: dict[str, Callable[[int], Found]] = {
        "compute": compute,
        "memory": memory,
        "copies": copies,
        "all-reduce": all_reduce,
    }
    cards = torch.cuda.device_count()
    found = checks[argv[0]](cards)
    found.cards = cards
    print(json.dumps(asdict(found)), flush=True)
    return 0


def compute(cards: int) -> Found:
    """Multiply matrices of small integers, whose product is exact in these types, and compare with the CPU's."""
    # Otherwise float32 is rounded to 10 bits, and partial sums to bfloat16.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    made = torch.Generator().manual_seed(7)
    left, right = (torch.randint(-8, 9, (SIDE, SIDE), generator=made) for _ in range(2))
    product = left.double() @ right.double()
    found = Found()
    for card in range(cards):
        for dtype in (torch.float32, torch.bfloat16):
            a, b = left.to(f"cuda:{card}", dtype), right.to(f"cuda:{card}", dtype)
            for _ in range(REPEATS):
                if not torch.equal((a @ b).cpu(), product.to(dtype)):
                    found.wrong.append(f"GPU {card} multiplies {str(dtype).removeprefix('torch.')} matrices wrongly")
                    break
    found.summary = "all products equal the CPU's"
    return found


def memory(cards: int) -> Found:
    """Fill most of the free memory of each card, each block with other bytes, then read all of it back."""
    found, total = Found(), 0
    for card in range(cards):
        free, _ = torch.cuda.mem_get_info(card)
        count = int(free * FREE_SHARE) // BLOCK or 1
        size = min(BLOCK, int(free * FREE_SHARE))
        bytes_ = random_bytes(size)
        there = bytes_.to(f"cuda:{card}")
        # One of them is `there`.
        blocks = [there ^ (number % 255 + 1) for number in range(count - 1)]
        bad = sum(not torch.equal(block ^ (number % 255 + 1), there) for number, block in enumerate(blocks))
        if bad or not torch.equal(there.cpu(), bytes_):
            found.wrong.append(f"GPU {card} returned other bytes than were written ({bad or 1} of {count} blocks)")
        total += count * size
        del there, blocks
        torch.cuda.empty_cache()
    found.summary = f"{total / 1e9:.1f} GB written and read back"
    return found


def copies(cards: int) -> Found:
    """Copy between each ordered pair of cards, and compare with the bytes of the CPU."""
    found = Found()
    pairs = [(source, target) for source in range(cards) for target in range(cards) if source != target]
    if not pairs:
        found.summary = "one GPU: nothing to copy"
        return found
    # A card holds up to two blocks.
    size = min(BLOCK, *(int(torch.cuda.mem_get_info(card)[0] * FREE_SHARE) // 2 for card in range(cards)))
    bytes_ = random_bytes(size)
    direct = 0
    for source in range(cards):
        there = bytes_.to(f"cuda:{source}")
        for _, target in (pair for pair in pairs if pair[0] == source):
            direct += torch.cuda.can_device_access_peer(source, target)
            if not torch.equal(there.to(f"cuda:{target}").cpu(), bytes_):
                found.wrong.append(f"GPU {target} received other bytes than GPU {source} sent")
            seconds = timed(partial(there.to, f"cuda:{target}"), source, target)
            found.figures[f"copy {source} to {target}"] = round(size / seconds / 1e9, 1)
    rates = found.figures.values()
    found.summary = f"{len(pairs)} copies compared, {min(rates)} to {max(rates)} GB/s, {direct} of them direct"
    return found


def all_reduce(cards: int) -> Found:
    """Add a block over all cards with NCCL, a process for each as engines do it, and compare the sums."""
    found = Found()
    if cards == 1:
        found.summary = "one GPU: nothing to add"
        return found
    with tempfile.TemporaryDirectory() as directory:
        torch.multiprocessing.spawn(_member, (cards, directory), nprocs=cards)
        results = [json.loads((Path(directory) / f"{rank}.json").read_text()) for rank in range(cards)]
    found.wrong = [f"GPU {rank} has a wrong sum" for rank, result in enumerate(results) if not result["right"]]
    rate = min(result["rate"] for result in results)
    found.figures["all-reduce"] = rate
    found.summary = f"{cards} GPUs add with NCCL, {rate} GB/s"
    return found


def _member(rank: int, cards: int, directory: str) -> None:
    """Take part in the sum as one process, and write what came out of it."""
    torch.cuda.set_device(rank)
    dist = torch.distributed
    dist.init_process_group("nccl", init_method=f"file://{directory}/meet", rank=rank, world_size=cards)
    free, _ = torch.cuda.mem_get_info(rank)
    numbers = min(BLOCK, int(free * FREE_SHARE) // 4) // 4
    device = f"cuda:{rank}"
    there = torch.full((numbers,), rank + 1, dtype=torch.int32, device=device)
    dist.all_reduce(there)
    right = torch.equal(there, torch.full((numbers,), cards * (cards + 1) // 2, dtype=torch.int32, device=device))
    seconds = timed(partial(dist.all_reduce, there), rank)
    # NCCL's bus bandwidth (nccl-tests, doc/PERFORMANCE.md).
    rate = round(numbers * 4 * 2 * (cards - 1) / cards / seconds / 1e9, 1)
    (Path(directory) / f"{rank}.json").write_text(json.dumps({"right": right, "rate": rate}))
    dist.destroy_process_group()


def random_bytes(size: int) -> Any:
    """Return random bytes in the CPU's memory."""
    return torch.frombuffer(bytearray(os.urandom(size)), dtype=torch.uint8)


def timed(work: Callable[[], object], *cards: int) -> float:
    """Return the seconds until these cards have done it, the least of several times."""
    taken = []
    for _ in range(REPEATS):
        _wait(cards)
        began = time.perf_counter()
        work()
        _wait(cards)
        taken.append(time.perf_counter() - began)
    return min(taken)


def _wait(cards: Iterable[int]) -> None:
    for card in cards:
        torch.cuda.synchronize(card)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
