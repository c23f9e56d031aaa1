"""Peers, from which a checkpoint's files are copied by rsync, and the state that they share about it.

No peer is trusted: whatever arrives is verified against the published checksums, and a peer that sent something else
is not asked for that file again.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rigup_host import files
from rigup_host.fetch.store import File, Store

# rsync would take other characters for a pattern.
PLAIN = re.compile(r"[A-Za-z0-9._/+@=,-]+")
# A peer that takes longer than PATIENCE_S and reports nothing is asked again only after DEAF_S.
PATIENCE_S, DEAF_S, REST_S = 2.0, 30.0, 5.0
RSYNC = ("rsync", "--quiet", "--contimeout=3")


@dataclass
class Peer:
    """Another host of the inventory, and what it last reported about this checkpoint."""

    name: str
    address: str
    port: int
    report: dict[str, Any] = field(default_factory=dict)
    heard_at: float = 0.0
    deaf_until: float = 0.0
    silence_s: float = 20.0
    is_doubted: bool = False

    def url(self, place: Path) -> str:
        """Return where the peer serves what is at `place` in this host's store: by owner, name and commit."""
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"rsync://{address}:{self.port}/models/{'/'.join(place.parts[-3:])}"

    def hear(self, report: dict[str, Any]) -> None:
        """Take note of a report; an empty one means that the peer did not answer."""
        if report and report.get("beat") != self.report.get("beat"):
            self.heard_at = time.monotonic()
        self.report = report
        self.is_doubted = False

    def rest(self) -> None:
        """Do not use the peer for a moment, and ask it for a report before it is used again: it may be dead."""
        self.is_doubted = True
        self.deaf_until = time.monotonic() + REST_S

    @property
    def is_resting(self) -> bool:
        """Whether the peer must not be asked yet."""
        return time.monotonic() < self.deaf_until

    @property
    def is_fetching(self) -> bool:
        """Whether it fetches this checkpoint; a peer whose report has not changed for long counts as dead."""
        return bool(self.report.get("active")) and time.monotonic() - self.heard_at < self.silence_s

    def holds(self, path: str) -> bool:
        """Return whether it has a verified copy of that file."""
        return path in self.report.get("held", ())

    def fetches(self, path: str) -> bool:
        """Return whether it is fetching that file from a hub."""
        return self.is_fetching and path in self.report.get("fetching", ())

    def wants(self, path: str) -> bool:
        """Return whether it will fetch that file from a hub unless another peer does."""
        return self.is_fetching and path in self.report.get("wants", ())


class Peers:
    """All peers of this host. Each host reports its state in a file that it serves to the others."""

    def __init__(self, own: str, peers: Iterable[Peer], store: Store, home: Path) -> None:
        self.own = own
        self.all = list(peers)
        self._store = store
        self._beat = time.time_ns()
        self._pool = ThreadPoolExecutor(max(1, len(self.all)))
        self._heard = home / "heard"
        self._heard.mkdir(parents=True, exist_ok=True)

    def tell(self, held: Iterable[str], wants: Iterable[str], fetching: Iterable[str], active: bool) -> None:
        """Report to the peers which files are here, and which are fetched from a hub."""
        self._beat += 1
        report = {
            "beat": self._beat,
            "active": active,
            "held": sorted(held),
            "wants": sorted(wants),
            "fetching": sorted(fetching),
        }
        files.write(self._store.shared_path, json.dumps(report) + "\n")

    def listen(self) -> None:
        """Read the reports of all peers, in parallel."""
        began = time.monotonic()
        asked = [peer for peer in self.all if not peer.is_resting]
        for peer, report in zip(asked, self._pool.map(self._ask, asked), strict=True):
            peer.hear(report)
            if time.monotonic() - began > PATIENCE_S and not report:
                peer.deaf_until = time.monotonic() + DEAF_S

    def _ask(self, peer: Peer) -> dict[str, Any]:
        # Always the same name: what a killed run leaves is overwritten by the next one.
        shared = self._store.shared_path
        to = self._heard / f"{peer.name}--{shared.name}"
        argv = [*RSYNC, "--timeout=5", "--inplace", peer.url(shared), str(to)]
        if subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
            return {}
        try:
            report = json.loads(to.read_text())
            to.unlink()
        except (OSError, ValueError):
            return {}
        return report if isinstance(report, dict) else {}

    def holders(self, path: str) -> list[Peer]:
        """Return the peers that have a verified copy of a file."""
        return [peer for peer in self.all if peer.holds(path)] if PLAIN.fullmatch(path) else []

    def is_taken(self, path: str) -> bool:
        """Return whether a peer has priority for this file: it fetches it, or wants it and is first by name."""
        return any(peer.fetches(path) or (peer.wants(path) and peer.name < self.own) for peer in self.all)

    def is_undecided(self, path: str) -> bool:
        """Return whether a peer wants this file that must leave it to this host, and may not know that yet."""
        return any(peer.wants(path) and peer.name > self.own for peer in self.all)

    def transfer(self, peer: Peer, file: File, to: Path) -> subprocess.Popen[bytes]:
        """Start to copy a file from a peer; bytes that have arrived earlier are kept."""
        # The peer may rename its directory at this moment: the file is at one of the two places.
        places = [self._store.staging, self._store.dest]
        sources = [f"{peer.url(place)}/{file.path}" for place in places]
        argv = [*RSYNC, "--timeout=30", "--append", "--inplace", "--no-motd", *sources, f"{to.parent}/"]
        return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
