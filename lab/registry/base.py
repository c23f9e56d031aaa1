"""The bottom layer of the images: a minimal Debian 12 with Python 3.11, as an archive without device nodes."""

import hashlib
import io
import subprocess
import tarfile
import tempfile
from pathlib import Path

from lab.errors import LabError
from lab.settings import CACHE

SUITE = "bookworm"
PACKAGES = ("ca-certificates", "libnuma1", "libstdc++6", "python3")
"""xet's client requires certificates; vLLM and torch require the libraries, their wheels this Python."""

EPOCH = 1771545600
"""2026-02-20 00:00 UTC, the timestamp of everything in the image."""

_LEFT_OUT = ("dev/", "var/cache/apt/", "var/lib/apt/lists/", "var/log/")

_FORM = 1
"""Increment when `build` makes something else of the same settings."""


def key() -> str:
    """Return a hash of the inputs of `build`."""
    return hashlib.sha256(repr((_FORM, SUITE, PACKAGES, EPOCH, _LEFT_OUT)).encode()).hexdigest()[:16]


def build() -> Path:
    """Return the layer's archive; build it from Debian's packages if the cache lacks it. Raises LabError."""
    archive = CACHE / "image" / f"base-{key()}.tar"
    if archive.exists():
        return archive
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=archive.parent) as beside:
        raw = Path(beside) / "raw.tar"
        documentation = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")]
        options = ["--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}", *documentation]
        command = ["mmdebstrap", *options, SUITE, str(raw)]
        result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        if result.returncode != 0:
            raise LabError(f"mmdebstrap could not build the image's Debian:\n{result.stderr.strip()[-2000:]}")
        made = Path(beside) / "layer.tar"
        rewrite(raw, made)
        made.rename(archive)
    return archive


def rewrite(raw: Path, target: Path) -> None:
    """Write a layer from mmdebstrap's archive: without files that a container does not need, all with one timestamp."""
    with tarfile.open(raw) as source, tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as layer:
        for member in source:
            member.name = member.name.removeprefix("./").removeprefix(".")
            if not member.name or member.name.startswith(_LEFT_OUT):
                continue
            if member.islnk():
                member.linkname = member.linkname.removeprefix("./")
            member.mtime = EPOCH
            member.pax_headers = {}
            content = source.extractfile(member) if member.isreg() else None
            if content and member.name.endswith(".pyc"):
                content = io.BytesIO(_of_epoch(content.read()))
            layer.addfile(member, content)


def _of_epoch(compiled: bytes) -> bytes:
    """Return bytecode with EPOCH as its source's time (PEP 552), or every start of Python would recompile it."""
    by_time = compiled[4:8] == bytes(4)
    return compiled[:8] + EPOCH.to_bytes(4, "little") + compiled[12:] if by_time else compiled
