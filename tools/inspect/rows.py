"""What every `qlog inspect` command prints: rows, notes and damage for people, JSON for programs.

A row is a dataclass (or a map). It is an object of the JSON document, and a row of a table, whose
columns say what a cell shows. On a terminal tables are drawn to its width: numbers are never cut,
names go on in the next line, and where no table fits each value has its own line. In a pipe each
row is one line of aligned columns with plain numbers. A JSON document always has `schema`,
`data_dir`, `in_use`, `damage` and `notes`. Text from a message or a definition cannot steer the
terminal. Knows nothing of what is inspected.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # rich is slow to import, and needed on a terminal only
    from rich.console import Console

_PROGRESS_BYTES_MIN = 128 << 20  # less is read before a bar could be looked at
_ALIGNED_MAX = 60  # characters in a pipe; what is longer moves what stands behind it
_NAME_WIDTH_MIN = 12  # a name in narrower pieces cannot be read


@dataclass(frozen=True, slots=True)
class Concern:
    """A queue that a damage concerns: messages that cannot be read, of them not yet settled.

    Their offsets lie between the first and the end (exclusive). `queue` is None when the lane's
    name is not known.
    """

    vhost: str | None
    queue: str | None
    lane: int
    messages: int
    unsettled: int
    offset_first: int
    offset_end: int

    def __str__(self) -> str:
        name = f"lane {self.lane}" if self.queue is None else f"'{self.queue}'"
        if self.vhost not in (None, "/"):
            name += f" in '{self.vhost}'"
        offsets = f"#{self.offset_first}"
        if self.offset_end > self.offset_first + 1:
            offsets += f" to #{self.offset_end - 1}"
        return (
            f"{counted(self.messages, 'message')} of {name} ({offsets}, {self.unsettled} unsettled)"
        )


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that is not what was written. `file` is relative to the data directory.

    `position` and `end` are bytes in the file; `lsn_first` and `lsn_end` (exclusive) the messages
    it concerns; `messages_lost` how many of them cannot be decoded whole. None: does not apply, or
    cannot be known. `queues`: those that lose messages by it, where that was looked for.
    """

    file: str
    what: str
    position: int | None = None
    end: int | None = None
    lsn_first: int | None = None
    lsn_end: int | None = None
    messages_lost: int | None = None
    queues: tuple[Concern, ...] = ()

    def __str__(self) -> str:
        place = self.file if self.position is None else f"{self.file} at byte {self.position}"
        concerned = f"; {', '.join(map(str, self.queues))}" if self.queues else ""
        return f"{place}: {self.what}{concerned}"


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


@dataclass(frozen=True, slots=True)
class Time:
    """A time in ISO 8601, perhaps with something behind it; two lines on a terminal."""

    text: str


