"""What every `qlog inspect` command prints: a table, notes and damage for people, JSON for programs.

On a terminal tables are drawn to its width; numbers are never cut, names go on in the next line;
where no table fits, each value has its own line.
Into a pipe each row is one line of aligned columns with plain numbers. A JSON document always has
`schema`, `data_dir`, `in_use`, `damage` and `notes`. Text that came from a message or a definition
cannot steer the terminal. Knows nothing of what is inspected.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import Console

_PROGRESS_BYTES_MIN = 128 << 20  # less is read before a bar could be looked at
_NAME_WIDTH_MIN = 12  # a name in narrower pieces cannot be read


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that is not what was written. `file` is relative to the data directory.

    `position` and `end` are bytes in the file; `lsn_first` and `lsn_end` (exclusive) the messages it
    concerns; `messages_lost` how many of them cannot be decoded whole. None: does not apply, or
    cannot be known.
    """

    file: str
    what: str
    position: int | None = None
    end: int | None = None
    lsn_first: int | None = None
    lsn_end: int | None = None
    messages_lost: int | None = None

    def __str__(self) -> str:
        place = self.file if self.position is None else f"{self.file} at byte {self.position}"
        return f"{place}: {self.what}"


@dataclass(frozen=True, slots=True)
class Bytes:
    """A size in a table: with a unit on a terminal, a plain number in a pipe."""

    count: int

    def human(self) -> str:
        """In the largest unit that leaves one digit before the point."""
        size = float(self.count)
        for unit in ("B", "KiB", "MiB", "GiB"):
            if size < 1024:
                return f"{self.count} B" if unit == "B" else f"{size:.1f} {unit}"
            size /= 1024
        return f"{size:.1f} TiB"


# A list is several lines on a terminal.
Cell = str | int | Bytes | Sequence[str] | None


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. `name`: its text may go on in the next line; else it is never cut."""

    title: str
    right: bool = False
    name: bool = False


@dataclass(slots=True)
class Report:
    """What one command found."""

    kind: str  # the command
    data_dir: str
    in_use: bool
    content: dict[str, Any] = field(default_factory=dict)  # for JSON
    columns: Sequence[Column] = ()
    rows: list[Sequence[Cell]] = field(default_factory=list)
    summary: str = ""
    notes: list[str] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)

    def show(self, *, as_json: bool) -> None:
        """Print it on stdout."""
        if as_json:
            document = {
                "schema": f"qlog.inspect.{self.kind}/1",
                "data_dir": self.data_dir,
                "in_use": self.in_use,
                **self.content,
                "notes": self.notes,
                "damage": [asdict(item) for item in self.damage],
            }
            print(json.dumps(document, indent=2))
            return
        if _is_terminal():
            self._draw()
        else:
            self._print()

    def _draw(self) -> None:
        from rich.console import Console
        from rich.text import Text

        console = Console(highlight=False)
        if self.rows:
            self._draw_rows(console)
            console.print()
        console.print(Text(printable(self.summary)))
        for note in self.notes:
            console.print(Text(f"note: {printable(note)}", "yellow"))
        for item in self.damage:
            console.print(Text(f"damaged: {printable(str(item))}", "red"))

    def _draw_rows(self, console: Console) -> None:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        rows = [[_drawn(cell) for cell in row] for row in self.rows]
        width = 2 * len(self.columns)  # between them
        for at, column in enumerate(self.columns):
            lines = [
                line
                for text in (column.title, *(row[at] for row in rows))
                for line in text.split("\n")
            ]
            longest = max(map(len, lines))
            width += min(longest, _NAME_WIDTH_MIN) if column.name else longest
        if width > console.width:  # no table fits: one line a value
            for row in rows:
                for column, text in zip(self.columns, row, strict=True):
                    title = _one_line(column.title)
                    console.print(Text(f"{title}: " + text.replace("\n", "\n  ")))
                console.print()
            return
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        for column in self.columns:
            table.add_column(
                column.title,
                justify="right" if column.right else "left",
                no_wrap=not column.name,
                overflow="fold",
            )
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)

    def _print(self) -> None:
        if self.rows:
            titles = [_one_line(column.title) for column in self.columns]
            table = [titles, *([_plain(cell) for cell in row] for row in self.rows)]
            widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
            for cells in table:
                aligned = (
                    cell.rjust(width) if column.right else cell.ljust(width)
                    for cell, width, column in zip(cells, widths, self.columns, strict=True)
                )
                print("  ".join(aligned).rstrip())
            print()
        print(printable(self.summary))
        for note in self.notes:
            print(f"note: {printable(note)}")
        for item in self.damage:
            print(f"damaged: {printable(str(item))}")


def _is_terminal() -> bool:
    return sys.stdout.isatty()


def _one_line(title: str) -> str:
    return title.replace("-\n", "").replace("\n", " ")


def _drawn(cell: Cell) -> str:
    match cell:
        case None:
            return "-"
        case Bytes():
            return cell.human()
        case int():
            return str(cell)
        case str():
            return printable(cell)
        case _:
            return "\n".join(map(printable, cell))


def _plain(cell: Cell) -> str:
    match cell:
        case None:
            return "-"
        case Bytes():
            return str(cell.count)
        case int():
            return str(cell)
        case str():
            return printable(cell)
        case _:
            return "; ".join(map(printable, cell))


def counted(count: int, noun: str) -> str:
    """The number with its noun."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def well_formed(text: str) -> str:
    """Text without the surrogates that stand for octets which are not UTF-8: they become \\xNN."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def printable(text: str) -> str:
    """Text that only shows: control characters become escapes."""
    text = well_formed(text)
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


class Progress(Protocol):
    """How far something long has come."""

    def advance(self, size: int) -> None:
        """So many bytes more are done."""


class _Silent:
    def advance(self, size: int) -> None:
        pass


@contextmanager
def progress(what: str, total_bytes: int) -> Iterator[Progress]:
    """A bar on stderr when that is a terminal and there is much to do; it goes when it is done."""
    if total_bytes < _PROGRESS_BYTES_MIN or not os.isatty(2):
        yield _Silent()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bar

    with Bar(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(what, total=total_bytes)

        class Shown:
            def advance(self, size: int) -> None:
                bar.advance(task, size)

        yield Shown()
