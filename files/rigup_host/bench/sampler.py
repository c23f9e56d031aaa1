"""What the cards draw and the engine holds while it is measured, once a second."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Sequence

from rigup_host import http, load
from rigup_host.bench.output import emit

INTERVAL_S = 1.0
SMI = ("nvidia-smi", "--query-gpu=index,uuid,power.draw", "--format=csv,noheader,nounits")
SMI_S = 5.0
DRAFTED = ("vllm:spec_decode_num_draft_tokens_total",)
ACCEPTED = ("vllm:spec_decode_num_accepted_tokens_total",)


class Sampler(threading.Thread):
    """Prints a sample each second. It also notices that nobody reads any more while an engine hangs."""

    def __init__(self, url: str, gpus: str, since_start: Callable[[], float]) -> None:
        """`gpus` are indexes or UUIDs with commas between them, or `all`."""
        super().__init__(daemon=True)
        self._url, self._since_start, self._over = url, since_start, threading.Event()
        self._gpus = None if gpus == "all" else gpus.split(",")
        self._has_smi = True

    def run(self) -> None:
        due = time.monotonic()
        while True:
            self.take()
            due = max(due + INTERVAL_S, time.monotonic())
            if self._over.wait(due - time.monotonic()):
                return

    def end(self) -> None:
        """Stop, and wait until it has."""
        self._over.set()
        self.join()

    def take(self) -> None:
        """Print one sample."""
        try:
            shares = [share for name in load.KV_CACHE for share in load.samples(self._url).get(name, ())]
        except http.NoAnswer:
            shares = []
        emit("sample", at=self._since_start(), watts=self._watts(), kv_cache=max(shares, default=None))

    def _watts(self) -> float | None:
        """Return what all cards draw together; None if one of them does not say."""
        if not self._has_smi:
            return None
        try:
            answer = subprocess.run(SMI, capture_output=True, text=True, timeout=SMI_S)
            return drawn(answer.stdout, self._gpus) if answer.returncode == 0 else None
        except FileNotFoundError:
            self._has_smi = False
        except (OSError, ValueError, subprocess.TimeoutExpired):
            pass
        return None


def drawn(listing: str, gpus: Sequence[str] | None) -> float:
    """Return what these cards draw together, in watts. Raise ValueError if one of them is missing or does not say."""
    rows = [[cell.strip() for cell in line.split(",")] for line in listing.splitlines()]
    chosen = [watts for index, uuid, watts in rows if gpus is None or index in gpus or uuid in gpus]
    if not chosen or (gpus is not None and len(chosen) != len(gpus)):
        raise ValueError(f"{len(chosen)} cards")
    return sum(float(watts) for watts in chosen)


def drafts(url: str) -> tuple[float, float] | None:
    """Return the drafted and the accepted tokens so far; None if the engine does not count them."""
    try:
        found = load.samples(url)
    except http.NoAnswer:
        return None
    drafted, accepted = load.total(found, DRAFTED), load.total(found, ACCEPTED)
    return None if drafted is None or accepted is None else (drafted, accepted)
