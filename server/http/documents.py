"""Large JSON documents, read in slices: an array of a hundred thousand items stalls nobody."""

from __future__ import annotations

import json
import re
from typing import Any

from qlog.server.http.pace import Pace

_SPACE = re.compile(r"[ \t\n\r]*")
# A text that is a document of its own is an item: a definition has some hundred octets.
ITEMS_AT_ONCE = 20


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


_DECODER = json.JSONDecoder(parse_constant=_no_number)


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self.skip()

    def skip(self) -> None:
        found = _SPACE.match(self._text, self._at)
        assert found is not None
        self._at = found.end()

    def looks_at(self, char: str) -> bool:
        return self._text.startswith(char, self._at)

    def takes(self, char: str) -> bool:
        """Step over a character and the space behind it, if it is there."""
        if not self.looks_at(char):
            return False
        self._at += 1
        self.skip()
        return True

    def demand(self, char: str) -> None:
        if not self.takes(char):
            raise ValueError(f"'{char}' is missing at {self._at}")

    def value(self) -> Any:
        value, self._at = _DECODER.raw_decode(self._text, self._at)
        self.skip()
        return value

    @property
    def ended(self) -> bool:
        return self._at == len(self._text)


async def read_object(body: bytes) -> dict[str, Any]:
    """A JSON object whose values may be long arrays. Raises ValueError and RecursionError."""
    reader, pace = _Reader(body.decode("utf-8-sig")), Pace()
    found: dict[str, Any] = {}
    reader.demand("{")
    while not reader.takes("}"):
        if found:
            reader.demand(",")
        if not reader.looks_at('"'):
            raise ValueError("a key is no text")
        key = reader.value()
        reader.demand(":")
        found[key] = await _array(reader, pace) if reader.looks_at("[") else reader.value()
        await pace.rest()
    if not reader.ended:
        raise ValueError("there is something behind the document")
    return found


async def _array(reader: _Reader, pace: Pace) -> list[Any]:
    items: list[Any] = []
    reader.demand("[")
    while not reader.takes("]"):
        if items:
            reader.demand(",")
        items.append(reader.value())
        if not len(items) % ITEMS_AT_ONCE:
            await pace.rest()
    return items
