"""Long texts in JSON, read and written in pieces: a message of 15 MB stalls nobody.

Promises that no more than some PIECE_BYTES of a text are looked at between two pauses.
"""

from __future__ import annotations

import codecs
import re
import secrets
from binascii import a2b_base64, b2a_base64
from collections.abc import AsyncGenerator, Sequence

import msgspec

from qlog.server.http.pace import Pace

PIECE_BYTES = 192 * 1024  # a whole number of base64's groups
# A text that is longer than this is not understood with the rest of its document.
SHORT_BYTES_MAX = 256 * 1024
# What is left of a document without its long texts.
REST_BYTES_MAX = 2 * SHORT_BYTES_MAX
TEXTS_AT_ONCE = 100
# The next piece of a text. It ends neither in a character nor in an escape, nor between two escapes
# that are one character together.
_PIECE = re.compile(
    rb"(?:[^\"\\\x80-\xff]{1,768}"
    rb"|[\xc0-\xff][\x80-\xbf]*"
    rb"|\\u[dD][89abAB]..\\u....|\\u....|\\[^u]){1,256}",
    re.DOTALL,
)


class TooLong(Exception):
    """A document is longer than REST_BYTES_MAX without its long texts."""


class LongText:
    """A text as it stands between its quotes in a document, in pieces."""

    __slots__ = ("_pieces",)

    def __init__(self, pieces: Sequence[memoryview]) -> None:
        self._pieces = pieces

    async def utf8(self) -> bytes:
        """Its octets. Raises ValueError if it is no text of JSON."""
        pace = Pace()
        parts: list[bytes] = []
        for piece in self._pieces:
            parts.append(_decoded(piece))
            await pace.rest()
        return b"".join(parts)

    async def from_base64(self) -> bytes:
        """The octets that it stands for. Raises ValueError if it is not base64."""
        pace = Pace()
        parts: list[bytes] = []
        left = b""
        for piece in self._pieces:
            left += _decoded(piece)
            end = (len(left) - 1) // 4 * 4  # the last group alone may be padded
            if b"=" in left[:end]:
                raise ValueError("there is something behind the padding")
            parts.append(a2b_base64(left[:end], strict_mode=True))
            left = left[end:]
            await pace.rest()
        return b"".join([*parts, a2b_base64(left, strict_mode=True)])


def _decoded(piece: memoryview) -> bytes:
    """Raises ValueError, which msgspec.DecodeError is not."""
    try:
        return msgspec.json.decode(b"".join((b'"', piece, b'"')), type=str).encode()
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from error


async def without_long_texts(body: bytes) -> tuple[bytes, dict[str, LongText]]:
    """A JSON document with a name in the place of each long text, and these texts by name.

    Raises ValueError if it is no JSON (it may not raise, and the document be none all the same),
    and TooLong.
    """
    pace, view = Pace(), memoryview(body)
    secret = secrets.token_hex()  # no text of the document is like a name
    parts: list[bytes] = []
    texts: dict[str, LongText] = {}
    at = left = number = 0
    while (start := body.find(b'"', at)) >= 0:
        end = start + 1
        pieces: list[memoryview] = []
        while body[end : end + 1] != b'"':
            piece = _PIECE.match(body, end)
            if piece is None:
                raise ValueError(f"a text that begins at {start} has no end, or is none")
            pieces.append(view[end : piece.end()])
            end = piece.end()
            await pace.rest()
        if end - start > SHORT_BYTES_MAX:
            name = f"{secret} {len(texts)}"
            texts[name] = LongText(pieces)
            parts += (body[at:start], b'"%b"' % name.encode())
        else:
            parts.append(body[at : end + 1])
        left += len(parts[-1]) + start - at
        if left > REST_BYTES_MAX:
            raise TooLong
        at = end + 1
        number += 1
        if not number % TEXTS_AT_ONCE:
            await pace.rest()
    if left + len(body) - at > REST_BYTES_MAX:
        raise TooLong
    return b"".join([*parts, body[at:]]), texts


async def is_text(body: bytes) -> bool:
    """Whether the octets are UTF-8."""
    pace = Pace()
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for first in range(0, len(body), PIECE_BYTES):
            decoder.decode(body[first : first + PIECE_BYTES])
            await pace.rest()
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


async def as_text(body: bytes) -> AsyncGenerator[bytes, None]:
    """Octets that are UTF-8, as they stand between the quotes of a text in JSON."""
    pace = Pace()
    decoder = codecs.getincrementaldecoder("utf-8")()
    for first in range(0, len(body), PIECE_BYTES):
        yield msgspec.json.encode(decoder.decode(body[first : first + PIECE_BYTES]))[1:-1]
        await pace.rest()


async def as_base64(body: bytes) -> AsyncGenerator[bytes, None]:
    """Octets in base64."""
    pace = Pace()
    for first in range(0, len(body), PIECE_BYTES):
        yield b2a_base64(body[first : first + PIECE_BYTES], newline=False)
        await pace.rest()
