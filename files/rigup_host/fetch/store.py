"""One checkpoint on the disk: what was published, what of it has arrived, and the stamp of its verification.

A file gets its own name only once its checksum is verified; until then it is in `.arriving`. All files are in a staging
directory next to the final one, so the final directory has either nothing or everything.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rigup_host.files import from_json, now, write

REVISION = re.compile(r"[0-9a-f]{40}")
ENTRY = re.compile(r"(\d+) (?:sha256:([0-9a-f]{64})|git:([0-9a-f]{40}))")
ARRIVING = ".arriving"
BUFFER = 4 << 20
# Left free for apt, the journal and logins, if the store is on the same file system.
RESERVE_BYTES = 2 << 30
MACHINE_ID = Path("/etc/machine-id")


class Hopeless(Exception):
    """Trying again cannot help."""


class Setback(Exception):
    """This try failed; another one may succeed."""


@dataclass(frozen=True)
class File:
    """A published file: its size in bytes, and its checksum from the hub.

    A file in Git LFS has a SHA-256, any other file the id of its Git blob.
    """

    path: str
    size: int
    sha256: str | None
    git: str | None

    @classmethod
    def read(cls, path: str, entry: str) -> File:
        """Parse `SIZE sha256:HEX` or `SIZE git:HEX`. Raise ValueError for others, and for a path that leads outside."""
        match = ENTRY.fullmatch(entry)
        if match is None:
            raise ValueError(f"{path}: {entry!r} is not a size and a checksum")
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts or parts[0] == ARRIVING:
            raise ValueError(f"{path!r} is not a path inside a checkpoint")
        return cls(path, int(match[1]), match[2], match[3])

    def is_at(self, place: Path, on_read: Callable[[int], None] | None = None) -> bool:
        """Return whether the file at `place` is this one; `on_read` is called with the bytes of every piece read."""
        summed = hashlib.sha256() if self.sha256 else hashlib.sha1(b"blob %d\0" % self.size)
        try:
            with place.open("rb", buffering=0) as source:
                if os.fstat(source.fileno()).st_size != self.size:
                    return False
                buffer = memoryview(bytearray(BUFFER))
                while count := source.readinto(buffer):
                    summed.update(buffer[:count])
                    if on_read:
                        on_read(count)
        except FileNotFoundError:
            return False
        return summed.hexdigest() == (self.sha256 or self.git)


@dataclass(frozen=True)
class Store:
    """The directories of one checkpoint; `dest` is the final one."""

    repo: str
    revision: str
    dest: Path
    files: Mapping[str, File]

    @property
    def staging(self) -> Path:
        """Where the files are until all of them have arrived."""
        return self.dest.parent / f".{self.dest.name}.incoming"

    @property
    def stamp_path(self) -> Path:
        """The stamp of the verification, outside of the directory, which is exactly as published."""
        return self.dest.parent / f"{self.dest.name}.verified.json"

    @property
    def shared_path(self) -> Path:
        """The report to the peers, in the store itself: a store that outlives its host serves them too."""
        return self.dest.parent / f"{self.dest.name}.shared.json"

    @property
    def bytes(self) -> int:
        """The size of all published files."""
        return sum(file.size for file in self.files.values())

    def arriving(self, file: File) -> Path:
        """Return where a file is until it is verified."""
        return self.staging / ARRIVING / file.path

    @property
    def _mark(self) -> Path:
        """Names the machine that verified the files with their own names; no published file can have this path."""
        return self.staging / ARRIVING / ARRIVING

    def prepare(self) -> None:
        """Create the directories and remove what was never published.

        Files that another machine verified count as arriving again.
        """
        for file in self.files.values():
            self.arriving(file).parent.mkdir(parents=True, exist_ok=True)
        marked = self._is_marked()
        if not marked:
            for name in self.held():
                (self.staging / name).rename(self.arriving(self.files[name]))
        kept = {self._mark, *map(self.arriving, self.files.values()), *(self.staging / name for name in self.held())}
        for path in set(_walk(self.staging)) - kept:
            path.unlink()
        if not marked:
            # Not earlier: from then on peers get what has its own name.
            write(self._mark, _machine())

    def has_arrived(self, file: File) -> bool:
        """Return whether all bytes of a file have arrived, verified or not."""
        return _size(self.arriving(file)) == file.size

    def held(self) -> set[str]:
        """Return the files that this machine has verified."""
        return {path for path, file in self.files.items() if _size(self.staging / path) == file.size}

    def arrived_bytes(self) -> int:
        """Return the bytes that have arrived, those of incomplete files included."""
        there = 0
        for path, file in self.files.items():
            size = _size(self.staging / path)
            there += min(file.size, _occupied(self.arriving(file)) if size < 0 else size)
        return there

    def free_bytes(self) -> int:
        """Return the bytes that a user other than root may still write to the store's file system."""
        found = os.statvfs(self.dest.parent)
        return found.f_bavail * found.f_frsize

    def reserve_bytes(self, system: Iterable[Path]) -> int:
        """Return the bytes that must stay free: 0 unless the store shares its file system with these directories."""
        own = self.dest.parent.stat().st_dev
        return RESERVE_BYTES if any(path.exists() and path.stat().st_dev == own for path in system) else 0

    def accept(self, file: File, on_read: Callable[[int], None] | None = None) -> bool:
        """Give an arrived file its own name if it is as published; otherwise remove it. Return whether it was."""
        place = self.arriving(file)
        if not file.is_at(place, on_read):
            place.unlink(missing_ok=True)
            return False
        with place.open("rb") as source:
            # After a power cut the file must not have its name without its content.
            os.fsync(source.fileno())
        named = self.staging / file.path
        named.parent.mkdir(parents=True, exist_ok=True)
        place.chmod(0o644)
        place.rename(named)
        return True

    def wrong(self, directory: Path, on_read: Callable[[int], None]) -> list[str]:
        """Return the paths in `directory` that are missing, not as published, or were never published."""
        order = sorted(self.files.values(), key=lambda file: -file.size)
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            right = list(pool.map(lambda file: file.is_at(directory / file.path, on_read), order))
        foreign = {path.relative_to(directory).as_posix() for path in _walk(directory)} - set(self.files)
        return sorted({file.path for file, ok in zip(order, right, strict=True) if not ok} | foreign)

    def take_back(self, wrong: Iterable[str]) -> None:
        """Turn the final directory back into the staging directory, without its wrong files.

        If nothing else is in it, such as in an empty one made by hand, an existing staging directory is kept.
        """
        # In the staging directory a file with its own name counts as verified: remove the wrong ones before.
        for path in wrong:
            (self.dest / path).unlink(missing_ok=True)
        if self.staging.exists() and not any(_walk(self.dest)):
            shutil.rmtree(self.dest)
            return
        shutil.rmtree(self.staging, ignore_errors=True)
        self.dest.rename(self.staging)
        write(self._mark, _machine())

    def publish(self) -> None:
        """Stamp the complete staging directory and rename it to the final one, with only the published files in it.

        Peers copy from it meanwhile: at each moment the mark or the stamp says that it is verified.
        """
        for path in [path for path in _walk(self.staging / ARRIVING) if path != self._mark]:
            path.unlink()
        for directory in sorted((path for path in self.staging.rglob("*") if path.is_dir()), reverse=True):
            if not any(directory.iterdir()):
                directory.rmdir()
        os.sync()
        self.stamp(self.staging)
        shutil.rmtree(self.staging / ARRIVING)
        self.staging.rename(self.dest)

    def stamp(self, directory: Path) -> None:
        """Record that this machine has verified all files in a directory of this checkpoint."""
        record = json.dumps({**self._record(directory), "verified_at": now()}, indent=2)
        write(self.stamp_path, f"{record}\n", durable=True)

    def is_stamped(self, directory: Path) -> bool:
        """Return whether this machine has verified this commit in a directory, and nothing was written to it since."""
        try:
            record = from_json(self.stamp_path.read_text())
        except (OSError, ValueError):
            return False
        expected = self._record(directory)
        return isinstance(record, dict) and {key: record.get(key) for key in expected} == expected

    def is_verified(self, directory: Path) -> bool:
        """Return whether this machine has verified the files that have their own names in a directory."""
        return self.is_stamped(directory) or (directory == self.staging and self._is_marked())

    def _record(self, directory: Path) -> dict[str, object]:
        tree = _tree(path for path in _walk(directory) if path != self._mark)
        return {"repo": self.repo, "revision": self.revision, **tree, "machine": _machine()}

    def _is_marked(self) -> bool:
        return self._mark.exists() and self._mark.read_text() == _machine()


def _machine() -> str:
    # The disk may come from another installation: it is verified again then.
    try:
        return MACHINE_ID.read_text().strip()
    except FileNotFoundError:
        return ""


def _walk(directory: Path) -> Iterator[Path]:
    for root, _, names in os.walk(directory):
        yield from (Path(root, name) for name in names)


def _tree(paths: Iterable[Path]) -> dict[str, int]:
    """Return number, bytes and latest modification (ns) of files."""
    found = [path.lstat() for path in paths]
    return {
        "files": len(found),
        "bytes": sum(each.st_size for each in found),
        "newest": max((each.st_mtime_ns for each in found), default=0),
    }


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return -1


def _occupied(path: Path) -> int:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return 0
    # A transfer may extend the file to its full length first.
    return min(found.st_size, found.st_blocks * 512)
