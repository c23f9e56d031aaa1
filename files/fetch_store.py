"""One checkpoint on the disk: what was published, what of it is there, and the stamp that says it was verified.

A file stands under its own name only once its checksum was found right; what is still arriving lies in `.arriving`.
All of it stands beside the final directory until it is whole, so the final directory holds nothing or everything.
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
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

REVISION = re.compile(r"[0-9a-f]{40}")
ENTRY = re.compile(r"(\d+) (?:sha256:([0-9a-f]{64})|git:([0-9a-f]{40}))")
ARRIVING = ".arriving"
BUFFER = 4 << 20
# What apt, the journal and a login need to go on, where the store shares their file system.
RESERVE_BYTES = 2 << 30
MACHINE_ID = Path("/etc/machine-id")


class Hopeless(Exception):
    """Trying again cannot help."""


class Setback(Exception):
    """This try failed; another may not."""


@dataclass(frozen=True)
class File:
    """A published file: its size in bytes, and the checksum that the hub states for it.

    Of a file kept by Git LFS that is its sha256; of any other the id that Git gives it.
    """

    path: str
    size: int
    sha256: str | None
    git: str | None

    @classmethod
    def read(cls, path: str, entry: str) -> File:
        """From `SIZE sha256:HEX` or `SIZE git:HEX`. Raises ValueError for others, and for a path that leads out."""
        match = ENTRY.fullmatch(entry)
        if match is None:
            raise ValueError(f"{path}: {entry!r} is no size and checksum")
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts or parts[0] == ARRIVING:
            raise ValueError(f"{path!r} is no path inside a checkpoint")
        return cls(path, int(match[1]), match[2], match[3])

    def is_at(self, place: Path, told: Callable[[int], None] | None = None) -> bool:
        """Whether the file at `place` is this one, byte for byte. `told` hears of every piece that was read."""
        summed = hashlib.sha256() if self.sha256 else hashlib.sha1(b"blob %d\0" % self.size)
        try:
            with place.open("rb", buffering=0) as source:
                if os.fstat(source.fileno()).st_size != self.size:
                    return False
                buffer = memoryview(bytearray(BUFFER))
                while count := source.readinto(buffer):
                    summed.update(buffer[:count])
                    if told:
                        told(count)
        except FileNotFoundError:
            return False
        return summed.hexdigest() == (self.sha256 or self.git)


@dataclass(frozen=True)
class Store:
    """The place of one checkpoint."""

    repo: str
    revision: str
    dest: Path
    files: Mapping[str, File]

    @property
    def staging(self) -> Path:
        return self.dest.parent / f".{self.dest.name}.incoming"

    @property
    def stamp_path(self) -> Path:
        return self.dest.parent / f"{self.dest.name}.verified.json"

    @property
    def shared_path(self) -> Path:
        """What the peers are told: in the store, since a store that outlives its host serves them too."""
        return self.dest.parent / f"{self.dest.name}.shared.json"

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files.values())

    def arriving(self, file: File) -> Path:
        """Where a file grows until it is verified."""
        return self.staging / ARRIVING / file.path

    @property
    def _mark(self) -> Path:
        """Says which machine verified the files that have their names; no published file can lie there."""
        return self.staging / ARRIVING / ARRIVING

    def prepare(self) -> None:
        """Make the directories, and remove what was never published. What another machine verified has yet to be."""
        for file in self.files.values():
            self.arriving(file).parent.mkdir(parents=True, exist_ok=True)
        if not self._mark.exists() or self._mark.read_text() != _machine():
            for path in self.held():
                (self.staging / path).rename(self.arriving(self.files[path]))
            write(self._mark, _machine())
        for path in _walk(self.staging):
            if path == self._mark:
                continue
            inside = path.relative_to(self.staging)
            name = inside.relative_to(ARRIVING).as_posix() if inside.parts[0] == ARRIVING else inside.as_posix()
            if name not in self.files:
                path.unlink()

    def has_arrived(self, file: File) -> bool:
        """Whether all bytes of a file are there, verified or not."""
        return _size(self.arriving(file)) == file.size

    def held(self) -> set[str]:
        """The files that have arrived and were verified, by the machine of the mark."""
        return {path for path, file in self.files.items() if _size(self.staging / path) == file.size}

    def arrived_bytes(self) -> int:
        """Bytes that are there, those of files still arriving included."""
        there = 0
        for path, file in self.files.items():
            size = _size(self.staging / path)
            there += min(file.size, _occupied(self.arriving(file)) if size < 0 else size)
        return there

    def free_bytes(self) -> int:
        """What the downloader, who is not root, may still write where the store lies."""
        found = os.statvfs(self.dest.parent)
        return found.f_bavail * found.f_frsize

    def reserve_bytes(self, system: Iterable[Path]) -> int:
        """What has to stay free: nothing on a disk of its own, something where it shares one with these directories."""
        own = self.dest.parent.stat().st_dev
        return RESERVE_BYTES if any(path.exists() and path.stat().st_dev == own for path in system) else 0

    def accept(self, file: File, told: Callable[[int], None] | None = None) -> bool:
        """Give an arrived file its name if it is as published; if not, remove it."""
        place = self.arriving(file)
        if not file.is_at(place, told):
            place.unlink(missing_ok=True)
            return False
        with place.open("rb") as source:
            # The name must not outlive a power cut that the bytes do not.
            os.fsync(source.fileno())
        named = self.staging / file.path
        named.parent.mkdir(parents=True, exist_ok=True)
        place.chmod(0o644)
        place.rename(named)
        return True

    def wrong(self, directory: Path, told: Callable[[int], None]) -> list[str]:
        """The paths in `directory` that are missing, not as published, or were never published."""
        order = sorted(self.files.values(), key=lambda file: -file.size)
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            right = list(pool.map(lambda file: file.is_at(directory / file.path, told), order))
        foreign = {path.relative_to(directory).as_posix() for path in _walk(directory)} - set(self.files)
        return sorted({file.path for file, ok in zip(order, right, strict=True) if not ok} | foreign)

    def take_back(self, wrong: Iterable[str]) -> None:
        """Make the final directory an unfinished one again, without its wrong files.

        One that then holds nothing, such as an empty one made by hand, does not end a download that is under way.
        """
        # There a file with its name counts as verified, so the wrong ones go while this is not there yet.
        for path in wrong:
            (self.dest / path).unlink(missing_ok=True)
        if self.staging.exists() and not any(_walk(self.dest)):
            shutil.rmtree(self.dest)
            return
        shutil.rmtree(self.staging, ignore_errors=True)
        self.dest.rename(self.staging)
        write(self._mark, _machine())

    def publish(self) -> None:
        """Rename the directory, now whole, into place, with nothing in it but the published files."""
        shutil.rmtree(self.staging / ARRIVING)
        for directory in sorted((path for path in self.staging.rglob("*") if path.is_dir()), reverse=True):
            if not any(directory.iterdir()):
                directory.rmdir()
        os.sync()
        self.staging.rename(self.dest)

    def stamp(self) -> None:
        """Write down that all of it was verified, by this machine."""
        record = {"repo": self.repo, "revision": self.revision, **_tree(self.dest), "machine": _machine()}
        write(self.stamp_path, json.dumps({**record, "verified_at": now()}, indent=2) + "\n", lasting=True)

    def is_stamped(self) -> bool:
        """Whether this machine verified this commit here, and nothing was written to it since."""
        try:
            record = json.loads(self.stamp_path.read_text())
        except (OSError, ValueError):
            return False
        wanted = {"repo": self.repo, "revision": self.revision, **_tree(self.dest), "machine": _machine()}
        return isinstance(record, dict) and {key: record.get(key) for key in wanted} == wanted


def _machine() -> str:
    # A disk that comes from another installation is verified anew.
    try:
        return MACHINE_ID.read_text().strip()
    except FileNotFoundError:
        return ""


def _walk(directory: Path) -> Iterator[Path]:
    for root, _, names in os.walk(directory):
        yield from (Path(root, name) for name in names)


def _tree(directory: Path) -> dict[str, int]:
    """Number, bytes and time of the last change (ns) of the files below."""
    found = [path.lstat() for path in _walk(directory)]
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
    # A transfer may begin by making the file as long as it will be.
    return min(found.st_size, found.st_blocks * 512)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def write(path: Path, text: str, *, lasting: bool = False) -> None:
    """Write beside and rename, so that no reader ever sees half of it; `lasting`: over a power cut too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Always the same name: where a run is killed, the next one writes over it.
    beside = path.with_name(f".{path.name}.new")
    with beside.open("w") as file:
        file.write(text)
        file.flush()
        if lasting:
            os.fsync(file.fileno())
    beside.replace(path)
