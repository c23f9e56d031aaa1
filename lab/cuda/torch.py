"""A stand-in for PyTorch on the lab's simulated cards: the part that `check_cards.py` uses.

A tensor is bytes, or the description of numbers that nobody calculates. It reads which cards there are from
`nvidia-smi`, and what is wrong with them from `fault` of a card in the simulated hardware: `computes-wrongly`,
`forgets`, `garbles-copies` (what other cards send to it), `hangs` (in collective operations).
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(os.environ.get("LAB_ROOT", "/"))
HARDWARE = [ROOT / "run/lab-gpu/lab.json", ROOT / "usr/lib/lab-hardware/lab.json"]
FREE = 4 * 1024 * 1024

uint8, int32, float32, bfloat16 = "torch.uint8", "torch.int32", "torch.float32", "torch.bfloat16"


def _faults() -> list[str]:
    """Return the fault of each visible card, empty for a good one."""
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    hardware = json.loads(next(path for path in HARDWARE if path.exists()).read_text())
    return [gpu.get("fault", "") for gpu in hardware["gpus"] if gpu["uuid"] in listing]


FAULTS = _faults() if any(path.exists() for path in HARDWARE) else []


def _fault(device: str) -> str:
    return FAULTS[int(device.removeprefix("cuda:"))] if device != "cpu" else ""


class Tensor:
    """Bytes on a device, or a description of their content."""

    def __init__(self, content: Any, device: str = "cpu") -> None:
        self.content, self.device = content, device

    def to(self, *where: str) -> Tensor:
        device = next((word for word in where if word.startswith("cuda:")), self.device)
        content = self.content
        if isinstance(content, bytes) and device != self.device == "cpu" and _fault(device) == "forgets":
            content = bytes(len(content))
        if self.device != "cpu" and device != self.device and _fault(device) == "garbles-copies":
            content = content[:-1] + bytes([content[-1] ^ 1])
        return Tensor(content, device)

    def cpu(self) -> Tensor:
        return Tensor(self.content)

    def double(self) -> Tensor:
        return self

    def __matmul__(self, other: Tensor) -> Tensor:
        made = ("product", self.content, other.content)
        return Tensor((*made, "wrong") if _fault(self.device) == "computes-wrongly" else made, self.device)

    def __xor__(self, number: int) -> Tensor:
        size = len(self.content)
        flipped = int.from_bytes(self.content, "big") ^ int.from_bytes(bytes([number]) * size, "big")
        return Tensor(flipped.to_bytes(size, "big"), self.device)


def equal(one: Tensor, other: Tensor) -> bool:
    """Return whether both have the same content."""
    return bool(one.content == other.content)


def frombuffer(buffer: bytearray, dtype: str) -> Tensor:
    return Tensor(bytes(buffer))


def full(shape: tuple[int, ...], value: int, dtype: str, device: str) -> Tensor:
    return Tensor(("full", shape, value), device)


class Generator:
    def manual_seed(self, seed: int) -> Generator:
        return self


def randint(low: int, high: int, shape: tuple[int, ...], generator: Generator) -> Tensor:
    return Tensor(("random", shape))


_meeting: Any = None
_of = threading.local()


def _all_reduce(tensor: Tensor) -> None:
    if "hangs" in FAULTS:
        threading.Event().wait()
    values = _meeting.values
    values[_of.rank] = tensor.content[2]
    _meeting.barrier.wait()
    total = sum(values)
    _meeting.barrier.wait()
    tensor.content = ("full", tensor.content[1], total)


def _init(backend: str, init_method: str, rank: int, world_size: int) -> None:
    _of.rank = rank


def _spawn(work: Callable[..., None], arguments: tuple[Any, ...], nprocs: int) -> None:
    """Run the work of each process in a thread."""
    global _meeting
    _meeting = SimpleNamespace(values=[0] * nprocs, barrier=threading.Barrier(nprocs))
    threads = [threading.Thread(target=work, args=(rank, *arguments), daemon=True) for rank in range(nprocs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _free(card: int) -> tuple[int, int]:
    return FREE, FREE


cuda = SimpleNamespace(
    device_count=lambda: len(FAULTS),
    mem_get_info=_free,
    empty_cache=lambda: None,
    synchronize=lambda card: None,
    set_device=lambda card: None,
    can_device_access_peer=lambda source, target: True,
)
backends = SimpleNamespace(cuda=SimpleNamespace(matmul=SimpleNamespace()))
multiprocessing = SimpleNamespace(spawn=_spawn)
distributed = SimpleNamespace(init_process_group=_init, all_reduce=_all_reduce, destroy_process_group=lambda: None)
