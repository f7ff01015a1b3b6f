"""How a result is written: text with tabs, a drawn table, JSON, CSV, Erlang terms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from qlog.tools.ctl.command import Call, Document, Message, Result, Rows
from qlog.tools.ctl.values import as_json, as_term, as_text, to_json, width

# These are read by programs: no line for people stands before them.
FOR_PROGRAMS = frozenset(("json", "csv"))
FORMATTERS = ("table", "pretty_table", "json", "csv", "erlang")
# Lines of a drawn table, in the terminal's own character set, as RabbitMQ draws them.
_DRAWN, _PLAIN, _BOLD, _LIGHT = "\x1b(0", "\x1b(B", "\x1b[1m", "\x1b[0m"

Writer = Callable[[str], None]


def show(result: Result, call: Call, formatter: str, write: Writer) -> None:
    """Write a result, line by line."""
    for line in lines(result, call, formatter):
        write(line)


def lines(result: Result, call: Call, formatter: str) -> Iterator[str]:
    """The lines of a result."""
    if isinstance(result, Rows):
        yield from _TABLES.get(formatter, _tabbed)(result, _has_header(result, call))
    elif isinstance(result, Message):
        if formatter == "json":
            yield to_json({"message": result.text, **result.more})
        else:
            yield result.text
    elif isinstance(result, Document):
        if formatter == "json":
            yield to_json(as_json(result.value))
        else:
            yield as_term(result.value) if formatter == "erlang" else result.text
    elif formatter == "json":
        yield to_json({"node": call.node, "result": "ok"})


def _has_header(rows: Rows, call: Call) -> bool:
    return rows.header and call.options.get("table_headers", not call.options.get("silent"))


def _cells(rows: Rows, write: Callable[[Any], str]) -> Iterator[list[str]]:
    for row in rows.rows:
        yield [write(row.get(column)) for column in rows.columns]


def _tabbed(rows: Rows, header: bool) -> Iterator[str]:
    for cells in _cells(rows, as_text):
        if header:
            yield "\t".join(rows.columns)
            header = False
        yield "\t".join(cells)


def _csv(rows: Rows, header: bool) -> Iterator[str]:
    for cells in _cells(rows, as_text):
        if header:
            yield _csv_line(rows.columns)
            header = False
        yield _csv_line(cells)


def _csv_line(cells: Iterable[str]) -> str:
    return ",".join('"{}"'.format(cell.replace('"', '""')) for cell in cells)


def _json(rows: Rows, header: bool) -> Iterator[str]:
    yield "["
    comma = ""
    for row in rows.rows:
        yield comma + to_json(_object(rows.columns, row))
        comma = ","
    yield "]"


def _object(columns: Sequence[str], row: Mapping[str, Any]) -> dict[str, Any]:
    return {column: as_json(row.get(column)) for column in columns}


def _erlang(rows: Rows, header: bool) -> Iterator[str]:
    terms = [
        "["
        + ",".join(
            f"{{{_atom(name)},{cell}}}" for name, cell in zip(rows.columns, cells, strict=True)
        )
        + "]"
        for cells in _cells(rows, as_term)
    ]
    yield "[" + ",\n ".join(terms) + "]"


def _atom(name: str) -> str:
    return name if name.replace("_", "").isalnum() else f"'{name}'"


def _drawn(rows: Rows, header: bool) -> Iterator[str]:
    every = list(_cells(rows, as_text))
    if not every:
        return
    columns = list(rows.columns)
    widths = [
        max(width(name) if header else 0, *(width(cells[at]) for cells in every))
        for at, name in enumerate(columns)
    ]
    yield _rule("l", "w", "k", widths)
    if header:
        yield _drawn_line([f"{_BOLD}{name}{_LIGHT}" for name in columns], columns, widths)
        yield _rule("t", "n", "u", widths)
    for number, cells in enumerate(every):
        if number:
            yield _rule("t", "n", "u", widths)
        yield _drawn_line(cells, cells, widths)
    yield _rule("m", "v", "j", widths)


def _rule(left: str, middle: str, right: str, widths: list[int]) -> str:
    line = middle.join("q" * (width + 2) for width in widths)
    return f"{_DRAWN}{left}{line}{right}{_PLAIN}"


def _drawn_line(cells: Sequence[str], measured: Sequence[str], widths: list[int]) -> str:
    bar = f"{_DRAWN}x{_PLAIN}"
    padded = (
        f" {cell}{' ' * (columns - width(text))} "
        for cell, text, columns in zip(cells, measured, widths, strict=True)
    )
    return bar + bar.join(padded) + bar


_TABLES: Mapping[str, Callable[[Rows, bool], Iterator[str]]] = {
    "csv": _csv,
    "erlang": _erlang,
    "json": _json,
    "pretty_table": _drawn,
}