# A list is several lines on a terminal.
Cell = str | int | Bytes | Time | Sequence[str] | None
Of = str | Callable[[Any], Cell] | None


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its title, and what a row shows in it.

    `of` is the name of a field, by default the title's, or makes the cell. `is_name`: the text may
    go on in the next line; else it is never cut.
    """

    title: str
    of: Of = None
    right: bool = False
    is_name: bool = False
    unit: Callable[[Any], Cell] | None = None

    def cell(self, row: Any) -> Cell:
        """What of a row stands in the column."""
        if callable(self.of):
            return self.of(row)
        name = self.of or self.title
        value: Cell = row[name] if isinstance(row, dict) else getattr(row, name)
        return value if self.unit is None or value is None else self.unit(value)


def text(title: str, of: Of = None) -> Column:
    """Short text, which is never cut."""
    return Column(title, of)


def name(title: str, of: Of = None) -> Column:
    """Text of any length."""
    return Column(title, of, is_name=True)


def number(title: str, of: Of = None) -> Column:
    """A count, or an id."""
    return Column(title, of, right=True)


def size(title: str, of: Of = None) -> Column:
    """So many bytes."""
    return Column(title, of, right=True, unit=Bytes)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of the same kind, as cells, under a title."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True, slots=True)
class Facts:
    """Things of different kinds, each with its name, under a title."""

    title: str
    rows: Sequence[tuple[str, Cell]]


class Look(Protocol):
    """What a report says of the directory that was looked at."""

    root: Path
    in_use: bool
    notes: list[str]
    damage: list[Damage]


class Report:
    """What one command found. `content` is its part of the JSON document.

    `notes` and `damage` come behind those of the directory as a whole.
    """

    def __init__(self, kind: str, look: Look | None = None, data_dir: str | None = None) -> None:
        """`kind`: the command. `look`: at the directory, if the command looks at one."""
        self.kind = kind
        self.look = look
        self.data_dir = data_dir if look is None else str(look.root)
        self.in_use = look is not None and look.in_use
        self.content: dict[str, Any] = {}
        self.sections: list[Table | Facts] = []
        self.summary = ""
        self.notes: list[str] = []
        self.damage: list[Damage] = []

    @property
    def all_notes(self) -> list[str]:
        """The report's notes, with those of the directory."""
        return self.notes if self.look is None else self.look.notes + self.notes

    @property
    def all_damage(self) -> list[Damage]:
        """The report's damage, with that of the directory."""
        return self.damage if self.look is None else self.look.damage + self.damage

    def say(self, what: str) -> None:
        """The last line, behind the name of the directory."""
        self.summary = f"{self.data_dir}{', in use by a broker' if self.in_use else ''}: {what}"

    def table(
        self, columns: Sequence[Column], rows: Iterable[Any], *, title: str = "", key: str = ""
    ) -> None:
        """Show rows; with a `key` they are in the document too."""
        rows = list(rows)
        if key:
            self.content[key] = [document_of(row) for row in rows]
        cells = [[column.cell(row) for column in columns] for row in rows]
        self.sections.append(Table(title, columns, cells))

    def facts(self, rows: Iterable[tuple[str, Cell]], *, title: str = "") -> None:
        """Show things of different kinds."""
        self.sections.append(Facts(title, list(rows)))

    def show(self, *, as_json: bool) -> None:
        """Print the report on stdout."""
        if as_json:
            document = {
                "schema": f"qlog.inspect.{self.kind}/1",
                "data_dir": self.data_dir,
                "in_use": self.in_use,
                **self.content,
                "notes": self.all_notes,
                "damage": [asdict(item) for item in self.all_damage],
            }
            print(json.dumps(document, indent=2))
        elif _is_terminal():
            self._draw()
        else:
            self._print()

    @property
    def _filled(self) -> list[Table | Facts]:
        return [section for section in self.sections if section.rows]

    def _draw(self) -> None:
        from rich.console import Console
        from rich.text import Text

        console = Console(highlight=False)
        for section in self._filled:
            if section.title:
                console.print(Text(section.title, "bold"))
            if isinstance(section, Facts):
                _draw_facts(console, section)
            else:
                _draw_table(console, section)
            console.print()
        console.print(Text(printable(self.summary)))
        for note in self.all_notes:
            console.print(Text(f"note: {printable(note)}", "yellow"))
        for item in self.all_damage:
            console.print(Text(f"damaged: {printable(str(item))}", "red"))

    def _print(self) -> None:
        for section in self._filled:
            if section.title:
                print(section.title)
            if isinstance(section, Facts):
                width = max(len(name) for name, _ in section.rows)
                for name, cell in section.rows:
                    print(f"{name.ljust(width)}  {_plain(cell)}")
            else:
                _print_table(section)
            print()
        print(printable(self.summary))
        for note in self.all_notes:
            print(f"note: {printable(note)}")
        for item in self.all_damage:
            print(f"damaged: {printable(str(item))}")


def document_of(row: Any) -> Any:
    """A row as an object of JSON: all its fields, but those whose names begin with `_`."""
    if isinstance(row, dict):
        return row
    return {key: value for key, value in asdict(row).items() if not key.startswith("_")}


def _draw_facts(console: Console, facts: Facts) -> None:
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=console.width >= 3 * _NAME_WIDTH_MIN, overflow="fold")
    grid.add_column(overflow="fold")
    for name, cell in facts.rows:
        grid.add_row(Text(name), Text(_drawn(cell)))
    console.print(grid)


def _draw_table(console: Console, table: Table) -> None:
    from rich import box
    from rich.table import Table as Drawn
    from rich.text import Text

    rows = [[_drawn(cell) for cell in row] for row in table.rows]
    width = 2 * len(table.columns)  # between them
    for at, column in enumerate(table.columns):
        lines = [
            line for text in (column.title, *(row[at] for row in rows)) for line in text.split("\n")
        ]
        longest = max(map(len, lines))
        width += min(longest, _NAME_WIDTH_MIN) if column.is_name else longest
    if width > console.width:  # no table fits: one line a value
        for row in rows:
            for column, text in zip(table.columns, row, strict=True):
                title = _one_line(column.title)
                console.print(Text(f"{title}: " + text.replace("\n", "\n  ")))
            console.print()
        return
    drawn = Drawn(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for column in table.columns:
        drawn.add_column(
            column.title,
            justify="right" if column.right else "left",
            no_wrap=not column.is_name,
            overflow="fold",
        )
    for row in rows:
        drawn.add_row(*map(Text, row))
    console.print(drawn)


def _print_table(table: Table) -> None:
    titles = [_one_line(column.title) for column in table.columns]
    rows = [titles, *([_plain(cell) for cell in row] for row in table.rows)]
    widths = [min(max(map(len, cells)), _ALIGNED_MAX) for cells in zip(*rows, strict=True)]
    for cells in rows:
        aligned = (
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(cells, widths, table.columns, strict=True)
        )
        print("  ".join(aligned).rstrip())


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
        case Time():
            return cell.text.replace("Z", "", 1).replace("T", "\n", 1)
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
        case Time():
            return cell.text
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
    """A bar on stderr, if that is a terminal and there is much to do. It goes at the end."""
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
