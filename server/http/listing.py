"""Listings: filtered, sorted, cut into pages, reduced to columns; all of it in slices."""

from __future__ import annotations

import heapq
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import regex

from qlog.server.http.answers import Answer, Listing, encode
from qlog.server.http.pace import Pace, paced
from qlog.server.http.refusals import bad_request, refusal

T = TypeVar("T")

PAGE_SIZE = 100
PAGE_SIZE_MAX = 500
# So many are sorted in one piece: some milliseconds.
SORTED_AT_ONCE = 2000
# A name is compared with a pattern of a stranger for no longer than this; all of them together
# for no longer than PATTERN_S_MAX.
MATCH_S_MAX = 0.01
PATTERN_S_MAX = 1.0
DIGITS_MAX = 9  # of a number in the query


@dataclass(frozen=True, slots=True)
class Paging:
    """The parameters of a page."""

    page: int
    size: int
    name: str
    use_regex: bool


def paging(query: Mapping[str, str]) -> Paging | None:
    """The page that is asked for; None: all are. Raises 400."""
    if "page" not in query:
        return None
    page = _number(query["page"])
    size = PAGE_SIZE if "page_size" not in query else _number(query["page_size"])
    if page < 1 or not 1 <= size <= PAGE_SIZE_MAX:
        shown = size if "page_size" in query else "undefined"
        raise refusal(
            400,
            "invalid_pagination_parameters",
            f"Invalid pagination parameters: page number {page}, page size {shown}",
        )
    return Paging(page, size, query.get("name", ""), query.get("use_regex") == "true")


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > DIGITS_MAX:
        raise bad_request("Pagination parameters are invalid")
    return int(text)


async def answer_listing(listing: Listing[T], query: Mapping[str, str]) -> Answer:
    """The answer to a request for a listing. Raises 400."""
    page = paging(query) if listing.paged else None
    columns = split_columns(query)
    every = await gathered(listing.objects)
    if page is None:
        objects = await ordered(listing, every, query)
        return Answer(body=_array(objects, listing.view, columns))
    found = every
    if page.name:
        found = await filtered(every, listing.name, page.name, page.use_regex)
    first = (page.page - 1) * page.size
    if first >= len(found) and page.page > 1:
        raise refusal(
            400,
            "page_out_of_range",
            f"Page out of range, page: {page.page} page size: {page.size}, len: {len(found)}",
        )
    shown = (await ordered(listing, found, query))[first : first + page.size]
    before = encode({"filtered_count": len(found), "item_count": len(shown)})
    after = encode(
        {
            "page": page.page,
            "page_count": -(-len(found) // page.size),
            "page_size": page.size,
            "total_count": len(every),
        }
    )
    around = (before[:-1] + b',"items":', b"," + after[1:])
    return Answer(body=_array(shown, listing.view, columns, around))


async def gathered(objects: Any) -> list[Any]:
    """All objects of an iterator."""
    return [item async for item in paced(objects)]


async def filtered(
    objects: list[T], name: Callable[[T], str], text: str, use_regex: bool
) -> list[T]:
    """Those whose names have the text, or what matches the pattern. Raises 400."""
    if not use_regex:
        wanted = text.lower()
        return [item async for item in paced(objects) if wanted in name(item).lower()]
    try:
        pattern = regex.compile(text, regex.IGNORECASE)
    except (regex.error, RecursionError, OverflowError):
        raise bad_request("Pagination parameters are invalid") from None
    found: list[T] = []
    pace = Pace()
    left_s = PATTERN_S_MAX
    for item in objects:
        began_s = time.perf_counter()
        try:
            if pattern.search(name(item), timeout=min(MATCH_S_MAX, left_s)):
                found.append(item)
        except TimeoutError:
            raise bad_request("the regular expression takes too long") from None
        left_s -= time.perf_counter() - began_s
        if left_s <= 0:
            raise bad_request("the regular expression takes too long")
        await pace.rest()
    return found


async def ordered(listing: Listing[T], objects: list[T], query: Mapping[str, str]) -> list[T]:
    """The objects in their own order, or by a column (`a.b.c`); equal ones in their own order."""
    column, reverse = query.get("sort", ""), query.get("sort_reverse") == "true"
    objects = await in_order(objects, listing.order, reverse and not column)
    if not column:
        return objects
    path = column.split(".")

    def key(item: T) -> Any:
        return _Key(_value_at(listing.view(item), path))

    return await in_order(objects, key, reverse)


class _Key:
    """Values of any types in one order, that of Erlang: numbers, then texts, then the rest."""

    __slots__ = ("kind", "value")

    def __init__(self, value: Any) -> None:
        self.value: Any
        if value is None:
            self.kind, self.value = 0, 0
        elif isinstance(value, int | float):
            self.kind, self.value = 1, value
        elif isinstance(value, str):
            self.kind, self.value = 2, value
        else:
            self.kind, self.value = 3, str(value)

    def __lt__(self, other: _Key) -> bool:
        if self.kind != other.kind:
            return self.kind < other.kind
        less: bool = self.value < other.value
        return less


def _value_at(view: Mapping[str, Any], path: list[str]) -> Any:
    value: Any = view
    for name in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


async def in_order(objects: list[T], key: Callable[[T], Any] | None, reverse: bool) -> list[T]:
    """The objects sorted, piece by piece, and the pieces merged."""
    if key is None:
        return objects[::-1] if reverse else objects
    keyed = [(key(item), number) async for number, item in paced(enumerate(objects))]
    pace = Pace()
    pieces: list[list[tuple[Any, int]]] = []
    for first in range(0, len(keyed), SORTED_AT_ONCE):
        pieces.append(sorted(keyed[first : first + SORTED_AT_ONCE], key=_first, reverse=reverse))
        await pace.rest()
    if len(pieces) <= 1:
        return [objects[number] for piece in pieces for _, number in piece]
    merged = heapq.merge(*pieces, key=_first, reverse=reverse)
    return [objects[number] async for _, number in paced(merged)]


def _first(pair: tuple[Any, int]) -> Any:
    return pair[0]


def split_columns(query: Mapping[str, str]) -> list[list[str]]:
    """The columns that are asked for, each as its path; none: all of them."""
    return [name.split(".") for name in query.get("columns", "").split(",") if name]


def reduced(view: Mapping[str, Any], columns: list[list[str]]) -> Mapping[str, Any]:
    """What the columns leave of an object."""
    if not columns:
        return view
    found: dict[str, Any] = {}
    for path in columns:
        _copy(view, path, found)
    return found


def _copy(source: Any, path: list[str], target: dict[str, Any]) -> None:
    name, rest = path[0], path[1:]
    if not isinstance(source, Mapping) or name not in source:
        return
    if not rest:
        target[name] = source[name]
    elif isinstance(source[name], list):
        target[name] = [reduced(item, [rest]) for item in source[name]]
    else:
        inner = target.setdefault(name, {})
        if isinstance(inner, dict):
            _copy(source[name], rest, inner)


async def _array(
    objects: list[T],
    view: Callable[[T], Mapping[str, Any]],
    columns: list[list[str]],
    around: tuple[bytes, bytes] = (b"", b""),
) -> AsyncGenerator[bytes, None]:
    """A JSON array, item by item, with what is before and behind it."""
    pace = Pace()
    yield around[0] + b"["
    for number, item in enumerate(objects, 1):
        text = encode(reduced(view(item), columns))
        yield b"," + text if number > 1 else text
        await pace.rest()
    yield b"]" + around[1]
