"""Layers of a container image: deterministic archives and their digests."""

import hashlib
import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.registry.base import EPOCH

# Uncompressed on purpose: for a lab host, unpacking gzip costs more than transferring more bytes over the bridge.
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True)
class Blob:
    """Content that a registry stores by its digest."""

    digest: str
    size: int

    def descriptor(self, media_type: str) -> dict[str, object]:
        """Return the blob's entry in a manifest."""
        return {"mediaType": media_type, "digest": self.digest, "size": self.size}


def of_bytes(content: bytes) -> Blob:
    """Return the blob with this content."""
    return Blob(f"sha256:{hashlib.sha256(content).hexdigest()}", len(content))


def of_file(path: Path) -> Blob:
    """Return the blob with this file's content."""
    with path.open("rb") as content:
        return Blob(f"sha256:{hashlib.file_digest(content, 'sha256').hexdigest()}", path.stat().st_size)


def _member(name: str, kind: bytes, mode: int, size: int = 0) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.size, member.mtime = kind, mode, size, EPOCH
    return member


def write_tree(tree: Path, place: str, target: Path) -> None:
    """Write a layer with the tree at `place`: the same bytes for the same files, whoever owns them."""
    with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as layer:
        for path in sorted(tree.rglob("*")):
            name = f"{place}/{path.relative_to(tree)}"
            if path.is_symlink():
                member = _member(name, tarfile.SYMTYPE, 0o777)
                member.linkname = str(path.readlink())
                layer.addfile(member)
            elif path.is_dir():
                layer.addfile(_member(name, tarfile.DIRTYPE, 0o755))
            else:
                state = path.stat()
                mode = 0o755 if state.st_mode & 0o100 else 0o644
                with path.open("rb") as content:
                    layer.addfile(_member(name, tarfile.REGTYPE, mode, state.st_size), content)


def write_files(files: Mapping[str, tuple[bytes, int]], target: Path) -> None:
    """Write a layer of a few files, given as path to content and mode."""
    with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as layer:
        for name, (content, mode) in sorted(files.items()):
            layer.addfile(_member(name, tarfile.REGTYPE, mode, len(content)), io.BytesIO(content))
