"""rigup as its users have it: the wheel in a virtual environment of its own, with only what the wheel asks for.

The dependencies are links to the packages of this environment, so that neither a network nor much time is needed.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Collection, Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]


class Installed:
    """An installation. `site` is the directory of its packages."""

    def __init__(self, directory: Path) -> None:
        self.bin = directory / "bin"
        self.site = directory / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"

    def run(
        self, *argv: str | Path, cwd: Path, stdin: str = "", code: int = 0, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run one of its programs, away from the checkout. Fails unless it exits with `code`."""
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "RIGUP", "VIRTUAL"))
        }
        program, *arguments = argv
        done = subprocess.run(
            [self.bin / program, *arguments],
            cwd=cwd,
            env=kept | environment,
            input=stdin,
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done


def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Return the installation; it is made once for all processes of a test run."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    directory = shared / "installed-rigup"
    with (shared / "installed-rigup.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "complete").exists():
            _install(directory)
            (directory / "complete").touch()
    return Installed(directory)


def _install(directory: Path) -> None:
    wheels = directory / "wheels"
    _checked(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", wheels)
    (wheel,) = wheels.glob("*.whl")
    _checked(sys.executable, "-m", "venv", "--without-pip", directory)
    made = Installed(directory)
    python, uv = made.bin / "python", Path(sys.executable).with_name("uv")
    _checked(uv, "pip", "install", "--quiet", "--offline", "--no-deps", "--no-cache", "--python", python, wheel)
    # Of somebody who keeps the environment in a project of their own: not for the audit.
    (directory / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    (metadata,) = made.site.glob("rigup-*.dist-info")
    links = {
        name: Path(str(needed.locate_file(name)))
        for needed in _needed(Distribution.at(metadata), set())
        for name in {file.parts[0] for file in needed.files or ()} - {"..", "__pycache__"}
    }
    for name, target in links.items():
        (made.site / name).symlink_to(target)


def _needed(package: Distribution, known: set[str], extras: Collection[str] = ()) -> Iterator[Distribution]:
    """Yield the packages that a package needs with these extras, and what those need."""
    for requirement in map(Requirement, package.requires or ()):
        wanted = requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in ("", *extras))
        if wanted and str(requirement) not in known:
            known.add(str(requirement))
            found = distribution(requirement.name)
            yield found
            yield from _needed(found, known, requirement.extras)


def _checked(*argv: str | Path) -> None:
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
