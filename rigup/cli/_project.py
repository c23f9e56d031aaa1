"""The project directory: the deploy files that `rigup` runs with pyinfra."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rigup.cli._hosts import add_inventory, find_host, read_inventory, use_inventory
from rigup.errors import RigupError

DEPLOY = "deploy.py"
INVENTORY = "inventory/lab.py"
REBUILD = "rebuild.py"


def require(*files: str) -> None:
    """Raise RigupError unless the working directory has all of these files."""
    if not all(Path(file).is_file() for file in files):
        raise RigupError(
            f"{Path.cwd()} has no {' and '.join(files)}",
            "change to the directory that has them; `rigup init DIR` makes a new one",
        )


def add_pyinfra_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that are passed on to pyinfra, and `--inventory`."""
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask before hosts are changed")
    parser.add_argument("-v", dest="verbose", action="count", default=0, help="print more; -vv and -vvv even more")
    parser.add_argument("--dry", action="store_true", help="change nothing")
    parser.add_argument("--data", action="append", default=[], metavar="KEY=VALUE", help="a setting for this run")
    add_inventory(parser)


def run_pyinfra(file: str, options: argparse.Namespace) -> NoReturn:
    """Become the pyinfra run of a deploy file on `options.hosts`, or on all. Raises RigupError for unknown hosts."""
    require(file, INVENTORY)
    use_inventory(options)
    # Read even without hosts: what is wrong with it is known before pyinfra starts.
    inventory = read_inventory(options)
    argv = [sys.executable, "-P", "-m", "rigup.cli._pyinfra", INVENTORY, file]
    argv += _repeated("--limit", [find_host(inventory, word).name for word in options.hosts])
    argv += _repeated("--data", options.data)
    argv += ["--dry"] if options.dry else []
    argv += ["--yes"] if options.yes else []
    argv += [f"-{'v' * options.verbose}"] if options.verbose else []
    sys.stdout.flush()
    sys.stderr.flush()
    # In place of this process: signals reach pyinfra, and its exit code is the command's. Ctrl-C waits until it can be
    # answered: while an interpreter starts, it would print a traceback.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    os.execv(sys.executable, argv)


def _repeated(option: str, values: Sequence[str]) -> list[str]:
    return [word for value in values for word in (option, value)]
