"""The argument parser of every command: exit code 1 for wrong usage, and exit codes explained in the help."""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn, TypeAlias


class Parser(argparse.ArgumentParser):
    """A parser whose help explains the exit codes; most commands have only these two."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**{"epilog": "Exit codes: 0 success, 1 failure.", **arguments})

    def error(self, message: str) -> NoReturn:
        """Exit with 1 for wrong usage: 2 is a result, such as pending changes."""
        self.print_usage(sys.stderr)
        self.exit(1, f"{self.prog}: {message}\n")


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
"""What each command module's `register` adds its parser to."""
