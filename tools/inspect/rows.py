"""What every `qlog inspect` command prints: rows, notes and damage for people, JSON for programs.

A row is a dataclass (or a map). It is an object of the JSON document, and a row of a table, whose
columns say what a cell shows. On a terminal tables are drawn to its width: numbers are never cut,
names go on in the next line, and where no table fits each value has its own line. In a pipe each
row is one line of aligned columns with plain numbers. A JSON document always has `schema`,
`data_dir`, `in_use`, `damage` and `notes`. Text from a message or a definition cannot steer the
terminal. Knows nothing of what is inspected.
"""

import base64
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
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
        messages = counted(self.messages, "message")
        return f"{messages} of {name} ({offsets}, {self.unsettled} unsettled)"


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
Of = str | int | Callable[[Any], Cell] | None


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its title, and what a row shows in it.

    `of` is the name of a field, by default the title's, or a place in a tuple, or makes the cell.
    `is_name`: the text may go on in the next line; else it is never cut.
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
        key: Any = self.title if self.of is None else self.of
        value: Cell = row[key] if isinstance(row, dict | tuple) else getattr(row, key)
        return value if self.unit is None or value is None else self.unit(value)

    @property
    def title_line(self) -> str:
        return self.title.replace("-\n", "").replace("\n", " ")


text = Column  # short, and never cut
name = partial(Column, is_name=True)  # of any length
number = partial(Column, right=True)  # a count, or an id
size = partial(Column, right=True, unit=Bytes)
_FACT = (text(""), name(""))  # a thing and what it is; these columns have no head


@dataclass(frozen=True, slots=True)
class _Section:
    """Rows of cells under a title."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]

    def texts(self, text_of: Callable[[Cell], str]) -> list[list[str]]:
        return [[text_of(cell) for cell in row] for row in self.rows]


class Found(Protocol):
    """What a look at a part of a directory has found."""

    notes: list[str]
    damage: list[Damage]


class Look(Found, Protocol):
    """A look at a directory as a whole."""

    root: Path
    in_use: bool


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
        self.summary = ""
        self.notes: list[str] = []
        self.damage: list[Damage] = []
        self._sections: list[_Section] = []

    @property
    def all_notes(self) -> list[str]:
        return self.notes if self.look is None else self.look.notes + self.notes

    @property
    def all_damage(self) -> list[Damage]:
        return self.damage if self.look is None else self.look.damage + self.damage

    def say(self, what: str) -> None:
        """The last line, behind the name of the directory."""
        self.summary = f"{self.data_dir}{', in use by a broker' if self.in_use else ''}: {what}"

    def take(self, found: Found) -> None:
        """Notes and damage of a part of the directory."""
        self.notes += found.notes
        self.damage += found.damage

    def table(
        self, columns: Sequence[Column], rows: Iterable[Any], *, title: str = "", key: str = ""
    ) -> None:
        """Show rows; with a `key` they are in the document too."""
        rows = list(rows)
        if key:
            self.content[key] = rows
        cells = [[column.cell(row) for column in columns] for row in rows]
        self._sections.append(_Section(title, columns, cells))

    def facts(self, rows: Iterable[tuple[str, Cell]], *, title: str = "") -> None:
        """Show things of different kinds, each with its name."""
        self._sections.append(_Section(title, _FACT, list(rows)))

    def show(self, *, as_json: bool) -> None:
        if as_json:
            document = {
                "schema": f"qlog.inspect.{self.kind}/1",
                "data_dir": self.data_dir,
                "in_use": self.in_use,
                **self.content,
                "notes": self.all_notes,
                "damage": self.all_damage,
            }
            print(packed(document))
        elif _is_terminal():
            from rich.console import Console
            from rich.text import Text

            console = Console(highlight=False)
            self._tell(
                lambda line, style: console.print(Text(line, style)), partial(_draw, console)
            )
        else:
            self._tell(lambda line, _: print(line), _print)

    def _tell(self, say: Callable[[str, str], None], show: Callable[[_Section], None]) -> None:
        for section in self._sections:
            if section.rows:
                if section.title:
                    say(section.title, "bold")
                show(section)
                say("", "")
        say(printable(self.summary), "")
        for note in self.all_notes:
            say(f"note: {printable(note)}", "yellow")
        for item in self.all_damage:
            say(f"damaged: {printable(str(item))}", "red")


def picked(thing: Any, names: str) -> dict[str, Any]:
    """Some of a thing's attributes as a row: `name name key=name …`."""
    pairs = (pair.rpartition("=") for pair in names.split())
    return {key or name: getattr(thing, name) for key, _, name in pairs}


