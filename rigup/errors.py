"""The errors that rigup reports to its user.

A `Finding` is about something written: a file, a line, a key. A `Problem` is about a host: what was checked there, and
what was found. Both name a remedy, and both are collected: one error contains all of them.
"""

from __future__ import annotations

import difflib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rigup.text import printable


class RigupError(Exception):
    """An error that the user can act on.

    `message` says what is wrong and where, `remedy` what to do. `str(error)` is both, separated by a colon.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        self.message, self.remedy = message, remedy
        super().__init__(f"{message}: {remedy}" if remedy else message)


@dataclass(frozen=True)
class Finding:
    """One mistake in a file or in another input.

    `where` is the file, or another source such as `--data`. `line` counts from 1; it is None if there are no lines. A
    finding about a recipe has an `id` such as `recipe-tp-heads`, by which it can be accepted, and `advice` if the
    recipe may work nevertheless.
    """

    where: str
    line: int | None
    key: str
    message: str
    remedy: str = ""
    id: str = ""
    advice: bool = False

    @property
    def place(self) -> str:
        """The file and the line, such as `recipes/mine.yaml:7`."""
        return f"{self.where}:{self.line}" if self.line is not None else self.where

    def __str__(self) -> str:
        parts = [part for part in (self.place, self.key, self.message, self.remedy) if part]
        mark = ", ".join(filter(None, (self.id, "advice" if self.advice else "")))
        return ": ".join(parts) + (f" [{mark}]" if mark else "")


class InputError(RigupError):
    """All mistakes found while reading an input, one line each."""

    def __init__(self, findings: Iterable[Finding]):
        # A wrong default is found once per host, but it is one mistake.
        unique = dict.fromkeys(findings)
        self.findings = tuple(sorted(unique, key=lambda finding: (finding.where, finding.line or 0)))
        super().__init__("\n".join(str(finding) for finding in self.findings))


@dataclass(frozen=True)
class Problem:
    """One reason why a host cannot be deployed as planned. `id` is stable, such as `gpus-mig`."""

    host: str
    id: str
    found: str
    remedy: str


class ProblemsError(RigupError):
    """All problems of all hosts, as one table."""

    def __init__(self, problems: Iterable[Problem]):
        self.problems = tuple(problems)
        super().__init__(self.table())

    def table(self, width: int = 120, color: bool = False) -> str:
        """Return the problems as a table of at most `width` columns, with ANSI colors if `color`."""
        count = len(self.problems)
        title = f"{count} problem{'s' if count != 1 else ''}; nothing was changed."
        return table_of(self.problems, title, width, color)


def table_of(problems: Sequence[Problem], title: str, width: int = 120, color: bool = False) -> str:
    """Return a title and a table of problems, at most `width` columns wide, with ANSI colors if `color`."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("host", "check"):
        table.add_column(name, no_wrap=True)
    table.add_column("found", overflow="fold")
    table.add_column("what to do", overflow="fold")
    for problem in problems:
        # Text, not markup: the output of a host may contain square brackets.
        found, remedy = Text(printable(problem.found)), Text(printable(problem.remedy))
        table.add_row(Text(problem.host), Text(problem.id, style="red"), found, remedy)
    output = io.StringIO()
    console = Console(file=output, width=width, force_terminal=color, color_system="standard" if color else None)
    console.print(title)
    console.print(table)
    return output.getvalue().rstrip()


def near(word: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """Return the known words that `word` is probably a misspelling of, best first."""
    candidates: Sequence[str] = sorted(known)
    found = difflib.get_close_matches(word, candidates, n=limit, cutoff=0.6)
    if not found:
        # `mtp` for `vllm-nvfp4-cu130-mtp1`: too short for a similarity ratio, but clearly meant.
        found = [name for name in candidates if len(word) >= 3 and word.lower() in name.lower()][:limit]
    return found


def suggestion(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return a remedy for an unknown word: "did you mean X or Y?", or `otherwise` if nothing is similar."""
    similar = near(word, known)
    return f"did you mean {' or '.join(similar)}?" if similar else otherwise
