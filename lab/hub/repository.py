"""A repository of the hub: its files with their checksums, and the commit derived from them."""

import hashlib
import json
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any


def git_blob(content: bytes) -> str:
    """Return the git object id of a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class Entry:
    """One file of a repository."""

    path: str
    source: Path
    size: int
    oid: str
    """Git object id of the file, or of its pointer if Git LFS stores the file."""
    sha256: str | None
    """The ETag of an LFS file; None for others."""
    pointer_size: int

    @property
    def etag(self) -> str:
        """The ETag that the hub announces."""
        return self.sha256 or self.oid

    def listing(self) -> dict[str, Any]:
        """Return the file as the hub's tree lists it."""
        row: dict[str, Any] = {"type": "file", "oid": self.oid, "size": self.size, "path": self.path}
        if self.sha256:
            row["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": self.pointer_size}
        return row

    def sibling(self, *, blobs: bool) -> dict[str, Any]:
        """Return the file as the hub's model info lists it, with sizes and checksums if `blobs`."""
        row: dict[str, Any] = {"rfilename": self.path}
        if blobs:
            row |= {"size": self.size, "blobId": self.oid}
            if self.sha256:
                row["lfs"] = {"sha256": self.sha256, "size": self.size, "pointerSize": self.pointer_size}
        return row


def _entry(source: Path, path: str, *, large: bool) -> Entry:
    content = source.read_bytes()
    if not large:
        return Entry(path, source, len(content), git_blob(content), None, 0)
    sha256 = hashlib.sha256(content).hexdigest()
    # The text that Git stores instead of the file (git-lfs, docs/spec.md).
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n".encode()
    return Entry(path, source, len(content), git_blob(pointer), sha256, len(pointer))


@dataclass(frozen=True)
class Repository:
    """A model repository with one commit, on branch `main`: the content of a folder."""

    name: str
    folder: Path
    token: str | None = None
    """If set, the repository is gated: its files require this token."""
    pinned: str | None = None
    """The commit, if a recipe has the real one; otherwise it is derived from the files."""

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """The files by path. `.gitattributes` says which are stored by Git LFS, as on the real hub."""
        attributes = self.folder / ".gitattributes"
        lines = attributes.read_text().splitlines() if attributes.exists() else []
        patterns = [line.split()[0] for line in lines if "filter=lfs" in line.split()]
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        found = {}
        for source in paths:
            path = source.relative_to(self.folder).as_posix()
            found[path] = _entry(source, path, large=any(fnmatch(source.name, pattern) for pattern in patterns))
        return found

    @cached_property
    def commit(self) -> str:
        """40 hex digits that change with any file, unless pinned."""
        if self.pinned:
            return self.pinned
        listing = [entry.listing() for entry in self.entries.values()]
        return hashlib.sha1(json.dumps([self.name, listing], sort_keys=True).encode()).hexdigest()

    def resolves(self, revision: str) -> bool:
        """Whether the revision names the repository's only commit."""
        return revision in ("main", "refs/heads/main", self.commit)

    def info(self, *, blobs: bool) -> dict[str, Any]:
        """Return the answer to `GET /api/models/...`."""
        owner = self.name.partition("/")[0]
        return {
            "_id": git_blob(self.name.encode())[:24],
            "id": self.name,
            "modelId": self.name,
            "author": owner,
            "sha": self.commit,
            "private": False,
            "gated": "manual" if self.token else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            # What the lab serves are miniatures, which were never trained; rigup's lock records this tag.
            "tags": ["random-weights"],
            "library_name": "Model Optimizer",
            "createdAt": "2026-02-16T00:00:00.000Z",
            "lastModified": "2026-02-16T00:00:00.000Z",
            "usedStorage": sum(entry.size for entry in self.entries.values()),
            "siblings": [entry.sibling(blobs=blobs) for entry in self.entries.values()],
        }
