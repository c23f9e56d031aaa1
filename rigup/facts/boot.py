"""What the boot chain was built from: files made by a generator, and whether their inputs have changed since."""

from __future__ import annotations

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.facts import FactBase

from rigup.facts._reading import reading

__all__ = ["BootMenu", "Outdated", "parse_boot_menu"]


def parse_boot_menu(lines: list[str]) -> list[list[str]]:
    """The kernel's arguments of each entry, from grub.cfg's `linux` lines; those for recovery are left out."""
    entries = [line.split()[2:] for line in lines]
    return [words for words in entries if "single" not in words and "recovery" not in words]


class BootMenu(FactBase[list[list[str]]]):
    """The kernel's arguments of each entry of GRUB's menu; empty where there is no such menu."""

    @staticmethod
    def default() -> list[list[str]]:
        return []

    def command(self) -> str:
        return r"grep -E '^\s*linux\s' /boot/grub/grub.cfg 2>/dev/null || true"

    @reading
    def process(self, output: list[str]) -> list[list[str]]:
        return parse_boot_menu(output)


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
