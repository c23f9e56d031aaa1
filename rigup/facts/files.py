"""Files on a host: their state and their text."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.facts import FactBase

from rigup.facts.reading import ONE_LINE_EACH, Value, reading
from rigup.host_config import CLOSED

PRESENT = "--- present"
SUMS = "--- sums"


@dataclass(frozen=True)
class FileState(Value):
    """A file's state: `kind` as stat(1) names it (`regular file`, `symbolic link`, ...), `mode` in octal digits without
    a leading zero."""

    kind: str
    mode: str
    user: str
    group: str
    sha256: str = ""

    @property
    def is_regular(self) -> bool:
        return self.kind in ("regular file", "regular empty file")


def parse_file_info(lines: list[str]) -> FileState | None:
    """Parse `stat` and `sha256sum`; None if the path does not exist."""
    if not lines:
        return None
    kind, mode, user, group = lines[0].split("|")
    # If sha256sum escapes special characters in the name, it puts a backslash before the sum.
    sha256 = lines[1].split()[0].lstrip("\\") if len(lines) > 1 else ""
    return FileState(kind, mode, user, group, sha256)


def parse_file_text(lines: list[str]) -> str | None:
    """Return the text after the marker; None if there is no marker, because there is no file."""
    if not lines or lines[0] != PRESENT:
        return None
    return "".join(f"{line}\n" for line in lines[1:])


def parse_tree(lines: list[str]) -> dict[str, FileState]:
    """Parse lines of `stat` and, after the marker, of `sha256sum`; the names begin with `./`."""
    at = lines.index(SUMS)
    sums = {match[2]: match[1] for line in lines[at + 1 :] if (match := re.fullmatch(r"([0-9a-f]{64})  \./(.*)", line))}
    found = [match for line in lines[:at] if (match := re.fullmatch(r"([^|]*)\|(\w+)\|(.+)\|(.+)\|\./(.*)", line))]
    return {match[5]: FileState(match[1], match[2], match[3], match[4], sums.get(match[5], "")) for match in found}


class FileInfo(FactBase[FileState | None]):
    """The state of the file `path`, or None. A symbolic link is not followed."""

    @staticmethod
    def default() -> None:
        return None

    def command(self, path: str) -> StringCommand:
        quoted = QuoteString(path)
        return StringCommand(
            "stat -c '%F|%a|%U|%G' --", quoted, "2>/dev/null && sha256sum --", quoted, "2>/dev/null || true"
        )

    @reading
    def process(self, output: list[str]) -> FileState | None:
        return parse_file_info(output)


class FileText(FactBase[str | None]):
    """The text of the file `path` with each line ended, or None if there is no file. For small text files."""

    @staticmethod
    def default() -> None:
        return None

    def command(self, path: str) -> StringCommand:
        quoted = QuoteString(path)
        return StringCommand("test -f", quoted, f"&& echo '{PRESENT}' && cat --", quoted, "2>/dev/null || true")

    @reading
    def process(self, output: list[str]) -> str | None:
        return parse_file_text(output)


class Closed(FactBase[list[str]]):
    """The first paths, at most three, that other users cannot read, at and below `path` down to `depth` levels."""

    @staticmethod
    def default() -> list[str]:
        return []

    def command(self, path: str, depth: int) -> StringCommand:
        return StringCommand(
            "find", QuoteString(path), f"-maxdepth {int(depth)} {CLOSED} -print0", ONE_LINE_EACH, "| head -n 3"
        )

    @reading
    def process(self, output: list[str]) -> list[str]:
        return output


class Tree(FactBase[dict[str, FileState]]):
    """Everything below the directory `path`, by path relative to it; nothing if there is no directory."""

    @staticmethod
    def default() -> dict[str, FileState]:
        return {}

    def command(self, path: str) -> StringCommand:
        # `path` itself may be a link.
        return StringCommand(
            "( cd",
            QuoteString(path),
            "2>/dev/null && find . -mindepth 1 -exec stat --printf '%F|%a|%U|%G|%n\\0' -- {} +",
            ONE_LINE_EACH,
            f"&& echo '{SUMS}' && find . -type f -exec sha256sum -z -- {{}} +",
            ONE_LINE_EACH,
            f") || echo '{SUMS}'",
        )

    @reading
    def process(self, output: list[str]) -> dict[str, FileState]:
        return parse_tree(output)
