"""The argument parser of every command: exit code 1 for wrong usage, similar names, exit codes and JSON in the help."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any, NoReturn, TypeAlias

from rigup.errors import near


class Parser(argparse.ArgumentParser):
    """A parser whose help explains the exit codes; most commands have only these two.

    `json_keys` are the keys of the object that `--json` prints, and what each contains; empty without that option.
    """

    json_keys: Mapping[str, str]

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**{"epilog": "Exit codes: 0 success, 1 failure.", **arguments})
        self.json_keys = {}

    def error(self, message: str) -> NoReturn:
        """Exit with 1 for wrong usage: 2 is a result, such as pending changes."""
        self.print_usage(sys.stderr)
        self.exit(1, f"{self.prog}: {message}\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the arguments; exit with the similar options if there is an unknown one."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            word = unknown[0].partition("=")[0]
            kind = "option" if word.startswith("-") else "argument"
            self.error(f"unknown {kind} {word}{_meant(word, self._option_string_actions)}")
        return found, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a value that is not one of the choices, with the similar ones."""
        if action.choices is not None and value not in action.choices:
            known = [str(each) for each in action.choices]
            meant = _meant(str(value), known) or f": known are {', '.join(known)}"
            raise argparse.ArgumentError(action, f"unknown value {value!r}{meant}")


def _meant(word: str, known: Any) -> str:
    similar = " or ".join(f"`{each}`" for each in near(word, known))
    return f": did you mean {similar}?" if similar else ""


def add_json(parser: Parser, keys: Mapping[str, str], group: argparse._ActionsContainer | None = None) -> None:
    """Add `--json`, which prints one object with these keys; the values say what each contains."""
    parser.json_keys = keys
    (group or parser).add_argument("--json", action="store_true", help=f"print a JSON object: {', '.join(keys)}")


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
"""What each command module's `register` adds its parser to."""
