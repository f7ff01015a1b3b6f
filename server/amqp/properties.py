"""The properties of a message: what its content header carries behind the body size.

Promises that `scan` accepts exactly what `decode_properties` can decode, and that nothing but
`HardError` is raised for octets that are no properties. Knows nothing of what a property does.

Text need not be UTF-8: RabbitMQ does not check it, and clients do put raw octets in a correlation
id. What is not UTF-8 is decoded to surrogates (PEP 383), which encoding turns back.

    properties: flags u16 (bit 15 = content_type … bit 2 = cluster_id, bit 1 ignored, bit 0 = another
    word of flags, which class basic does not have), then the values of those present
"""

import struct
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypeAlias

from qlog.server.amqp.errors import HardError, internal_error
from qlog.server.amqp.spec import encode_shortstr
from qlog.server.amqp.values import Table, Timestamp, decode_table, encode_table, skip_table


@dataclass(slots=True)
class Properties:
    """The fourteen properties of class basic, None when absent."""

    content_type: str | None = None
    content_encoding: str | None = None
    headers: Table | None = None
    delivery_mode: int | None = None
    priority: int | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    expiration: str | None = None
    message_id: str | None = None
    timestamp: Timestamp | None = None
    type: str | None = None
    user_id: str | None = None
    app_id: str | None = None
    cluster_id: str | None = None


class Traits(NamedTuple):
    """What the broker must know of every message before it is routed.

    `delivery_mode` is 0 when absent. `special` says that priority, expiration, reply_to or user_id
    is set, that the delivery mode is none of the two, or that the headers hold CC or BCC: only
    then need the properties be decoded.
    """

    delivery_mode: int
    special: bool


NO_PROPERTIES = b"\x00\x00"

_SHORTSTR, _TABLE, _OCTET, _TIMESTAMP = range(4)
_KINDS = {"headers": _TABLE, "delivery_mode": _OCTET, "priority": _OCTET, "timestamp": _TIMESTAMP}
_FIELDS = tuple(
    (field.name, _KINDS.get(field.name, _SHORTSTR), 1 << (15 - position))
    for position, field in enumerate(fields(Properties))
)
_U64 = struct.Struct(">Q")
_SPECIAL_NAMES = ("priority", "expiration", "reply_to", "user_id")
_SPECIAL = sum(bit for name, _, bit in _FIELDS if name in _SPECIAL_NAMES)
_MORE_FLAGS = 1


def _malformed() -> HardError:
    # RabbitMQ's reply, which has no text.
    return internal_error()


def decode_properties(raw: bytes) -> Properties:
    """Decode flags and values. Raises HardError (541) when they are malformed."""
    properties = Properties()
    try:
        flags = raw[0] << 8 | raw[1]
        offset = 2
        for name, kind, bit in _FIELDS:
            if not flags & bit:
                continue
            value: Any
            if kind == _SHORTSTR:
                end = offset + 1 + raw[offset]
                value = str(raw[offset + 1 : end], "utf-8", "surrogateescape")
            elif kind == _TABLE:
                value, end = decode_table(raw, offset)
            elif kind == _OCTET:
                value, end = raw[offset], offset + 1
            else:
                value, end = Timestamp(_U64.unpack_from(raw, offset)[0]), offset + 8
            setattr(properties, name, value)
            offset = end
    except (IndexError, struct.error, HardError):
        raise _malformed() from None
    if offset != len(raw) or flags & _MORE_FLAGS:
        raise _malformed()
    return properties


def encode_properties(properties: Properties) -> bytes:
    """Encode flags and values. Raises ValueError when a value does not fit its field."""
    flags = 0
    parts = [b""]
    for name, kind, bit in _FIELDS:
        value = getattr(properties, name)
        if value is None:
            continue
        flags |= bit
        if kind == _SHORTSTR:
            parts.append(encode_shortstr(value))
        elif kind == _TABLE:
            parts.append(encode_table(value))
        elif kind == _OCTET:
            parts.append(bytes((value,)))
        else:
            parts.append(_encode_timestamp(value))
    parts[0] = flags.to_bytes(2, "big")
    return b"".join(parts)


def _encode_timestamp(seconds: int) -> bytes:
    if not 0 <= seconds < 2**64:
        raise ValueError(f"timestamp {seconds} does not fit 64 bits")
    return _U64.pack(seconds)


def scan(raw: bytes) -> Traits:
    """Validate properties without building them. Raises HardError as `decode_properties` does."""
    try:
        flags = raw[0] << 8 | raw[1]
        shape = _SHAPES.get(flags)
        if shape is None:
            shape = _SHAPES[flags] = _shape(flags)
        strings_first, table, octets, strings_middle, timestamp_bytes, strings_last, special = shape
        offset = 2
        for _ in strings_first:
            offset += 1 + raw[offset]
        if table:
            offset = skip_table(raw, offset)
        delivery_mode = raw[offset] if flags & _DELIVERY_MODE else 0
        offset += octets
        for _ in strings_middle:
            offset += 1 + raw[offset]
        offset += timestamp_bytes
        for _ in strings_last:
            offset += 1 + raw[offset]
    except (IndexError, struct.error, HardError):
        raise _malformed() from None
    if offset != len(raw) or flags & _MORE_FLAGS:
        raise _malformed()
    if delivery_mode not in _KNOWN_MODES or (flags & _DELIVERY_MODE and not delivery_mode):
        special = True  # to be refused
    if table and not special and b"CC" in raw:
        headers = decode_properties(raw).headers or {}
        special = "CC" in headers or "BCC" in headers
    return _TRAITS[special][delivery_mode]


# What stands in which order behind one word of flags: the strings before the headers (only their
# number counts), whether there are headers, the octets of delivery mode and priority, the strings
# before the timestamp, its octets, the strings behind it; and whether the flags alone are special.
_Shape: TypeAlias = tuple[range, bool, int, range, int, range, bool]


def _shape(flags: int) -> _Shape:
    kinds = [kind if flags & bit else None for _, kind, bit in _FIELDS]
    first, middle, last = (
        range(part.count(_SHORTSTR)) for part in (kinds[:2], kinds[4:9], kinds[10:])
    )
    timestamp_bytes = _U64.size if _TIMESTAMP in kinds else 0
    special = flags & _SPECIAL != 0
    return first, _TABLE in kinds, kinds.count(_OCTET), middle, timestamp_bytes, last, special


_KNOWN_MODES = (0, 1, 2)
_DELIVERY_MODE = next(bit for name, _, bit in _FIELDS if name == "delivery_mode")
# By the word of flags: at most 65,536, of which traffic uses a few.
_SHAPES: dict[int, _Shape] = {}
# All there can be, made once: by special, then by delivery mode.
_TRAITS = [[Traits(mode, special) for mode in range(256)] for special in (False, True)]
