"""Values in the four ways in which results are written: text, JSON, CSV and Erlang terms.

The API has JSON, which knows fewer types than Erlang has. What the commands print of a value
depends on what it is in RabbitMQ: the classes below say so.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

_ESCAPES = {"\t": "\\t", "\n": "\\n", "\r": "\\r", "\x1b": "\\e"}
_INT32_MAX = 0x7FFFFFFF


class Atom(str):
    """A name that Erlang has as an atom, such as a tag or a state."""


class Address(str):
    """An IP address; Erlang has a tuple of its numbers."""


class Arguments(dict[str, Any]):
    """A table of AMQP. JSON has lost its types; they are the smallest that fit."""


class Definition(dict[str, Any]):
    """What a policy says."""


class Numbers(tuple[int, ...]):
    """A tuple of numbers, such as the version of a protocol."""


def to_json(value: Any) -> str:
    """JSON without spaces."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


# -- text ------------------------------------------------------------------------------------


def as_text(value: Any) -> str:
    """A cell of a table. What would break the table or obey nobody's wish is escaped."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Arguments):
        return printable(_arguments_text(value))
    if isinstance(value, Definition):
        pairs = (f'{{<<"{key}">>, {as_text(item)}}}' for key, item in value.items())
        return f"[{', '.join(pairs)}]"
    if isinstance(value, Numbers):
        return f"{{{','.join(map(str, value))}}}"
    if isinstance(value, Mapping):
        return printable(to_json(value))
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_text, value))}]"
    return str(value)


def printable(text: str) -> str:
    """The text without control characters: names come from clients, and go to terminals."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else _ESCAPES.get(char, f"\\x{ord(char):02x}") for char in text
    )


def width(text: str) -> int:
    """How many columns of a terminal the text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


def padded(text: str, columns: int) -> str:
    """The text, filled up to so many columns of a terminal."""
    return text + " " * (columns - width(text))


def shortened(text: str, columns: int) -> str:
    """The text, or as much of its beginning as fits so many columns of a terminal."""
    if width(text) <= columns:
        return text
    while width(text) > columns - 1:
        text = text[:-1]
    return f"{text}…"


def _arguments_text(table: Mapping[str, Any]) -> str:
    return f"[{','.join(f'{{{_quoted(key)},{_argument(item)}}}' for key, item in table.items())}]"


def _argument(value: Any) -> str:
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, Mapping):
        return _arguments_text(value)
    if isinstance(value, list):
        return f"[{','.join(map(_argument, value))}]"
    return "undefined" if value is None else as_text(value)


def _quoted(text: str) -> str:
    return f'"{text}"'


# -- JSON ------------------------------------------------------------------------------------


def as_json(value: Any) -> Any:
    """A value for JSON, as RabbitMQ's JSON formatter has it."""
    if value is None:
        return ""
    if isinstance(value, Arguments):
        return [[key, *_typed(item)] for key, item in value.items()]
    if isinstance(value, Definition):
        return [[key, item] for key, item in value.items()]
    if isinstance(value, Address):
        parts = value.split(".")
        return [int(part) for part in parts] if len(parts) == 4 else str(value)
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return value


def _typed(value: Any) -> tuple[str, Any]:
    if isinstance(value, bool):
        return "bool", value
    if isinstance(value, int):
        return ("signedint" if -_INT32_MAX <= value <= _INT32_MAX else "long"), value
    if isinstance(value, float):
        return "double", value
    if isinstance(value, str):
        return "longstr", value
    if isinstance(value, Mapping):
        return "table", [[key, *_typed(item)] for key, item in value.items()]
    if isinstance(value, list):
        return "array", [list(_typed(item)) for item in value]
    return "void", "undefined"


# -- Erlang ----------------------------------------------------------------------------------


def as_term(value: Any) -> str:
    """An Erlang term, on one line."""
    if value is None:
        return "undefined"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Atom):
        return str(value) if value.replace("_", "").isalnum() and value.islower() else f"'{value}'"
    if isinstance(value, str):
        return binary(value)
    if isinstance(value, Arguments):
        return _list(_tuple(binary(key), *_term_typed(item)) for key, item in value.items())
    if isinstance(value, Numbers):
        return _tuple(*map(str, value))
    if isinstance(value, Mapping):
        return _list(_tuple(binary(key), as_term(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return _list(map(as_term, value))
    return str(value)


def binary(text: str) -> str:
    """A text as a binary."""
    return f'<<"{_escaped(text)}">>'


def _term_typed(value: Any) -> tuple[str, str]:
    kind, _ = _typed(value)
    return kind, as_term(Arguments(value) if isinstance(value, Mapping) else value)


def _escaped(text: str) -> str:
    return printable(text.replace("\\", "\\\\").replace('"', '\\"'))


def _list(items: Iterable[str]) -> str:
    return f"[{','.join(items)}]"


def _tuple(*items: str) -> str:
    return f"{{{','.join(items)}}}"


def inspected(text: str) -> str:
    """A text as Elixir shows it."""
    return f'"{_escaped(text)}"'
