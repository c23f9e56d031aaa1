"""The tables of all commands: no word is split on a terminal, and a pipe gets plain rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.table import Table as Grid
from rich.text import Text

from rigup.cli._terminal import SafeConsole
from rigup.text import printable

GAP = 2

Cell: TypeAlias = str | Text


class Table:
    """Columns and rows, to be printed by a console.

    In a pipe, each row is one line, with two spaces or more between columns. On a terminal, cells wrap between words;
    if it is too narrow for the longest words of all columns, each row becomes a block with one line per column.
    """

    def __init__(self, *columns: str, rows: Iterable[Sequence[Cell]] = (), has_header: bool = True) -> None:
        self._columns = columns
        self._header = [[Text(column, "bold") for column in columns]] if has_header else []
        self._rows: list[list[Text]] = []
        for row in rows:
            self.add_row(*row)

    def add_row(self, *cells: Cell) -> None:
        """Add a row. Columns without a cell are empty."""
        row = [_text(cell) for cell in cells]
        self._rows.append(row + [Text()] * (len(self._columns) - len(row)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = [*self._header, *self._rows]
        columns = [[row[at] for row in rows] for at in range(len(self._columns))]
        widest = [max((cell.cell_len for cell in column), default=0) for column in columns]
        if not console.is_terminal:
            for row in rows:
                cells = [cell.plain + " " * (width - cell.cell_len) for cell, width in zip(row, widest, strict=True)]
                yield Segment((" " * GAP).join(cells).rstrip())
                yield Segment.line()
            return
        longest_words = [max(map(_longest_word, column), default=0) for column in columns]
        widths = _fitted(widest, longest_words, options.max_width - GAP * (len(columns) - 1))
        if widths is None:
            yield from self._blocks(console, options)
            return
        grid = Grid.grid(padding=(0, GAP, 0, 0))
        for width in widths:
            grid.add_column(width=width)
        for row in rows:
            grid.add_row(*row)
        yield grid

    def _blocks(self, console: Console, options: ConsoleOptions) -> Iterator[Segment | Text]:
        label = max(len(column) for column in self._columns) + GAP
        for row in self._rows:
            for column, cell in zip(self._columns, row, strict=True):
                # At least as wide as the longest word, which would be split otherwise.
                width = max(options.max_width - label, _longest_word(cell))
                for at, line in enumerate(cell.wrap(console, width)):
                    yield Text.assemble(
                        (("" if at else column).ljust(label), "bold"), line, no_wrap=True, overflow="ignore"
                    )
            yield Segment.line()


def show(table: Table) -> None:
    """Print a table on standard output."""
    SafeConsole().print(table, crop=False)


def _text(cell: Cell) -> Text:
    """Return a cell in which no line breaks, and which is as wide as it will be printed."""
    text = cell if isinstance(cell, Text) else Text(cell)
    return Text(" ".join(printable(text.plain).split()), text.style)


def _longest_word(cell: Text) -> int:
    return max((Text(word).cell_len for word in cell.plain.split()), default=0)


def _fitted(widest: Sequence[int], longest_words: Sequence[int], space: int) -> list[int] | None:
    """Return the widths of columns that need `widest` at most; None if not even the longest words fit into `space`."""
    widths = list(widest)
    while sum(widths) > space:
        reducible = [at for at, width in enumerate(widths) if width > longest_words[at]]
        if not reducible:
            return None
        widths[max(reducible, key=lambda at: widths[at])] -= 1
    return widths
