"""Download one commit of a checkpoint, verify every byte, and record that in a stamp next to it.

Every file is taken from the nearest source: a directory on this host, a peer that has it, a mirror, the hub. A file
gets its own name only once it is verified against the list in the request; a wrong file is fetched again on its own.
When all files have arrived, the directory is renamed into place and the stamp is written. A restarted download
continues: verified files are kept, and incomplete files are continued.

The request is a JSON file: repo, revision (40 hex digits), dest, files (`{path: "SIZE sha256:HEX"}`, or `git:HEX`),
hubs (in the order in which they are asked: mirrors, over plain HTTP, and last the hub itself), venv; and optionally
sources (directories), name and peers (`[{name, address, port}]`). A hub token is the credential `hub-token`, JSON with
`host` and `token`; it is sent to no other host, and not without TLS.

Exit status: 0 complete, 2 another try cannot help, 3 given up after hours without progress; 1 is an unexpected error.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from rigup_host import paths
from rigup_host.fetch.hubs import Hub, Hubs
from rigup_host.fetch.peers import ANSWER_S, NO_SUCH_FILE, Peer, Peers
from rigup_host.fetch.report import Counted, Progress, say
from rigup_host.fetch.request import Request, token_for
from rigup_host.fetch.store import BUFFER, File, Hopeless, Setback

# Seconds before the second try.
PAUSE_S = 5.0
# An interrupted line or a hub's maintenance is over by then; anything else needs a person.
GIVE_UP_AFTER_S = 6 * 3600.0
# Errors of the disk, which another try does not change.
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
SYSTEM = (Path("/"), Path("/var"))
FULL = "the disk is full: free some space or choose another model_store"
WRONG_DOWNLOADS, BROKEN_COPIES = 3, 3
WORKERS, COPIES, CHECKS = 8, 4, 2
POLL_S = 0.1
LISTEN_S = 2.0


def main(argv: list[str]) -> int:
    """Run the download; return the exit status."""
    parser = argparse.ArgumentParser(prog="rigup-host fetch", description="Download and verify a checkpoint.")
    parser.add_argument("request", type=Path, help="JSON file that says what to fetch")
    parser.add_argument("--progress", type=Path, help="file to report the progress in")
    parser.add_argument(
        "--home", type=Path, default=paths.FETCH_HOME, help="directory for its own and the client's files"
    )
    parser.add_argument("--pause", type=float, default=PAUSE_S, help="seconds before the second try, then doubled")
    parser.add_argument(
        "--patience", type=float, default=GIVE_UP_AFTER_S, help="seconds without progress after which to give up"
    )
    parser.add_argument(
        "--system", type=Path, nargs="*", default=SYSTEM, help="directories whose file systems must not fill up"
    )
    parser.add_argument("--silence", type=float, default=20.0, help="seconds after which a silent peer counts as dead")
    parser.add_argument("--answer", type=int, default=ANSWER_S, help="seconds after which a peer that is mute is away")
    parser.add_argument("--stall", type=float, default=90.0, help="seconds without a byte that count as a stall")
    parser.add_argument("--timeout", type=int, default=60, help="seconds after which to replace a silent connection")
    options = parser.parse_args(argv)
    os.umask(0o022)
    try:
        request = Request.read(options.request)
        Fetch(request, options).run()
    except (Hopeless, Setback) as error:
        print(f"failed: {error}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, Hopeless) else 3
    except OSError as error:
        if error.errno not in DISK:
            raise
        print(f"failed: {FULL if error.errno == errno.ENOSPC else error}", file=sys.stderr, flush=True)
        return 2
    return 0


class Fetch:
    """The download of one checkpoint."""

    def __init__(self, request: Request, options: argparse.Namespace) -> None:
        self.store = request.store
        self.sources = request.sources
        self.system: Sequence[Path] = options.system
        self.reserve = 0
        self.stopping = False
        self.progress = Progress(options.progress, self.store.bytes)
        hubs = [
            Hub(
                url,
                self.store,
                request.venv,
                token_for(url),
                options.home,
                options.timeout,
            )
            for url in request.hubs
        ]
        for mirror in hubs[:-1]:
            # The xet address that a mirror passes on leads past it, to the hub's own storage on the internet.
            mirror.xet = False
        self.hubs = Hubs(hubs, self.store, options.pause, options.patience, options.stall)
        for peer in request.peers:
            peer.silence_s = options.silence
        self.peers = Peers(request.name, request.peers, self.store, options.home, options.stall, options.answer)
        self.missing: dict[str, File] = {}
        # Files that this host will fetch from a hub unless a peer with priority does.
        self.wants: set[str] = set()
        # By path: the peer, its rsync, and when it must have ended.
        self.copies: dict[str, tuple[Peer, subprocess.Popen[bytes], float]] = {}
        self.checks: dict[str, Future[bool]] = {}
        # By path: the sources of its bytes; sources that sent it wrong; how often it was downloaded wrong.
        self.touched: dict[str, set[str]] = {}
        self.distrusted: dict[str, set[str]] = {}
        self.wrong: dict[str, int] = {}
        # How often a copy broke off, by path and peer.
        self.broken: dict[tuple[str, str], int] = {}
        self.checkers = ThreadPoolExecutor(CHECKS)
        self.listened_at = 0.0
        self.patience: float = options.patience
        self.seen_bytes, self.moved_at = -1, 0.0

    def run(self) -> None:
        """Complete the checkpoint. Raise Hopeless or Setback, and OSError if the disk fails."""
        store = self.store
        if store.is_stamped(store.dest):
            say(f"{store.repo} at {store.revision} is already complete and verified")
        elif store.dest.is_dir() and self.is_as_published():
            store.stamp(store.dest)
        else:
            try:
                self.gather()
            finally:
                self.stop()
            store.publish()
            say(f"complete and verified: {store.bytes} bytes in {len(store.files)} files in {store.dest}")
        self.progress.tell("complete", store.bytes)
        self.peers.tell(store.files, (), (), active=False)

    def is_as_published(self) -> bool:
        """Verify a directory that has no valid stamp of this machine; make it a staging directory if it is wrong."""
        self.store.stamp_path.unlink(missing_ok=True)
        say(f"verifying {self.store.dest}")
        wrong = self.store.wrong(self.store.dest, Counted(lambda count: self.progress.tell("verifying", count)))
        if not wrong:
            say(f"{self.store.dest} is as published; nothing to download")
            return True
        say(f"{self.store.dest} is not as published: {', '.join(wrong)}")
        self.store.take_back(wrong)
        return False

    def gather(self) -> None:
        """Fetch and verify all missing files."""
        store = self.store
        store.prepare()
        self.reserve = store.reserve_bytes(self.system)
        held = store.held()
        self.missing = {path: file for path, file in store.files.items() if path not in held}
        say(f"{store.repo} at {store.revision}: {len(self.missing)} of {len(store.files)} files are missing")
        self.check_space()
        # First tell, then listen: of two hosts that start at the same time at least one sees the other.
        self.share()
        self.listen()
        self.take_from(self.sources)
        while self.missing:
            for path in self.hubs.arrivals():
                self.check(path)
            self.end_copies()
            self.end_checks()
            if self.missing:
                self.listen()
                self.assign()
                self.watch()
                self.report()
                time.sleep(POLL_S)

    def check_space(self) -> None:
        """Raise Hopeless if the missing files cannot fit on the disk."""
        missing = self.store.bytes - self.store.arrived_bytes()
        lacking = missing - (self.store.free_bytes() - self.reserve)
        if missing and lacking > 0:
            kept = f", {self.reserve} of them to remain free for the system" if self.reserve else ""
            raise Hopeless(f"{FULL}: {lacking} more bytes are needed in {self.store.dest.parent}{kept}")

    def take_from(self, sources: Sequence[Path]) -> None:
        """Copy files from directories on this host, in their order, and verify them."""
        for source in sources:
            found = [file for file in self.idle() if not self.store.has_arrived(file) and is_there(source, file)]
            if found:
                say(f"{len(found)} files are in {source}")
            for file in found:
                self.touched[file.path] = {str(source)}
                self.checks[file.path] = self.checkers.submit(self.copy_in, source / file.path, file)

    def copy_in(self, source: Path, file: File) -> bool:
        """Copy one file from this host; return whether it is as published."""
        try:
            with source.open("rb") as there, self.store.arriving(file).open("wb") as here:
                while not self.stopping and (piece := there.read(BUFFER)):
                    here.write(piece)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            say(f"{source}: {error.strerror}")
        return self.store.accept(file)

    def idle(self) -> list[File]:
        """Return the missing files that are neither transferred nor verified now."""
        busy = {*self.copies, *self.checks, *self.hubs.at_work}
        return [file for path, file in self.missing.items() if path not in busy]

    def end_copies(self) -> None:
        """Handle the copies from peers that have ended."""
        for path, (peer, process, deadline) in list(self.copies.items()):
            if process.poll() is None:
                if time.monotonic() > deadline:
                    kill(process)
                    if peer in self.peers.all:
                        self.peers.drop(peer, f"sends {path} too slowly")
                continue
            del self.copies[path]
            if self.store.has_arrived(self.missing[path]):
                self.check(path)
                continue
            say(f"{path} from {peer.name}: rsync exited with {process.returncode}")
            self.broken[path, peer.name] = self.broken.get((path, peer.name), 0) + 1
            if process.returncode in (0, NO_SUCH_FILE) or self.broken[path, peer.name] >= BROKEN_COPIES:
                self.distrusted.setdefault(path, set()).add(peer.name)
            else:
                peer.rest()
            self.check_space()

    def check(self, path: str) -> None:
        """Start to verify a file that has arrived."""
        self.checks[path] = self.checkers.submit(self.store.accept, self.missing[path])

    def end_checks(self) -> None:
        """Handle the verifications that have ended. Raise Hopeless if hubs send the same file wrong repeatedly."""
        for path, check in list(self.checks.items()):
            if not check.done():
                continue
            del self.checks[path]
            sources = self.touched.pop(path, {"an earlier try"})
            if check.result():
                del self.missing[path]
                self.share()
                continue
            say(f"{path} from {', '.join(sorted(sources))} is not as published; fetching it again")
            self.distrusted.setdefault(path, set()).update(sources)
            self.hubs.discarded()
            asked = [hub for hub in self.hubs.all if hub.name in sources]
            for hub in asked:
                hub.xet = False
            if asked:
                self.wrong[path] = self.wrong.get(path, 0) + 1
            if self.wrong.get(path, 0) >= WRONG_DOWNLOADS * len(self.hubs.all):
                raise Hopeless(f"still not as published after {self.wrong[path]} downloads: {path}")

    def listen(self) -> None:
        """Read the reports of the peers, at most every LISTEN_S seconds."""
        if self.peers.all and time.monotonic() - self.listened_at >= LISTEN_S:
            self.peers.listen()
            self.listened_at = time.monotonic()
            self.share()

    def share(self) -> None:
        """Report this host's state to the peers."""
        held = set(self.store.files) - set(self.missing)
        # Files that are being verified will be held soon.
        self.peers.tell(held, self.wants, {*self.checks, *self.hubs.at_work}, active=True)

    def assign(self) -> None:
        """Start transfers of idle files: from peers that have them, otherwise from a hub."""
        left = []
        for file in self.idle():
            if self.store.has_arrived(file):
                self.check(file.path)
                continue
            holders = self.trusted(self.peers.holders(file.path), file)
            able = [peer for peer in holders if not peer.is_resting and not peer.is_doubted]
            if not holders:
                left.append(file)
            elif able and len(self.copies) < COPIES:
                self.copy(file, random.choice(able))
        fetching = [peer for peer in self.peers.all if peer.is_fetching]
        if not self.hubs.is_ready:
            self.give_up_if_alone(left, bool(fetching))
            left = []
        slots = max(2, WORKERS // (1 + len(fetching))) - len(self.hubs.at_work)
        free = [file for file in left if not self.peers.is_taken(file.path)]
        # Peers begin with different files. A single host begins with the largest, as the last one ends the download.
        key = (lambda file: self.rank(file)) if self.peers.all else (lambda file: -file.size)
        chosen = sorted(free, key=key)[: max(0, slots)]
        for file in self.agreed(chosen):
            hub = self.hubs.order(file, self.distrusted.get(file.path, ()))
            self.touched.setdefault(file.path, set()).add(hub.name)
        if chosen:
            self.share()

    def rank(self, file: File) -> Any:
        """Return the place of a file in an order that is different on each host."""
        return hashlib.sha1(f"{self.peers.own} {file.path}".encode()).digest()

    def agreed(self, chosen: list[File]) -> list[File]:
        """Return those of the chosen files that no peer fetches or is about to fetch."""
        if not self.peers.all:
            return chosen
        if not chosen:
            # A peer with priority for a file waits until no other host wants it.
            if self.wants:
                self.wants = set()
                self.share()
            return []
        self.wants = {file.path for file in chosen}
        self.share()
        self.peers.listen()
        free = [file for file in chosen if not self.peers.is_taken(file.path)]
        free = [file for file in free if not self.trusted(self.peers.holders(file.path), file)]
        # These stay claimed until the peer without priority has seen that.
        self.wants = {file.path for file in free if self.peers.is_undecided(file.path)}
        return [file for file in free if file.path not in self.wants]

    def trusted(self, holders: list[Peer], file: File) -> list[Peer]:
        """Return the peers that have not sent this file wrong."""
        return [peer for peer in holders if peer.name not in self.distrusted.get(file.path, ())]

    def copy(self, file: File, peer: Peer) -> None:
        """Start to copy a file from a peer."""
        self.touched.setdefault(file.path, set()).add(peer.name)
        process = self.peers.transfer(peer, file, self.store.arriving(file))
        self.copies[file.path] = peer, process, time.monotonic() + self.peers.time_for(file)

    def give_up_if_alone(self, left: list[File], others_fetch: bool) -> None:
        """Raise Hopeless if no hub can help and nothing else is under way."""
        if left and self.hubs.hopeless and not self.copies and not self.checks and not others_fetch:
            raise Hopeless(self.hubs.hopeless)

    def watch(self) -> None:
        """Raise Hopeless before the system's disk is full, and Setback if waiting for peers takes too long.

        Restart a hub's client that has stalled.
        """
        done, moment = self.hubs.arrived_bytes, time.monotonic()
        if done != self.seen_bytes or self.hubs.at_work or self.checks:
            self.seen_bytes, self.moved_at = done, moment
        elif moment - self.moved_at > self.patience:
            raise Setback(
                f"given up: peers sent nothing for {self.patience:.0f} s. {self.hubs.hopeless or ''}".rstrip()
            )
        if done < self.store.bytes and (free := self.store.free_bytes()) < self.reserve:
            place = self.store.dest.parent
            raise Hopeless(f"{FULL}: {free} bytes are free in {place}, and the system needs {self.reserve}")
        self.hubs.watch(done)

    def report(self) -> None:
        """Report the progress, and what the download is doing."""
        done = self.hubs.arrived_bytes
        doing = [f"{len(hub.at_work)} files from {hub.name}" for hub in self.hubs.all if hub.at_work]
        names = [peer.name for peer, _, _ in self.copies.values()]
        doing += [f"{names.count(name)} files from {name}" for name in sorted(set(names))]
        doing += [f"verifying {len(self.checks)} files"] if self.checks else []
        waiting = self.hubs.waiting()
        if doing:
            self.progress.tell("downloading", done, ", ".join(doing))
        elif waiting and any(self.idle()):
            self.progress.tell("waiting before the next try", done, waiting)
        else:
            self.progress.tell("waiting for peers", done)

    def stop(self) -> None:
        """End everything that is under way."""
        self.stopping = True
        self.hubs.stop()
        for _, process, _ in self.copies.values():
            kill(process)
        self.checkers.shutdown(wait=True, cancel_futures=True)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill an rsync and its children."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def is_there(source: Path, file: File) -> bool:
    """Return whether a directory has a file of that name and size."""
    try:
        return (source / file.path).stat().st_size == file.size
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        say(f"{source / file.path}: {error.strerror}")
        return False
