"""Write a project directory: complete, with its git repository, or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from rigup.errors import RigupError
from rigup.templates import filled

FILES = {
    "deploy.py": "from rigup.project import deploy; deploy()\n",
    "rebuild.py": "from rigup.project import rebuild; rebuild()\n",
    "group_data/all.py": "from rigup.project import defaults; globals().update(defaults())\n",
    "inventory/lab.py": "from rigup.project import hosts; lab = hosts(__file__)\n",
    ".gitignore": "/.rigup/\n/pyinfra-debug.log\n__pycache__/\n\n# Secrets\n.env\n*.key\n*.pem\nid_*\nsecrets/\n",
}
"""What every project has; `rigup.project` explains the Python files."""

# Hooks of git set these.
ANOTHER_REPOSITORY = ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE")


def require_room(directory: Path) -> None:
    """Raise RigupError if there is something in the directory already, or a file in its place."""
    if directory.is_dir():
        if not any(directory.iterdir()):
            return
        remedy = "choose another directory"
        if (directory / "inventory/lab.yaml").is_file():
            remedy += f", or add the hosts to {directory}/inventory/lab.yaml"
        raise RigupError(f"{directory} is not empty", remedy)
    if directory.exists() or directory.is_symlink():
        raise RigupError(f"{directory} is not a directory", "choose another name")


def create(directory: Path, lab_yaml: str) -> str:
    """Write the project with this inventory. Returns why there is no commit; "" if there is one.

    Raises RigupError if it cannot be written.
    """
    place = directory.resolve()
    texts = {
        **FILES,
        "README.md": filled("project/README.md.j2", name=place.name),
        "inventory/lab.yaml": lab_yaml,
    }
    staged = place.with_name(f".{place.name}.rigup-new-{secrets.token_hex(4)}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write(staged, texts)
            missing = _commit(staged)
            # Fails if somebody has put something there meanwhile.
            staged.rename(place)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    except OSError as error:
        raise RigupError(f"{directory} cannot be written: {error.strerror}", "nothing was left there") from error
    return missing


def _write(directory: Path, texts: Mapping[str, str]) -> None:
    directory.mkdir()
    for name, text in texts.items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _commit(directory: Path) -> str:
    """Make a git repository with one commit. Returns why there is none; "" if there is one."""
    environment = {name: value for name, value in os.environ.items() if name not in ANOTHER_REPOSITORY}
    message = f"Begin with rigup {version('rigup')}"
    steps = (
        ("init", "--quiet"),
        ("add", "--all"),
        # Without it, git makes up an identity from the names of user and machine.
        ("-c", "user.useConfigOnly=true", "commit", "--quiet", "-m", message),
    )
    for step in steps:
        try:
            done = subprocess.run(["git", *step], cwd=directory, env=environment, capture_output=True, text=True)
        except FileNotFoundError:
            return "git is not installed, so this is not a git repository yet: install it and run `git init` there"
        if done.returncode:
            if "commit" in step and "user.email" in done.stderr:
                return (
                    "git does not know your name and address, so nothing is committed yet: set them with "
                    "`git config --global user.name NAME` and `user.email ADDRESS`, then commit"
                )
            words = done.stderr.strip().splitlines() or [f"`git {step[0]}` failed"]
            return f"git: {words[-1]}; nothing is committed yet"
    return ""
