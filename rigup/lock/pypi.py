"""What the pinned packages of a virtual environment bring along, resolved once on the control machine by uv."""

from __future__ import annotations

import subprocess
import tempfile
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

from uv import find_uv_bin

from rigup.catalog.recipe import Venv
from rigup.lock.http import Unresolved
from rigup.lock.lockfile import VenvLock

__all__ = ["UV", "index_arguments", "venv_lock"]

UV = "/usr/local/lib/rigup/uv"
"""The environment on a host that holds uv, by which engines' environments are made there."""

# The oldest glibc of the distributions that rigup knows: Debian 12's.
PLATFORM = "x86_64-manylinux_2_36"
SETTING = "pypi_index"
PATIENCE_S = 600


def index_arguments(index: str) -> list[str]:
    """Arguments that make uv use `index` alone; it refuses plain http unless the host is named."""
    parts = urlsplit(index)
    host = f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname
    return [f"--index-url={index}", *([f"--allow-insecure-host={host}"] if parts.scheme == "http" else [])]


def venv_lock(venv: Venv, index: str) -> VenvLock:
    """Every package of the environment, from wheels alone. Raises Unresolved with what uv says."""
    with tempfile.TemporaryDirectory(prefix="rigup-") as directory:
        wanted, found = Path(directory) / "requirements.in", Path(directory) / "pylock.toml"
        wanted.write_text("".join(f"{package}\n" for package in venv.packages))
        argv = [find_uv_bin(), "pip", "compile", str(wanted), "--quiet", "--no-config", "--only-binary=:all:"]
        argv += [f"--python-version={venv.python}", f"--python-platform={PLATFORM}", *index_arguments(index)]
        argv += ["--format=pylock.toml", f"--output-file={found}"]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S, stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired as error:
            raise Unresolved(SETTING, index, f"uv did not end within {PATIENCE_S} s") from error
        if done.returncode:
            reason = f"{venv.key} cannot be resolved: {done.stderr.strip()}"
            raise Unresolved(SETTING, index, reason, "change venv.packages or venv.python of the recipe")
        return VenvLock(requirements=requirements(found.read_text()))


def requirements(text: str) -> tuple[str, ...]:
    """The packages of a pylock.toml (PEP 751) as hashed requirements; uv lists the wheels that fit."""
    found = []
    for package in tomllib.loads(text)["packages"]:
        hashes = sorted(f"--hash=sha256:{wheel['hashes']['sha256']}" for wheel in package["wheels"])
        found.append(" ".join([f"{package['name']}=={package['version']}", *hashes]))
    return tuple(found)
