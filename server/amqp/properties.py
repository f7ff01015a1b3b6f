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
from typing import Any, NamedTuple

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

    `persistent` is delivery mode 2. `special` says that expiration, reply_to or user_id
    is set, that the delivery mode is none of the two, or that the headers may hold CC or BCC (the
    octets of the names occur somewhere): only then need the properties be decoded.
    """

    persistent: bool
    special: bool


TRANSIENT, PERSISTENT = 1, 2  # delivery modes


_SHORTSTR, _TABLE, _OCTET, _TIMESTAMP = range(4)
_KINDS = {"headers": _TABLE, "delivery_mode": _OCTET, "priority": _OCTET, "timestamp": _TIMESTAMP}
_FIELDS = tuple(
    (field.name, _KINDS.get(field.name, _SHORTSTR), 1 << (15 - position))
    for position, field in enumerate(fields(Properties))
)
_U64 = struct.Struct(">Q")
_SPECIAL_NAMES = ("expiration", "reply_to", "user_id")
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
        steps, special = _STEPS.get(raw[:2]) or _learn_steps(raw[:2])
        offset = 2
        delivery_mode = TRANSIENT
        for step in steps:
            if step > 0:
                offset += step
            elif step == STEP_SHORTSTR:
                offset += 1 + raw[offset]
            elif step == STEP_TABLE:
                offset = skip_table(raw, offset)
                special = special or (b"CC" in raw and (b"\x02CC" in raw or b"\x03BCC" in raw))
            else:
                delivery_mode = raw[offset]
                offset += 1
    except (IndexError, struct.error, HardError):
        raise _malformed() from None
    if offset != len(raw) or raw[1] & _MORE_FLAGS:
        raise _malformed()
    if delivery_mode not in _KNOWN_MODES:
        special = True  # to be refused
    return _TRAITS[special][delivery_mode == PERSISTENT]


def steps_of(flags: bytes) -> list[int]:
    """What stands behind the two octets of flags: a STEP_…, or the octets of a value of fixed size."""
    return (_STEPS.get(flags) or _learn_steps(flags))[0]


def _learn_steps(flags: bytes) -> tuple[list[int], bool]:
    word = int.from_bytes(flags, "big")
    steps: list[int] = []
    for name, kind, bit in _FIELDS:
        if not word & bit:
            continue
        if name == "delivery_mode":
            steps.append(STEP_MODE)
        elif kind == _SHORTSTR:
            steps.append(STEP_SHORTSTR)
        elif kind == _TABLE:
            steps.append(STEP_TABLE)
        else:
            steps.append(1 if kind == _OCTET else _U64.size)
    if len(flags) < 2:
        return steps, False
    known = _STEPS[flags] = steps, word & _SPECIAL != 0
    return known


STEP_SHORTSTR, STEP_TABLE, STEP_MODE = 0, -1, -2
# By the flags: at most 65,536, of which traffic uses a few.
_STEPS: dict[bytes, tuple[list[int], bool]] = {}
_KNOWN_MODES = (TRANSIENT, PERSISTENT)
# All there can be, made once, so that they can be told apart by identity.
_TRAITS = [
    [Traits(persistent, special) for persistent in (False, True)] for special in (False, True)
]
