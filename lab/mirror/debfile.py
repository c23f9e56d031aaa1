"""Write Debian packages without tools: an `ar` archive of two tar archives (deb(5)), the same bytes every time."""

import hashlib
import io
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

EPOCH = 1767225600
"""The timestamp of every file in a package (2026-01-01), so that the same content gives the same package."""

MAINTAINER = "rigup lab <lab@rigup.invalid>"
_RELATIONS = ("Depends", "Recommends", "Provides", "Conflicts", "Breaks", "Replaces", "Enhances")


@dataclass(frozen=True)
class File:
    """A file in a package; `path` without the leading slash."""

    path: str
    content: bytes = b""
    mode: int = 0o644
    link: str | None = None
    """The target of a symbolic link."""


@dataclass(frozen=True)
class Package:
    """A binary package. `relations` holds the fields `Depends`, `Provides` and so on."""

    name: str
    version: str
    summary: str
    architecture: str = "amd64"
    section: str = "non-free/libs"
    source: str = ""
    relations: Mapping[str, str] = field(default_factory=dict)
    files: tuple[File, ...] = ()
    scripts: Mapping[str, str] = field(default_factory=dict)
    """Maintainer scripts: postinst, prerm and so on."""

    @property
    def filename(self) -> str:
        """The file name that apt repositories use: the version without its epoch."""
        return f"{self.name}_{self.version.partition(':')[2] or self.version}_{self.architecture}.deb"

    def control(self) -> str:
        """Return the package's control stanza. Raises ValueError for an unknown relation field."""
        if unknown := set(self.relations) - set(_RELATIONS):
            raise ValueError(f"{self.name}: unknown control field: {', '.join(sorted(unknown))}")
        size = sum(-(-len(file.content) // 1024) for file in self.files)
        lines = [f"Package: {self.name}"]
        if self.source:
            lines.append(f"Source: {self.source}")
        lines += [
            f"Version: {self.version}",
            f"Architecture: {self.architecture}",
            f"Maintainer: {MAINTAINER}",
            f"Installed-Size: {size}",
            f"Section: {self.section}",
            "Priority: optional",
        ]
        lines += [f"{name}: {self.relations[name]}" for name in _RELATIONS if self.relations.get(name)]
        lines.append(f"Description: {self.summary}")
        return "\n".join(lines) + "\n"


def _tar(files: Iterable[File]) -> bytes:
    buffer = io.BytesIO()
    made: set[str] = set()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for file in sorted(files, key=lambda file: file.path):
            for parent in reversed(PurePosixPath(file.path).parents):
                name = "." if str(parent) == "." else f"./{parent}"
                if name not in made:
                    made.add(name)
                    directory = tarfile.TarInfo(f"{name}/")
                    directory.type, directory.mode, directory.mtime = tarfile.DIRTYPE, 0o755, EPOCH
                    directory.uname = directory.gname = "root"
                    archive.addfile(directory)
            entry = tarfile.TarInfo(f"./{file.path}")
            entry.mode, entry.mtime, entry.uname, entry.gname = file.mode, EPOCH, "root", "root"
            if file.link is None:
                entry.size = len(file.content)
                archive.addfile(entry, io.BytesIO(file.content))
            else:
                entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, file.link, 0o777
                archive.addfile(entry)
    return buffer.getvalue()


def _control_files(package: Package) -> list[File]:
    regular = [file for file in package.files if file.link is None]
    sums = "".join(f"{hashlib.md5(file.content).hexdigest()}  {file.path}\n" for file in regular)
    # As debhelper does: every regular file below /etc is a configuration file (deb-conffiles(5)).
    conffiles = "".join(f"/{file.path}\n" for file in regular if file.path.startswith("etc/"))
    files = [File("control", package.control().encode()), File("md5sums", sums.encode())]
    if conffiles:
        files.append(File("conffiles", conffiles.encode()))
    return files + [File(name, text.encode(), 0o755) for name, text in package.scripts.items()]


def _member(name: str, content: bytes) -> bytes:
    header = f"{name:<16}{EPOCH:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n"
    return header.encode() + content + b"\n" * (len(content) % 2)


def write(package: Package, directory: Path) -> Path:
    """Write the package's `.deb` into a directory and return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / package.filename
    members = {"debian-binary": b"2.0\n", "control.tar": _tar(_control_files(package)), "data.tar": _tar(package.files)}
    # Several labs build the same packages into one cache: each writes a file of its own and renames it.
    with tempfile.TemporaryDirectory(prefix=".new-", dir=directory) as scratch:
        beside = Path(scratch, path.name)
        beside.write_bytes(b"!<arch>\n" + b"".join(_member(name, content) for name, content in members.items()))
        beside.replace(path)
    return path
