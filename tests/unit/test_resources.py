"""A wheel brings its data files along."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rigup.resources import FILES, RECIPES, TASKS, TEMPLATES

ROOT = Path(__file__).resolve().parents[2]


def run(*argv: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(argv, cwd=cwd, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory into which the wheel of this checkout is installed, without the network."""
    directory = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", directory)
    (wheel,) = directory.glob("*.whl")
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", directory / "site", wheel)
    return directory / "site"


def names(directory: Path) -> set[str]:
    kept = (path for path in directory.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(directory)) for path in kept}


@pytest.mark.parametrize("directory", [FILES, RECIPES, TASKS, TEMPLATES], ids=lambda path: path.name)
def test_a_wheel_has_every_data_file_of_the_checkout(installed: Path, directory: Path) -> None:
    assert directory.parent == ROOT
    assert names(installed / "rigup" / "_data" / directory.name) == names(directory)


def test_rigup_finds_the_data_of_the_wheel_that_it_was_installed_from(installed: Path, tmp_path: Path) -> None:
    where = {"cwd": tmp_path, "PYTHONPATH": str(installed)}
    found = run(sys.executable, "-c", "from rigup.resources import RECIPES; print(RECIPES)", **where)
    assert Path(found.strip()) == installed / "rigup" / "_data" / "recipes"

    listed = run(installed / "bin" / "rigup", "recipes", "--all", **where)
    shown = {line.split()[0] for line in listed.splitlines() if line.strip()}
    assert {path.stem for path in RECIPES.glob("*.yaml")} <= shown

    # A unit comes from a template.
    assert "ExecStart=" in run(installed / "bin" / "rigup", "show", "vllm-nvfp4-cu130", "--as", "systemd", **where)
