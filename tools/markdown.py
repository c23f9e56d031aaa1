"""Markdown from plain data, for the generated pages of the documentation."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable


def table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table. Cells are Markdown, of one line."""
    lines = ["| " + " | ".join(titles) + " |"]
    lines.append("|" + "---|" * (lines[0].count("|") - 1))
    lines += ["| " + " | ".join(cells) + " |" for cells in rows]
    return "\n".join(lines) + "\n"


def text(value: object) -> str:
    """Plain text as Markdown, on one line: only spans between backticks are markup."""
    parts = re.split(r"(`[^`]+`)", " ".join(str(value).split()))
    return "".join(code(part[1:-1]) if index % 2 else _escaped(part) for index, part in enumerate(parts))


def _escaped(words: str) -> str:
    return re.sub(r"([\\`*_\[\]|#{}])", r"\\\1", html.escape(words, quote=False))


def code(value: object) -> str:
    """A span of code in a table's cell."""
    return f"`{value}`".replace("|", "\\|")


def block(content: str) -> str:
    return f"```text\n{content.rstrip()}\n```\n"
