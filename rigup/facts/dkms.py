"""How far DKMS is with a kernel module that it builds now."""

from __future__ import annotations

from collections.abc import Sequence

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.facts import FactBase

from rigup.facts.reading import reading
from rigup.text import duration

MARK = "--- building"
TREE = "/var/lib/dkms"


def parse_builds(lines: Sequence[str]) -> list[str]:
    """Parse three lines for each build: MARK with its log and when that was made and written, the number of compiled
    files, and a dot for each source.

    Returns a line for each: its module, how many files are compiled, the rate and the time left.
    """
    found = []
    for at, line in enumerate(lines):
        if line.startswith(f"{MARK} ") and at + 2 < len(lines):
            path, made, written = line.rsplit(" ", 2)
            module = " ".join(path.split("/")[-4:-2])
            # A file system may not know when a file was made.
            seconds = int(written) - int(made) if int(made) else 0
            found.append(_line(module, int(lines[at + 1]), len(lines[at + 2]), seconds))
    return found


def _line(module: str, compiled: int, sources: int, seconds: int) -> str:
    """Return how far a build is after so many seconds. Most of the sources are compiled, not necessarily all."""
    parts = [f"building {module}: {compiled} of about {max(compiled, sources)} files"]
    if 0 < compiled < sources and seconds > 0:
        rate = compiled / seconds
        parts += [f"{rate:.1f} files/s", f"about {duration((sources - compiled) / rate)} left"]
    return ", ".join(parts)


class DkmsBuilds(FactBase[list[str]]):
    """A line for each kernel module that DKMS builds now: its log in the tree of DKMS was written just now."""

    @staticmethod
    def default() -> list[str]:
        return []

    def command(self, tree: str = TREE) -> StringCommand:
        # make prints a line for each file that it compiles. A kernel's build makes the .mod.c files itself.
        return StringCommand(
            "find", QuoteString(tree), "-mindepth 4 -maxdepth 4 -path '*/build/make.log' -mmin -2",
            f"-exec stat --printf '{MARK} %n %W %Y\\n' -- {{}} ';'",
            "'(' -exec grep -cF -e 'CC [M]' -- {} ';' -o -true ')'",
            "-execdir find . -name '*.c' ! -name '*.mod.c' ! -path './conftest*' -printf . ';' -printf '\\n'",
            "2>/dev/null || true",
        )  # fmt: skip

    @reading
    def process(self, output: list[str]) -> list[str]:
        return parse_builds(output)
