#!/usr/bin/env python3
"""Brings one commit of a checkpoint to the disk, verifies every byte, and says so in a stamp beside it.

Every file is taken where it is nearest: a directory on this host, a peer that holds it, a mirror, the hub. It gets
its name only once it is verified against the list in the request, and what is wrong is fetched again, alone. When all
are there, the directory is renamed into place and the stamp is written. Started again, it goes on: verified files are
kept, and files still arriving are continued.

The request is a JSON file: repo, revision (40 hex digits), dest, files (`{path: "SIZE sha256:HEX"}`, or `git:HEX`),
hubs (as they are asked: mirrors, over plain HTTP, and last the hub itself), venv; and, if wanted, sources
(directories), name and peers (`[{name, address, port}]`). A hub token is the credential `hub-token`, JSON with
`host` and `token`; no other host sees it.

Exit status: 0 complete, 2 trying again cannot help, 3 given up after hours without progress; 1, Python's own, is what
nobody foresaw.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fetch_request import Counted, Progress, Request, credential
from fetch_sources import Hub, Peer, Peerhood
from fetch_store import BUFFER, File, Hopeless, Setback

HOME = Path("/var/lib/rigup-fetch")
# The first pause, and how many times as long the longest is: 300 s.
PAUSE_S, LONGEST_PAUSE = 5.0, 60
# A line that is down over night, or a hub over its maintenance, is back by then; whatever else it is wants a person.
GIVE_UP_AFTER_S = 6 * 3600.0
# What is the disk's, and stays as it is when tried again.
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
SYSTEM = (Path("/"), Path("/var"))
FULL = "the disk is full: make room or choose another model_store"
WRONG_DOWNLOADS = 3
WORKERS, COPIES, CHECKS = 8, 4, 2
POLL_S = 0.1
# rsync(1): "Partial transfer due to error"; all else is the connection's.
NO_SUCH_FILE = 23
LISTEN_S = 2.0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fetch and verify one commit of a checkpoint.")
    parser.add_argument("request", type=Path, help="JSON file that says what to fetch")
    parser.add_argument("--progress", type=Path, help="where to say how far it is")
    parser.add_argument("--home", type=Path, default=HOME, help="where it and the hub's client keep their notes")
    parser.add_argument("--pause", type=float, default=PAUSE_S, help="seconds before the second try; doubled each time")
    parser.add_argument(
        "--patience", type=float, default=GIVE_UP_AFTER_S, help="seconds without progress before it gives up"
    )
    parser.add_argument(
        "--system", type=Path, nargs="*", default=SYSTEM, help="directories whose file systems must not fill up"
    )
    parser.add_argument("--silence", type=float, default=20.0, help="seconds after which a mute peer is dead")
    parser.add_argument("--stall", type=float, default=90.0, help="seconds without a byte that count as stalled")
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
    """One checkpoint on its way."""

    def __init__(self, request: Request, options: argparse.Namespace) -> None:
        self.store = request.store
        self.sources = request.sources
        self.pause: float = options.pause
        self.stall: float = options.stall
        self.patience: float = options.patience
        self.system: Sequence[Path] = options.system
        self.reserve = 0
        self.stopping = False
        self.progress = Progress(options.progress, self.store.bytes)
        known = credential()
        self.hubs = [
            Hub(
                url,
                self.store,
                request.venv,
                known[1] if known and urlsplit(url).hostname == known[0] else None,
                options.home,
                options.stall,
            )
            for url in request.hubs
        ]
        for mirror in self.hubs[:-1]:
            # The way to xet that it hands on leads past it, to the hub's own storage on the internet.
            mirror.xet = False
        for peer in request.peers:
            peer.silence_s = options.silence
        self.hood = Peerhood(request.name, request.peers, self.store, options.home)
        self.missing: dict[str, File] = {}
        self.wants: set[str] = set()
        self.copies: dict[str, tuple[Peer, subprocess.Popen[bytes]]] = {}
        self.checks: dict[str, Future[bool]] = {}
        self.touched: dict[str, set[str]] = {}
        self.distrusted: dict[str, set[str]] = {}
        self.wrong: dict[str, int] = {}
        self.checkers = ThreadPoolExecutor(CHECKS)
        self.furthest = 0
        self.progressed_at = time.monotonic()
        self.seen_bytes = 0
        self.grew_at = time.monotonic()
        self.listened_at = 0.0

    def run(self) -> None:
        """Make the checkpoint complete. Raises Hopeless or Setback, and OSError where the disk fails."""
        store = self.store
        if store.is_stamped():
            say(f"{store.repo} at {store.revision} is complete and verified already")
        elif store.dest.is_dir() and self.is_as_published():
            store.stamp()
        else:
            try:
                self.gather()
            finally:
                self.stop()
            store.publish()
            store.stamp()
            say(f"complete and verified: {store.bytes} bytes in {len(store.files)} files in {store.dest}")
        self.progress.tell("complete", store.bytes)
        self.hood.tell(store.files, (), (), active=False)

    def is_as_published(self) -> bool:
        """Verify a directory that has no stamp of this machine, or was written to since; make ready what is wrong."""
        self.store.stamp_path.unlink(missing_ok=True)
        say(f"verifying {self.store.dest}")
        wrong = self.store.wrong(self.store.dest, Counted(lambda count: self.progress.tell("verifying", count)))
        if not wrong:
            say(f"{self.store.dest} is as published; nothing is fetched")
            return True
        say(f"{self.store.dest} is not as published: {', '.join(wrong)}")
        self.store.take_back(wrong)
        return False

    def gather(self) -> None:
        """Bring all files that are missing, each verified."""
        store = self.store
        store.prepare()
        self.reserve = store.reserve_bytes(self.system)
        held = store.held()
        self.missing = {path: file for path, file in store.files.items() if path not in held}
        say(f"{store.repo} at {store.revision}: {len(self.missing)} of {len(store.files)} files are missing")
        self.check_space()
        # First the flag, then the look: of two hosts that begin together at least one sees the other.
        self.share()
        self.listen()
        self.take_from(self.sources)
        while self.missing:
            self.hear_hubs()
            self.end_copies()
            self.end_checks()
            if self.missing:
                self.listen()
                self.assign()
                self.watch()
                self.report()
                time.sleep(POLL_S)

    def check_space(self) -> None:
        """Raises Hopeless where what is missing cannot fit."""
        missing = self.store.bytes - self.store.arrived_bytes()
        lacking = missing - (self.store.free_bytes() - self.reserve)
        if missing and lacking > 0:
            kept = f", {self.reserve} of them to stay free for the system" if self.reserve else ""
            raise Hopeless(f"{FULL}: {lacking} bytes more are needed where {self.store.dest.parent} lies{kept}")

    def take_from(self, sources: Sequence[Path]) -> None:
        """Copy what directories on this host hold, the first of them first; it is verified like everything else."""
        for source in sources:
            found = [file for file in self.idle() if not self.store.has_arrived(file) and is_there(source, file)]
            if found:
                say(f"{len(found)} files are in {source}")
            for file in found:
                self.touched[file.path] = {str(source)}
                self.checks[file.path] = self.checkers.submit(self.copy_in, source / file.path, file)

    def copy_in(self, source: Path, file: File) -> bool:
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
        """The missing files that nothing is being done about."""
        busy = {*self.copies, *self.checks, *(path for hub in self.hubs for path in hub.at_work)}
        return [file for path, file in self.missing.items() if path not in busy]

    def hear_hubs(self) -> None:
        for hub in self.hubs:
            for event in hub.events():
                if "done" in event:
                    self.check(event["done"])
                elif "failed" in event:
                    hub.xet &= not event["xet"]
                    self.had_setback(hub, event["failed"], event["why"], event["hopeless"], event["wait"])
                elif "waiting" in event:
                    hub.patience_until = time.monotonic() + event["waiting"] + self.stall
                    say(f"{hub.name} asks to wait {event['waiting']:.0f} s")

    def had_setback(self, hub: Hub, path: str, why: str, hopeless: bool, wait: float | None) -> None:
        if hopeless and why.startswith("the disk"):
            raise Hopeless(why)
        if hopeless:
            hub.hopeless = why
            say(f"{path} from {hub.name}: {why}")
            return
        moment = time.monotonic()
        if moment < hub.rest_until:
            return  # one of several files that met the same setback
        done = self.store.arrived_bytes()
        if done > self.furthest:
            self.furthest, self.progressed_at, hub.setbacks = done, moment, 0
        idle_s = moment - self.progressed_at
        if idle_s > self.patience:
            lasted = f"{idle_s / 3600:.1f} h" if idle_s >= 3600 else f"{idle_s:.0f} s"
            raise Setback(f"given up after {lasted} without progress, the last: {path} from {hub.name}: {why}")
        rest = wait if wait is not None else self.pause * min(LONGEST_PAUSE, 2**hub.setbacks)
        hub.setbacks += 1
        hub.setback = f"{path}: {why}"
        hub.rest_until = moment + rest
        say(f"{path} from {hub.name}: {why}; next try in {rest:.0f} s")

    def end_copies(self) -> None:
        for path, (peer, process) in list(self.copies.items()):
            if process.poll() is None:
                continue
            del self.copies[path]
            if self.store.has_arrived(self.missing[path]):
                self.check(path)
                continue
            say(f"{path} from {peer.name}: rsync ended with {process.returncode}")
            if process.returncode in (0, NO_SUCH_FILE):
                self.distrusted.setdefault(path, set()).add(peer.name)
            else:
                peer.rest()
            self.check_space()

    def check(self, path: str) -> None:
        self.checks[path] = self.checkers.submit(self.store.accept, self.missing[path])

    def end_checks(self) -> None:
        for path, check in list(self.checks.items()):
            if not check.done():
                continue
            del self.checks[path]
            sources = self.touched.pop(path, {"an earlier try"})
            if check.result():
                del self.missing[path]
                self.share()
                continue
            say(f"{path} from {', '.join(sorted(sources))} is not as published; fetching it again, alone")
            self.distrusted.setdefault(path, set()).update(sources)
            # It is gone again: what comes in its place is progress.
            self.furthest = min(self.furthest, self.store.arrived_bytes())
            asked = [hub for hub in self.hubs if hub.name in sources]
            for hub in asked:
                hub.xet = False
            if asked:
                self.wrong[path] = self.wrong.get(path, 0) + 1
            if self.wrong.get(path, 0) >= WRONG_DOWNLOADS * len(self.hubs):
                raise Hopeless(f"after {self.wrong[path]} downloads still not as published: {path}")

    def listen(self) -> None:
        if self.hood.all and time.monotonic() - self.listened_at >= LISTEN_S:
            self.hood.listen()
            self.listened_at = time.monotonic()
            self.share()

    def share(self) -> None:
        held = set(self.store.files) - set(self.missing)
        # What is being verified will be held in a moment.
        fetching = {*self.checks, *(path for hub in self.hubs for path in hub.at_work)}
        self.hood.tell(held, self.wants, fetching, active=True)

    def assign(self) -> None:
        """Give idle files to where they come from: peers that hold them first, then a hub."""
        left = []
        for file in self.idle():
            if self.store.has_arrived(file):
                self.check(file.path)
                continue
            holders = self.trusted(self.hood.holders(file.path), file)
            able = [each for each in holders if not each.is_resting and not each.is_doubted]
            if not holders:
                left.append(file)
            elif able and len(self.copies) < COPIES:
                self.copy(file, random.choice(able))
        fetching = [each for each in self.hood.all if each.is_fetching]
        if not any(hub.is_ready for hub in self.hubs):
            self.give_up_if_alone(left, bool(fetching))
            left = []
        slots = max(2, WORKERS // (1 + len(fetching))) - sum(len(hub.at_work) for hub in self.hubs)
        free = [file for file in left if not self.hood.is_taken(file.path)]
        # Peers begin with different files; alone, the largest come first, as the last one ends the download.
        key = (lambda file: self.rank(file)) if self.hood.all else (lambda file: -file.size)
        chosen = sorted(free, key=key)[: max(0, slots)]
        for file in self.agreed(chosen):
            hub = self.hub_for(file)
            self.touched.setdefault(file.path, set()).add(hub.name)
            hub.order(file)
            self.grew_at = time.monotonic()
        if chosen:
            self.share()

    def hub_for(self, file: File) -> Hub:
        """The first hub that is not resting, if possible one that has not sent this file wrongly."""
        ready = [hub for hub in self.hubs if hub.is_ready]
        return next((hub for hub in ready if hub.name not in self.distrusted.get(file.path, ())), ready[0])

    def rank(self, file: File) -> Any:
        return hashlib.sha1(f"{self.hood.own} {file.path}".encode()).digest()

    def agreed(self, chosen: list[File]) -> list[File]:
        """Of these files, those that no peer fetches or is about to."""
        if not self.hood.all:
            return chosen
        if not chosen:
            # The peer with the better right to a file waits until nobody else wants it.
            if self.wants:
                self.wants = set()
                self.share()
            return []
        self.wants = {file.path for file in chosen}
        self.share()
        self.hood.listen()
        free = [file for file in chosen if not self.hood.is_taken(file.path)]
        free = [file for file in free if not self.trusted(self.hood.holders(file.path), file)]
        # Those stay wanted until the peer that must give way has seen it.
        self.wants = {file.path for file in free if self.hood.is_undecided(file.path)}
        return [file for file in free if file.path not in self.wants]

    def trusted(self, holders: list[Peer], file: File) -> list[Peer]:
        return [each for each in holders if each.name not in self.distrusted.get(file.path, ())]

    def copy(self, file: File, peer: Peer) -> None:
        self.touched.setdefault(file.path, set()).add(peer.name)
        self.copies[file.path] = peer, self.hood.transfer(peer, file, self.store.arriving(file))

    def give_up_if_alone(self, left: list[File], others_fetch: bool) -> None:
        hopeless = [hub.hopeless for hub in self.hubs if hub.hopeless]
        if len(hopeless) == len(self.hubs) and left and not self.copies and not self.checks and not others_fetch:
            raise Hopeless(hopeless[-1])

    def watch(self) -> None:
        """Restart a hub's client that has brought no byte for too long; stop before the system's disk is full."""
        moment = time.monotonic()
        done = self.there()
        if done < self.store.bytes and (free := self.store.free_bytes()) < self.reserve:
            place = self.store.dest.parent
            raise Hopeless(f"{FULL}: {free} bytes are left where {place} lies, and the system needs {self.reserve}")
        if done != self.seen_bytes:
            self.seen_bytes, self.grew_at = done, moment
        for hub in self.hubs:
            if hub.at_work and moment - self.grew_at > self.stall and moment > hub.patience_until:
                hub.xet = False
                stalled = sorted(hub.stop())
                self.had_setback(hub, stalled[0], f"no byte for {self.stall:.0f} s", False, None)
                self.grew_at = moment

    def there(self) -> int:
        """Bytes that have come, on the disk or not yet."""
        return min(self.store.bytes, self.store.arrived_bytes() + sum(hub.in_memory for hub in self.hubs))

    def report(self) -> None:
        done = self.there()
        doing = [f"{len(hub.at_work)} files from {hub.name}" for hub in self.hubs if hub.at_work]
        names = [peer.name for peer, _ in self.copies.values()]
        doing += [f"{names.count(name)} files from {name}" for name in sorted(set(names))]
        doing += [f"{len(self.checks)} files verified"] if self.checks else []
        resting = [hub for hub in self.hubs if not hub.is_ready and not hub.hopeless]
        if doing:
            self.progress.tell("downloading", done, ", ".join(doing))
        elif resting and any(self.idle()):
            hub = resting[0]
            wait = max(0.0, hub.rest_until - time.monotonic())
            self.progress.tell("waiting before the next try", done, f"{wait:.0f} s, {hub.name} failed: {hub.setback}")
        else:
            self.progress.tell("waiting for peers", done)

    def stop(self) -> None:
        self.stopping = True
        for hub in self.hubs:
            hub.stop()
        for _, process in self.copies.values():
            process.kill()
        self.checkers.shutdown(wait=True, cancel_futures=True)


def is_there(source: Path, file: File) -> bool:
    try:
        return (source / file.path).stat().st_size == file.size
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        say(f"{source / file.path}: {error.strerror}")
        return False


def say(message: str) -> None:
    print(message, flush=True)


if __name__ == "__main__":
    sys.exit(main())
