"""`rigup version`: which rigup this is, on what it runs, and where its data files are."""

from __future__ import annotations

import argparse
import platform
import sys
from importlib.metadata import version
from pathlib import Path

from rigup import resources
from rigup.cli._output import print_json
from rigup.cli._parser import Commands, add_json
from rigup.cli._table import Table, show

JSON = {
    "rigup": "its version",
    "pyinfra": "its version",
    "python": "its version",
    "interpreter": "the path of Python",
    "package": "the directory of the package",
    "files": "the directory of what is copied to hosts",
    "recipes": "the directory of the catalog",
    "tasks": "the directory of the steps",
    "templates": "the directory of the templates",
}


def register(commands: Commands) -> None:
    """Add `rigup version`."""
    parser = commands.add_parser(
        "version", help="show the versions of rigup, pyinfra and Python, and where its data is"
    )
    add_json(parser, JSON)
    parser.set_defaults(run=_version)


def _version(options: argparse.Namespace) -> int:
    found = {
        "rigup": version("rigup"),
        "pyinfra": version("pyinfra"),
        "python": platform.python_version(),
        "interpreter": sys.executable,
        "package": str(Path(resources.__file__).resolve().parent),
        "files": str(resources.FILES),
        "recipes": str(resources.RECIPES),
        "tasks": str(resources.ROOT / "tasks"),
        "templates": str(resources.TEMPLATES),
    }
    if options.json:
        print_json(found)
    else:
        show(Table("what", "which", rows=found.items(), has_header=False))
    return 0
