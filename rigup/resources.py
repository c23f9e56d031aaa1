"""The directories of data files, in a checkout and in an installed wheel. Nothing else looks for them."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent

# A checkout has them next to the package, a wheel inside it: pyproject.toml maps one to the other.
_INSTALLED = _PACKAGE / "_data"
_ROOT = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent

FILES = _ROOT / "files"
"""What is copied to hosts."""

RECIPES = _ROOT / "recipes"
"""The catalog: recipes, and the directories `checkpoints` and `engines`."""

TASKS = _ROOT / "tasks"
"""The steps of a deploy, one module each."""

TEMPLATES = _ROOT / "templates"
"""What is rendered for hosts."""
