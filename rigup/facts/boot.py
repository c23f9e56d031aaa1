"""What the boot chain was built from: files made by a generator, and whether their inputs have changed since."""

from __future__ import annotations

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.facts import FactBase

__all__ = ["Outdated"]


class Outdated(FactBase[list[str]]):
    """Paths in `directory` matching the glob `pattern` that are not newer than `source`, sorted.

    Empty when there is no such path, or no `source`: nothing can be out of date with a file that is not there.
    """

    @staticmethod
    def default() -> list[str]:
        return []

    def command(self, directory: str, pattern: str, source: str) -> StringCommand:
        return StringCommand(
            "find",
            QuoteString(directory),
            "-maxdepth 1 -type f -name",
            QuoteString(pattern),
            "! -newer",
            QuoteString(source),
            "2>/dev/null || true",
        )

    def process(self, output: list[str]) -> list[str]:
        return sorted(line for line in output if line)
