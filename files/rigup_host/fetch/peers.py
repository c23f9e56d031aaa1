"""Peers, from which a checkpoint's files are copied by rsync, and the state that they share about it.

No peer is trusted. Whatever arrives is verified against the published checksums, and a peer that sent something else
is not asked for that file again. The kernel ends a copy at the published size, and a peer that sends more slowly than
any network is not asked for anything again.
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

from rigup_host import files
from rigup_host.fetch.report import say
from rigup_host.fetch.store import File, Store

# rsync would take other characters for a pattern.
PLAIN = re.compile(r"[A-Za-z0-9._/+@=,-]+")
ANSWER_S = 5
# A peer that takes longer than PATIENCE_S and reports nothing is asked again only after DEAF_S. One that answers that
# it has no report yet may take ANSWER_S.
PATIENCE_S, DEAF_S, REST_S = 2.0, 30.0, 5.0
# rsync(1): "Partial transfer due to error". All other statuses are failures of the connection.
NO_SUCH_FILE = 23
RSYNC = ("rsync", "--quiet")
# A peer is faster than this, in bytes per second, even on a busy network.
SLOWEST = 500_000
# For one rsync; a hostile list of files would fill the memory otherwise.
MEMORY_BYTES = 1 << 29


@dataclass(frozen=True)
class Report:
    """What a peer says about this checkpoint: paths that it holds, wants, or fetches from a hub; `beat` grows."""

    beat: int = 0
    active: bool = False
    held: frozenset[str] = frozenset()
    wants: frozenset[str] = frozenset()
    fetching: frozenset[str] = frozenset()

    @classmethod
    def read(cls, text: bytes) -> Report:
        """Parse a report. Raise ValueError if it is not one."""
        found = files.from_json(text)
        if not isinstance(found, dict) or type(found.get("beat")) is not int or type(found.get("active")) is not bool:
            raise ValueError("not a report")
        lists = [found.get(name) for name in ("held", "wants", "fetching")]
        if not all(isinstance(each, list) and all(isinstance(path, str) for path in each) for each in lists):
            raise ValueError("not lists of paths")
        return cls(found["beat"], found["active"], *(frozenset(each) for each in lists if each is not None))


NONE_YET = Report()
"""The answer of a peer that has not reported yet."""


@dataclass
class Peer:
    """Another host of the inventory, and what it last reported about this checkpoint."""

    name: str
    address: str
    port: int
    report: Report = Report()
    # Until when its word that it will fetch a file counts, by path.
    claims: dict[str, float] = field(default_factory=dict)
    heard_at: float = 0.0
    deaf_until: float = 0.0
    silence_s: float = 20.0
    is_doubted: bool = False

    def url(self, module: str, place: Path) -> str:
        """Return where the peer serves what is at `place` in this host's store: by owner, name and commit."""
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"rsync://{address}:{self.port}/{module}/{'/'.join(place.parts[-3:])}"

    def hear(self, report: Report) -> None:
        """Take note of a report; an empty one means that the peer did not answer."""
        if report.beat != self.report.beat:
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
        return self.report.active and time.monotonic() - self.heard_at < self.silence_s

    def holds(self, path: str) -> bool:
        """Return whether it has a verified copy of that file."""
        return path in self.report.held

    def fetches(self, path: str) -> bool:
        """Return whether it is fetching that file from a hub."""
        return path in self.report.fetching and self._may_claim(path)

    def wants(self, path: str) -> bool:
        """Return whether it will fetch that file from a hub unless another peer does."""
        return path in self.report.wants and self._may_claim(path)

    def _may_claim(self, path: str) -> bool:
        return self.is_fetching and time.monotonic() < self.claims.get(path, 0.0)


class Peers:
    """All peers of this host. Each host reports its state in a file that it serves to the others."""

    def __init__(
        self, own: str, peers: Iterable[Peer], store: Store, home: Path, stall: float, answer: int = ANSWER_S
    ) -> None:
        """`stall`: seconds that a peer may take for a file in addition to those that its size needs.

        `answer`: seconds without a byte of its report after which a peer counts as away.
        """
        self.own = own
        self.all = list(peers)
        self._store = store
        self._stall, self._answer = stall, answer
        self._beat = time.time_ns()
        self._pool = ThreadPoolExecutor(max(1, len(self.all)))
        # No honest report is longer: each of its lists names published files only.
        self._longest = 3 * len(json.dumps(sorted(store.files))) + 200
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

    def time_for(self, file: File) -> float:
        """Return the seconds that a peer may take to fetch or send a file."""
        return self._stall + file.size / SLOWEST

    def drop(self, peer: Peer, why: str) -> None:
        """Ask a peer for nothing more in this run."""
        say(f"{peer.name} {why}; it is not asked again")
        self.all.remove(peer)

    def listen(self) -> None:
        """Read the reports of all peers, in parallel."""
        began = time.monotonic()
        asked = [peer for peer in self.all if not peer.is_resting]
        for peer, report in zip(asked, self._pool.map(self._ask, asked), strict=True):
            if report is None:
                self.drop(peer, f"has not completed its report within {peer.silence_s:.0f} s")
                continue
            peer.hear(report)
            for path in (report.fetching | report.wants) & self._store.files.keys():
                # From its first claim: a peer that only claims does not keep this host waiting.
                peer.claims.setdefault(path, time.monotonic() + self.time_for(self._store.files[path]))
            patience = self._answer if report is NONE_YET else PATIENCE_S
            if time.monotonic() - began > patience and report == Report():
                peer.deaf_until = time.monotonic() + DEAF_S

    def _ask(self, peer: Peer) -> Report | None:
        """Return a peer's report, empty if there is no valid one; None if it does not end."""
        # Always the same name: what a killed run leaves is overwritten by the next one.
        shared = self._store.shared_path
        to = self._heard / f"{peer.name}--{shared.name}"
        options = [f"--contimeout={self._answer}", f"--timeout={self._answer}", "--inplace"]
        argv = [*_limited(self._longest), *RSYNC, *options, peer.url("reports", shared), str(to)]
        quiet = subprocess.DEVNULL
        try:
            subprocess.run(argv, stdout=quiet, stderr=quiet, check=True, timeout=peer.silence_s)
            return Report.read(to.read_bytes())
        except subprocess.TimeoutExpired:
            return None
        except subprocess.CalledProcessError as error:
            return NONE_YET if error.returncode == NO_SUCH_FILE else Report()
        except (OSError, ValueError):
            return Report()
        finally:
            to.unlink(missing_ok=True)

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
        sources = [f"{peer.url('models', place)}/{file.path}" for place in places]
        options = [f"--contimeout={self._answer}", "--timeout=30", "--append", "--inplace", "--no-motd"]
        argv = [*_limited(file.size), *RSYNC, *options, *sources, f"{to.parent}/"]
        return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def _limited(file_bytes: int) -> list[str]:
    """Return the beginning of a command that can write no file longer than this, whatever the other side sends."""
    return ["prlimit", f"--fsize={file_bytes}", f"--as={MEMORY_BYTES}", "--core=0", "--"]
