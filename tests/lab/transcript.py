"""A page of the documentation whose commands are typed on a host, and what they print there.

In a block `console` a line with `$` is a command, and what follows is its output. All lines of a block `sh` are
commands, whose output the page does not show.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

BLOCK = re.compile(r"^```(?P<kind>sh|console)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
PROMPT = "$ "


@dataclass(frozen=True)
class Printed:
    """The exit code of a command and what it printed, on both streams."""

    code: int
    output: str


def section(page: str, title: str) -> str:
    """Return what the page has below a heading of the second level."""
    found = page.partition(f"## {title}\n")[2]
    assert found, f"the page has no section {title}"
    return found.partition("\n## ")[0]


def commands(text: str) -> list[str]:
    """Return the commands in the order in which they are typed."""
    found = []
    for block in BLOCK.finditer(text):
        lines = block["text"].splitlines()
        found += lines if block["kind"] == "sh" else [line[len(PROMPT) :] for line in lines if line.startswith(PROMPT)]
    return found


def typed(text: str, run: Callable[[str], Printed]) -> tuple[str, dict[str, Printed]]:
    """Type all commands; return the text with what they printed now, and that by command."""
    printed: dict[str, Printed] = {}

    def again(block: re.Match[str]) -> str:
        shown = []
        for command in commands(block[0]):
            printed[command] = run(command)
            shown.append(command if block["kind"] == "sh" else PROMPT + command)
            if block["kind"] == "console":
                shown += [line.rstrip() for line in printed[command].output.splitlines()]
        return "\n".join([f"```{block['kind']}", *shown, "```"])

    return BLOCK.sub(again, text), printed
