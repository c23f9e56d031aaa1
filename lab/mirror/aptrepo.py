"""Signed apt repositories, flat (NVIDIA's layout) or with `dists/` and `pool/` (Docker's)."""

import gzip
import hashlib
import lzma
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

from lab.mirror import debfile
from lab.mirror.debfile import Package
from lab.mirror.keys import Key, sign

_HASHES = {"MD5Sum": hashlib.md5, "SHA1": hashlib.sha1, "SHA256": hashlib.sha256}


@dataclass(frozen=True)
class Entry:
    """A package in a repository: its stanza is the control file plus path and hashes."""

    control: str
    path: Path


def _stanza(entry: Entry, root: Path, prefix: str, fields: Mapping[str, str] | None = None) -> str:
    content = entry.path.read_bytes()
    relative = entry.path.relative_to(root)
    description = entry.control.index("Description:")
    middle = (
        f"Filename: {prefix}{relative}\n"
        f"Size: {len(content)}\n"
        f"MD5sum: {hashlib.md5(content).hexdigest()}\n"
        f"SHA256: {hashlib.sha256(content).hexdigest()}\n"
        + "".join(f"{name}: {value}\n" for name, value in (fields or {}).items())
    )
    return entry.control[:description] + middle + entry.control[description:]


def _write_index(entries: Iterable[Entry], root: Path, directory: Path, prefix: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    text = "\n".join(_stanza(entry, root, prefix) for entry in entries).encode()
    (directory / "Packages").write_bytes(text)
    (directory / "Packages.gz").write_bytes(gzip.compress(text, mtime=0))


def _write_release(
    directory: Path, fields: Mapping[str, str], key: Key | None, more: Mapping[str, bytes] | None = None
) -> None:
    """Write Release with the hashes of the indexes there, and of `more`, which are published only compressed."""
    paths = (path for path in directory.rglob("Packages*") if path.is_file())
    indexes = {str(path.relative_to(directory)): path.read_bytes() for path in paths} | dict(more or {})
    lines = [f"{name}: {value}" for name, value in fields.items()]
    lines.append(f"Date: {formatdate(usegmt=True)}")
    for title, algorithm in _HASHES.items():
        lines.append(f"{title}:")
        for name, content in sorted(indexes.items()):
            lines.append(f" {algorithm(content).hexdigest()} {len(content):>16} {name}")
    release = directory / "Release"
    release.write_text("\n".join(lines) + "\n")
    if key is not None:
        sign(key, release)


def write_flat(directory: Path, packages: Iterable[Package], fields: Mapping[str, str], key: Key | None) -> None:
    """Write a flat repository: packages, indexes and Release in one directory; unsigned without a key."""
    entries = [Entry(package.control(), debfile.write(package, directory)) for package in packages]
    _write_index(entries, directory, directory, "./")
    _write_release(directory, fields, key)


def stanzas(packages: Iterable[Package], root: Path, pool: Path, fields: Mapping[str, str] | None = None) -> str:
    """Write packages into `pool` below `root`; return their part of an index, each with these fields of the archive."""
    entries = [Entry(package.control(), debfile.write(package, pool)) for package in packages]
    return "\n".join(_stanza(entry, root, "", fields) for entry in entries)


def write_indexes(suite: Path, indexes: Mapping[str, bytes], fields: Mapping[str, str], key: Key) -> None:
    """Write a suite from the Packages.xz of each of its components."""
    for component, index in indexes.items():
        directory = suite / component / "binary-amd64"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "Packages.xz").write_bytes(index)
    # apt fetches no index whose uncompressed form is not listed.
    plain = {f"{name}/binary-amd64/Packages": lzma.decompress(index) for name, index in indexes.items()}
    _write_release(suite, fields, key, plain)


def write_suite(
    root: Path, codename: str, component: str, packages: Iterable[Package], fields: Mapping[str, str], key: Key
) -> None:
    """Write one suite for amd64 below `dists/`, its packages in `dists/SUITE/pool/` as Docker has them."""
    suite = root / "dists" / codename
    pool = suite / "pool" / component / "amd64"
    entries = [Entry(package.control(), debfile.write(package, pool)) for package in packages]
    _write_index(entries, root, suite / component / "binary-amd64", "")
    named = {"Suite": codename, "Codename": codename, "Architectures": "amd64", "Components": component}
    _write_release(suite, {**fields, **named}, key)
