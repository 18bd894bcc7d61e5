"""Tables as wide as the terminal: where they do not fit, columns are left out, and no name is cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tachograph_exporter.cli.common import out
from tachograph_exporter.cli.terminal import printable

_GAP: Final = 2
_PROSE: Final = 16
"""The least width of prose that is worth showing."""


class Column(NamedTuple):
    """A column. ``rank``: 0 stays; of others, those of the highest rank are left out first.

    ``is_prose``: takes what room is left, and is cut at its end. Other cells are folded rather than cut.
    """

    title: str
    rank: int = 0
    is_number: bool = False
    is_prose: bool = False


def show_table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str | Text]],
    styles: Sequence[str] = (),
    console: Console = out,
) -> None:
    """Print a table: as wide as the terminal, and in a file or pipe as wide as it needs to be."""
    cells = [[cell if isinstance(cell, Text) else Text(printable(cell)) for cell in row] for row in rows]
    widths = [
        max([cell_len(column.title), *(cell_len(row[i].plain) for row in cells)]) for i, column in enumerate(columns)
    ]
    if not console.is_terminal:
        console.file.writelines(_lines(columns, widths, cells))
        return
    kept = _kept(columns, widths, console.width)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold", show_edge=False)
    for i in kept:
        column = columns[i]
        table.add_column(
            column.title,
            justify="right" if column.is_number else "left",
            no_wrap=column.is_prose or column.is_number,
            overflow="ellipsis" if column.is_prose else "fold",
            # Prose gives way first.
            min_width=None if column.is_prose else min(widths[i], console.width // 2),
        )
    for number, row in enumerate(cells):
        table.add_row(*(row[i] for i in kept), style=styles[number] if styles else None)
    console.print(table)


def _lines(columns: Sequence[Column], widths: Sequence[int], rows: Sequence[Sequence[Text]]) -> Iterator[str]:
    """A line for each row, nothing left out."""
    for row in ([column.title for column in columns], *([cell.plain for cell in row] for row in rows)):
        padded = []
        for column, width, cell in zip(columns, widths, row, strict=True):
            space = " " * (width - cell_len(cell))
            padded.append(space + cell if column.is_number else cell + space)
        yield (" " * _GAP).join(padded).rstrip() + "\n"


def _kept(columns: Sequence[Column], widths: Sequence[int], room: int) -> list[int]:
    """The columns to show, by index."""
    kept = list(range(len(columns)))

    def needed() -> int:
        return sum((min(widths[i], _PROSE) if columns[i].is_prose else widths[i]) + _GAP for i in kept)

    while needed() > room:
        droppable = [i for i in kept if columns[i].rank]
        if not droppable:
            break
        kept.remove(max(droppable, key=lambda i: (columns[i].rank, i)))
    return kept
