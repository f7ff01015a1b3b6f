"""What handlers answer with, and how it becomes octets: values at once, listings in slices."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import msgspec

T = TypeVar("T")

JSON = "application/json"
# What is sent at once, about: large enough for one send, small enough to be gathered in a moment.
CHUNK_BYTES = 64 * 1024
_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Answer:
    """Octets with a status; `body` may come in pieces."""

    status: int = 200
    body: bytes | AsyncGenerator[bytes, None] = b""
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Listing(Generic[T]):
    """Many objects: each has a name, to filter and sort by, and a view, which is made late.

    `paged`: the parameters of pages are obeyed (RabbitMQ ignores them elsewhere).
    """

    objects: Iterable[T]
    view: Callable[[T], Mapping[str, Any]]
    name: Callable[[T], str] = lambda item: ""
    order: Callable[[T], Any] | None = None
    paged: bool = False


NO_CONTENT = Answer(204)


def created(location: str | None = None) -> Answer:
    """201; `location` is the path of what was made."""
    return Answer(201, headers={} if location is None else {"location": location})


def put(existed: bool) -> Answer:
    """The answer to a PUT: 204 if it was there, else 201."""
    return NO_CONTENT if existed else created()


async def chunks(pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The pieces of a body, small ones together: each chunk is sent by itself."""
    parts: list[bytes] = []
    size = 0
    async with aclosing(pieces):
        async for piece in pieces:
            parts.append(piece)
            size += len(piece)
            if size >= CHUNK_BYTES:
                yield b"".join(parts)
                parts, size = [], 0
    yield b"".join(parts)


def encode(value: Any) -> bytes:
    """A value as JSON. Texts of clients may hold what is no character: it is replaced."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return msgspec.json.encode(_clean(value))


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATES.sub("\ufffd", value)
    if isinstance(value, Mapping):
        return {_clean(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return value
