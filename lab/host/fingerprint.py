"""Compare a host's disk with itself: which files exist and what they contain."""

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

# Content that changes on an idle host, and the stores of images and their containers.
VOLATILE = (
    *("dev", "proc", "run", "sys", "tmp", "var/tmp", "var/log"),
    *("var/cache/apt/pkgcache.bin", "var/cache/apt/srcpkgcache.bin"),
    *("var/lib/containerd", "var/lib/docker", "var/lib/lastlog", "var/lib/wtmpdb"),
    *("var/lib/systemd/random-seed", "var/lib/systemd/timers"),
    *("root/.ansible", "home/ops/.ansible"),
)

# Larger files are compared by size and modification time: hashing checkpoints would take minutes.
_HASHED_BYTES = 16 << 20


def fingerprints(root: Path) -> Iterator[tuple[str, str]]:
    """Yield every path under `root` outside VOLATILE, with its kind, mode, owner, and content hash or link target."""
    pending = [root]
    while pending:
        for entry in os.scandir(pending.pop()):
            path = Path(entry.path)
            name = str(path.relative_to(root))
            if name in VOLATILE:
                continue
            info = entry.stat(follow_symlinks=False)
            found = f"{stat.filemode(info.st_mode)} {info.st_uid}:{info.st_gid}"
            if entry.is_symlink():
                found += f" -> {os.readlink(path)}"
            elif entry.is_dir(follow_symlinks=False):
                pending.append(path)
            elif stat.S_ISREG(info.st_mode) and info.st_size > _HASHED_BYTES:
                found += f" {info.st_size} bytes of {info.st_mtime_ns}"
            elif stat.S_ISREG(info.st_mode):
                found += f" {hashlib.sha256(path.read_bytes()).hexdigest()}"
            yield name, found
