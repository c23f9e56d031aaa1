"""The real clients, installed from npm at the versions of package-lock.json, once for all checkouts.

To move to other versions, edit package.json and run `npm install --package-lock-only --ignore-scripts
--omit-lockfile-registry-resolved` beside it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# What npm says if it cannot reach its registry.
UNREACHABLE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH")


def node_modules() -> Path:
    """Return the directory with the clients. Skips where they cannot be installed or run."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm here (Node.js 20 has it)")
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        pytest.skip("the locked clients are programs for Linux on x86_64")
    lock = (HERE / "package-lock.json").read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rigup-test-clients"
    cache.mkdir(parents=True, exist_ok=True)
    place = cache / hashlib.sha256(lock).hexdigest()[:16]
    with (cache / "lock").open("w") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        if not place.is_dir():
            _install(npm, place)
    return place / "node_modules"


def _install(npm: str, place: Path) -> None:
    """Install into another directory first: one with its name is complete."""
    part = place.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, part)
    argv = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier"]
    done = subprocess.run(argv, cwd=part, capture_output=True, text=True)
    if done.returncode and any(word in done.stderr for word in UNREACHABLE):
        pytest.skip("npm's registry cannot be reached")
    assert done.returncode == 0, done.stderr
    part.rename(place)
