"""Resolve the dependencies of a virtual environment's pinned packages, with uv on the control machine."""

from __future__ import annotations

import subprocess
import tempfile
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

from uv import find_uv_bin

from rigup.catalog.recipe_parts import Venv
from rigup.lock.http import Unresolved
from rigup.lock.lockfile import VenvLock

# The oldest glibc of the supported distributions: Debian 12's.
PLATFORM = "x86_64-manylinux_2_36"
SETTING = "pypi_index"
TIMEOUT = 600
"""Seconds that uv may take."""


def index_arguments(index: str) -> list[str]:
    """Return the arguments that make uv use only `index`; uv refuses plain http unless the host is named."""
    parts = urlsplit(index)
    host = f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname
    return [f"--index-url={index}", *([f"--allow-insecure-host={host}"] if parts.scheme == "http" else [])]


def venv_lock(venv: Venv, index: str) -> VenvLock:
    """Return every package of the environment, wheels only. Raises Unresolved with uv's own message."""
    with tempfile.TemporaryDirectory(prefix="rigup-") as directory:
        requested, found = Path(directory) / "requirements.in", Path(directory) / "pylock.toml"
        requested.write_text("".join(f"{package}\n" for package in venv.packages))
        argv = [find_uv_bin(), "pip", "compile", str(requested), "--quiet", "--no-config", "--only-binary=:all:"]
        argv += [f"--python-version={venv.python}", f"--python-platform={PLATFORM}", *index_arguments(index)]
        argv += ["--format=pylock.toml", f"--output-file={found}"]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired as error:
            raise Unresolved(
                SETTING, index, f"uv timed out after {TIMEOUT} s", "check that the index answers"
            ) from error
        if done.returncode:
            reason = f"{venv.key} cannot be resolved: {done.stderr.strip()}"
            raise Unresolved(SETTING, index, reason, "change venv.packages or venv.python of the recipe")
        return VenvLock(requirements=requirements(found.read_text()))


def requirements(text: str) -> tuple[str, ...]:
    """Return the packages of a pylock.toml (PEP 751) as hashed requirements; uv lists only wheels that fit."""
    found = []
    for package in tomllib.loads(text)["packages"]:
        hashes = sorted(f"--hash=sha256:{wheel['hashes']['sha256']}" for wheel in package["wheels"])
        found.append(" ".join([f"{package['name']}=={package['version']}", *hashes]))
    return tuple(found)
