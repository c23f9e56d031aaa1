"""The data files, in a checkout and in an installed wheel. Nothing else looks for them."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent

# A checkout has them next to the package, a wheel inside it: pyproject.toml maps one to the other.
_INSTALLED = _PACKAGE / "_data"

ROOT = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent
"""Where all of them are; on Python's path, `tasks` (the steps of a deploy) can be imported from here."""

AUDIT = ROOT / "tests" / "audit"
"""The checks of the audit, one file per step."""

DEPLOY = ROOT / "deploy.py"
"""The steps of a deploy, in their order."""

FILES = ROOT / "files"
"""What is copied to hosts."""

REBUILD = ROOT / "rebuild.py"
"""The reset of a host."""

RECIPES = ROOT / "recipes"
"""The catalog: recipes, and the directories `checkpoints` and `engines`."""

TEMPLATES = ROOT / "templates"
"""What is rendered for hosts, and in `project` for the user's project directories."""