def packed(document: dict[str, Any]) -> str:
    """A document as JSON. A dataclass in it is an object of all fields that do not begin with _."""
    return json.dumps(document, indent=2, default=_object)


def _object(row: Any) -> dict[str, Any]:
    names = (field.name for field in fields(row))
    return {key: getattr(row, key) for key in names if not key.startswith("_")}


def _draw(console: "Console", section: _Section) -> None:
    """On a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    columns, rows = section.columns, section.texts(_drawn)
    if columns is _FACT:
        drawn = Table.grid(padding=(0, 2, 0, 0))
        drawn.add_column(no_wrap=console.width >= 3 * _NAME_WIDTH_MIN, overflow="fold")
        drawn.add_column(overflow="fold")
    elif _width(columns, rows) > console.width:  # no table fits: one line a value
        for row in rows:
            for column, cell in zip(columns, row, strict=True):
                console.print(Text(f"{column.title_line}: " + cell.replace("\n", "\n  ")))
            console.print()
        return
    else:
        drawn = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        for column in columns:
            drawn.add_column(
                column.title,
                justify="right" if column.right else "left",
                no_wrap=not column.is_name,
                overflow="fold",
            )
    for row in rows:
        drawn.add_row(*map(Text, row))
    console.print(drawn)


def _width(columns: Sequence[Column], rows: list[list[str]]) -> int:
    width = 2 * len(columns)  # between them
    for column, cells in zip(columns, zip(*rows, strict=True), strict=True):
        longest = max(len(line) for cell in (column.title, *cells) for line in cell.split("\n"))
        width += min(longest, _NAME_WIDTH_MIN) if column.is_name else longest
    return width


def _print(section: _Section) -> None:
    """In a pipe."""
    columns, rows = section.columns, section.texts(_plain)
    if columns is not _FACT:
        rows.insert(0, [column.title_line for column in columns])
    widths = [min(max(map(len, cells)), _ALIGNED_MAX) for cells in zip(*rows, strict=True)]
    for cells in rows:
        aligned = (
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(cells, widths, columns, strict=True)
        )
        print("  ".join(aligned).rstrip())


def _is_terminal() -> bool:
    return sys.stdout.isatty()


def _drawn(cell: Cell) -> str:
    match cell:
        case Bytes():
            return cell.human()
        case Time():
            return cell.text.replace("Z", "", 1).replace("T", "\n", 1)
    return _text(cell, "\n")


def _plain(cell: Cell) -> str:
    match cell:
        case Bytes():
            return str(cell.count)
        case Time():
            return cell.text
    return _text(cell, "; ")


def _text(cell: str | int | Sequence[str] | None, between: str) -> str:
    match cell:
        case None:
            return "-"
        case int():
            return str(cell)
        case str():
            return printable(cell)
    return between.join(map(printable, cell))


def counted(count: int, noun: str) -> str:
    """The number with its noun."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def octets_in_json(octets: Any) -> dict[str, str]:
    """Octets, for which JSON has no type; as a `default` of `json.dumps` too."""
    return {"base64": base64.b64encode(octets).decode()}


def body_in_json(body: bytes) -> dict[str, str]:
    """A body as JSON has it: text, if it is any."""
    try:
        return {"body": body.decode(), "body_encoding": "utf-8"}
    except UnicodeDecodeError:
        return {"body": base64.b64encode(body).decode(), "body_encoding": "base64"}


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


@contextmanager
def progress(what: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, if that is a terminal and there is much to do. It goes at the end.

    The function that it gives is told how many bytes more are done.
    """
    if total_bytes < _PROGRESS_BYTES_MIN or not os.isatty(2):
        yield lambda size: None
        return
    from rich import progress as bars
    from rich.console import Console

    with bars.Progress(
        bars.TextColumn("{task.description}"),
        bars.BarColumn(bar_width=None),
        bars.DownloadColumn(binary_units=True),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        yield partial(bar.advance, bar.add_task(what, total=total_bytes))
