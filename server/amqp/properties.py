"""The properties of a message: what its content header carries behind the body size.

Promises that `examine` accepts exactly what `decode_properties` can decode, but for floats that are
no numbers; that what it returns is written as RabbitMQ writes it; and that nothing but `HardError`
is raised for octets that are no properties. Knows nothing of what a property does.

Text need not be UTF-8: RabbitMQ does not check it, and clients do put raw octets in a correlation
id. What is not UTF-8 is decoded to surrogates (PEP 383), which encoding turns back.

    properties: flags u16 (bit 15 = content_type … bit 2 = cluster_id, bit 1 ignored, bit 0 =
    another word of flags, which class basic does not have), then the values of those present
"""

import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from qlog.server.amqp.errors import HardError, internal_error
from qlog.server.amqp.spec import encode_shortstr
from qlog.server.amqp.values import (
    Table,
    Timestamp,
    Unclean,
    Value,
    decode_entries,
    decode_table,
    encode_table,
    encode_value,
    join_entries,
    raw_entries,
    rewrite_table,
    skip_clean_table,
)


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


# `Traits.needs`: what has to be looked at in each such message before it is routed or stored.
CC = 1  # the headers have CC or BCC: more routing keys
REPLY_TO = 2  # reply_to names the pseudo-queue of direct replies
USER_ID = 4  # user_id is set, and must be the publisher's
DELAY = 8  # the headers have x-delay
DEDUP = 16  # the headers have x-deduplication-header
RECORD = 64  # the headers have x-qlog-record: an import says what the broker knew of the message
BAD_EXPIRATION = 32  # the expiration is no number of ms that RabbitMQ takes: to be refused

# What an import says by this header: see `envelope.Record`. It is taken away before the message is
# stored.
RECORD_HEADER = "x-qlog-record"

# A client that names this queue in reply_to wants the answer on the channel that it asks on.
PSEUDO_QUEUE = "amq.rabbitmq.reply-to"
_PSEUDO_QUEUE = PSEUDO_QUEUE.encode()

# Longer expirations are refused, as Erlang's timers end here (rabbit_misc:check_expiry).
EXPIRY_MS_MAX = 315_360_000_000
_SURE_DIGITS = 11  # no number of so many digits is above it
assert 10**_SURE_DIGITS <= EXPIRY_MS_MAX


# A quorum queue has two priorities: messages above this one, and all others.
HIGH_ABOVE = 4


class Traits(NamedTuple):
    """What the broker must know of a message before it is routed and stored.

    `persistent` is delivery mode 2. `priority` is 0 to 255, or None when absent. `expiration` is a
    number of ms, or the text as it came if that is no number (BAD_EXPIRATION), or None when absent.
    `needs` is a sum of the constants above.

    Equal traits are mostly, but not always, the same object.
    """

    persistent: bool
    priority: int | None
    expiration: int | str | None
    needs: int

    @property
    def is_high(self) -> bool:
        """One of the messages that a quorum queue prefers, as RabbitMQ 4.0 does."""
        return (self.priority or 0) > HIGH_ABOVE


NO_TRAITS = Traits(persistent=False, priority=None, expiration=None, needs=0)


PERSISTENT = 2  # a delivery mode; all others are transient


_SHORTSTR, _TABLE, _OCTET, _TIMESTAMP = range(4)
_KINDS = {"headers": _TABLE, "delivery_mode": _OCTET, "priority": _OCTET, "timestamp": _TIMESTAMP}
_FIELDS = tuple(
    (field.name, _KINDS.get(field.name, _SHORTSTR), 1 << (15 - position))
    for position, field in enumerate(fields(Properties))
)
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
_FLAGS = {name: bit for name, _, bit in _FIELDS}
# In the first octet of the flags: the headers, and what may be before them.
_CONTENT_TYPE_FLAG, _CONTENT_ENCODING_FLAG, _HEADERS_FLAG = (
    _FLAGS[name] >> 8 for name in ("content_type", "content_encoding", "headers")
)
_UNUSED_FLAG = 2
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


# --- what the broker must know, without building all


def examine(raw: bytes) -> tuple[Traits, bytes]:
    """Validate properties: their traits, and their octets as RabbitMQ would write them.

    The octets are nearly always `raw` itself. What is changed: a header that stands twice keeps its
    first value, `L` becomes `l`, and a bool becomes 0 or 1 (rabbit_binary_parser). Raises HardError
    (541) when `decode_properties` does, and for a float that is no number.
    """
    try:
        return _traits(raw), raw
    except (IndexError, struct.error, Unclean):
        pass
    try:
        clean = _rewritten(raw)
    except (IndexError, struct.error, HardError):
        raise _malformed() from None
    return _traits(clean), clean


def traits_of(
    persistent: bool, priority: int | None, expiration: bytes | None, needs: int
) -> Traits:
    """The traits with these values, `expiration` as text; mostly the same object as before."""
    key = (persistent, priority, expiration, needs)
    traits = _KNOWN_TRAITS.get(key)
    if traits is None:
        if len(_KNOWN_TRAITS) >= TRAITS_MAX:
            _KNOWN_TRAITS.clear()
        value = None if expiration is None else _expiration(expiration)
        if isinstance(value, str):
            needs |= BAD_EXPIRATION
        # The same result as Traits(…), at half the cost: each message may have another expiration.
        traits = _new_tuple(Traits, (persistent, priority, value, needs))
        _KNOWN_TRAITS[key] = traits
    return traits


def _expiration(octets: bytes) -> int | str:
    if len(octets) <= _SURE_DIGITS and octets.isdigit():  # as nearly always
        return int(octets)
    text = str(octets, "utf-8", "surrogateescape")
    return text if expiration_complaint(text) else int(text)


def expiration_complaint(text: str) -> str | None:
    """What RabbitMQ finds wrong with an expiration; None when it is a number of ms.

    The words are those of rabbit_basic:parse_expiration and rabbit_misc:check_expiry.
    """
    digits = len(text) - len(text.lstrip("+-0123456789"))
    number, rest = text[:digits], text[digits:]
    try:
        milliseconds = int(number)
    except ValueError:
        return "no_integer"
    if rest:
        return f'{{leftover_string,"{rest}"}}'
    if milliseconds < 0:
        return f"{{value_negative,{milliseconds}}}"
    if milliseconds > EXPIRY_MS_MAX:
        return f"{{value_too_large,{milliseconds}}}"
    return None


def _traits(raw: bytes) -> Traits:
    """The traits of clean properties. Raises Unclean, IndexError or struct.error for all others."""
    steps, needs = _STEPS.get(raw[:2]) or _learn_steps(raw[:2])
    offset = 2
    persistent = False
    priority = expiration = None
    for step in steps:
        if step > 0:
            offset += step
        elif step == STEP_SHORTSTR:
            offset += 1 + raw[offset]
        elif step == STEP_TABLE:
            keys: list[bytes] = []
            offset = skip_clean_table(raw, offset, keys)
            for key in _NEEDS.keys() & keys:
                needs |= _NEEDS[key]
        elif step == STEP_MODE:
            persistent = raw[offset] == PERSISTENT
            offset += 1
        elif step == STEP_PRIORITY:
            priority = raw[offset]
            offset += 1
        else:
            end = offset + 1 + raw[offset]
            if step == STEP_EXPIRATION:
                expiration = raw[offset + 1 : end]
            elif raw[offset + 1 : end] == _PSEUDO_QUEUE:
                needs |= REPLY_TO
            offset = end
    if offset != len(raw) or raw[1] & (_MORE_FLAGS | _UNUSED_FLAG):
        raise Unclean
    return traits_of(persistent, priority, expiration, needs)


def _rewritten(raw: bytes) -> bytes:
    """Properties as RabbitMQ would write them. Raises HardError, IndexError or struct.error."""
    flags = int.from_bytes(raw[:2], "big")
    parts = [(flags & ~_UNUSED_FLAG).to_bytes(2, "big")]
    offset = 2
    for name, kind, bit in _FIELDS:
        if not flags & bit:
            continue
        end = _end_of(raw, offset, kind)
        if name == "headers":
            table, end = rewrite_table(raw, offset)
            parts.append(table)
        else:
            parts.append(raw[offset:end])
        offset = end
    if len(raw) < 2 or offset != len(raw) or flags & _MORE_FLAGS:
        raise _malformed()
    return b"".join(parts)


def _end_of(raw: bytes, offset: int, kind: int) -> int:
    """Where the value at `offset` ends."""
    if kind == _SHORTSTR:
        return offset + 1 + raw[offset]
    if kind == _TABLE:
        size: int = _U32.unpack_from(raw, offset)[0]
        return offset + 4 + size
    return offset + (1 if kind == _OCTET else 8)


def spans_of(raw: bytes) -> Iterator[tuple[str, int, int]]:
    """(name, begin, end) of each property that is set, its length included."""
    flags = raw[0] << 8 | raw[1]
    offset = 2
    for field, kind, bit in _FIELDS:
        if flags & bit:
            end = _end_of(raw, offset, kind)
            yield field, offset, end
            offset = end


def _span_of(raw: bytes, name: str) -> tuple[int, int] | None:
    """Where the value of a property begins and ends; None when absent."""
    if not (raw[0] << 8 | raw[1]) & _FLAGS[name]:
        return None
    return next((begin, end) for field, begin, end in spans_of(raw) if field == name)


def _headers_span(raw: bytes) -> tuple[int, int] | None:
    """Where the headers begin and end; None without any. Two properties at most are before them."""
    flags = raw[0]
    if not flags & _HEADERS_FLAG:
        return None
    begin = 2
    if flags & _CONTENT_TYPE_FLAG:
        begin += 1 + raw[begin]
    if flags & _CONTENT_ENCODING_FLAG:
        begin += 1 + raw[begin]
    size: int = _U32.unpack_from(raw, begin)[0]
    return begin, begin + 4 + size


def text_of(raw: bytes, name: str) -> str | None:
    """One property that is a short string, None when it is absent; `raw` is known to be valid."""
    span = _span_of(raw, name)
    return None if span is None else str(raw[span[0] + 1 : span[1]], "utf-8", "surrogateescape")


def timestamp_of(raw: bytes) -> int | None:
    """The timestamp in seconds, None when it is absent; `raw` is known to be valid."""
    span = _span_of(raw, "timestamp")
    return None if span is None else int(_U64.unpack_from(raw, span[0])[0])


def headers_of(raw: bytes, names: Collection[str] | None = None) -> Table:
    """The headers with these names, or all headers; `raw` is known to be valid."""
    span = _headers_span(raw)
    if span is None:
        return {}
    if names is None:
        return decode_table(raw, span[0])[0]
    wanted = {name.encode(): name for name in names}
    for name in wanted:
        if name in raw:  # else it is none of the headers
            return decode_entries(raw, span[0], wanted)
    return {}


def with_text(raw: bytes, name: str, text: str) -> bytes:
    """Valid properties with another value of a short string that they have. Raises ValueError."""
    span = _span_of(raw, name)
    assert span is not None
    return raw[: span[0]] + encode_shortstr(text) + raw[span[1] :]


def without_header(raw: bytes, name: str) -> bytes:
    """Properties without the named header. `raw` must be valid and clean, and have headers."""
    span = _headers_span(raw)
    assert span is not None
    table, _ = rewrite_table(raw, span[0], without=name.encode())
    return raw[: span[0]] + table + raw[span[1] :]


def stripped(raw: bytes, names: Collection[bytes]) -> bytes:
    """Valid properties without the named headers, and without headers if none is left."""
    span = _headers_span(raw)
    if span is None:
        return raw
    entries = raw_entries(raw, span[0])
    left = {name: value for name, value in entries.items() if name not in names}
    if len(left) == len(entries):
        return raw
    if left:
        table = b"".join(_named(name) + value for name, value in left.items())
        return raw[: span[0]] + len(table).to_bytes(4, "big") + table + raw[span[1] :]
    flags = (raw[0] << 8 | raw[1]) & ~_FLAGS["headers"]
    return flags.to_bytes(2, "big") + raw[2 : span[0]] + raw[span[1] :]


def _named(name: bytes) -> bytes:
    return bytes((len(name),)) + name


def with_header(raw: bytes, name: str, value: Value) -> bytes:
    """Properties with one more header behind theirs. `raw` must be valid, and have headers."""
    span = _headers_span(raw)
    assert span is not None
    table = raw[span[0] + 4 : span[1]] + encode_shortstr(name) + encode_value(value)
    return raw[: span[0]] + len(table).to_bytes(4, "big") + table + raw[span[1] :]


def raw_headers(raw: bytes) -> dict[bytes, bytes]:
    """The headers of valid properties, not decoded: each value with its type."""
    span = _headers_span(raw)
    return {} if span is None else raw_entries(raw, span[0])


def with_headers(
    raw: bytes, headers: Mapping[bytes, bytes], *, keep_expiration: bool = False
) -> bytes:
    """Valid properties with these headers instead of theirs, and mostly without an expiration.

    `headers`: each value with its type, as `raw_headers` has them. They are sorted by their names.
    """
    flags = raw[0] << 8 | raw[1]
    dropped = 0 if keep_expiration else _FLAGS["expiration"]
    span = _headers_span(raw)
    if span is not None and not flags & dropped:  # all else stays as it is
        return raw[: span[0]] + join_entries(headers) + raw[span[1] :]
    parts = [(flags & ~dropped | _FLAGS["headers"]).to_bytes(2, "big")]
    offset = 2
    for name, kind, bit in _FIELDS:
        if name == "headers":
            parts.append(join_entries(headers))
        if flags & bit:
            end = _end_of(raw, offset, kind)
            if name != "headers" and not bit & dropped:
                parts.append(raw[offset:end])
            offset = end
    return b"".join(parts)


def steps_of(flags: bytes) -> list[int]:
    """What stands behind the flags: a STEP_…, or the octets of a value of fixed size."""
    return (_STEPS.get(flags) or _learn_steps(flags))[0]


def _learn_steps(flags: bytes) -> tuple[list[int], int]:
    word = int.from_bytes(flags, "big")
    steps: list[int] = []
    for name, kind, bit in _FIELDS:
        if word & bit:
            steps.append(_STEP_OF.get(name) or (8 if kind == _TIMESTAMP else STEP_SHORTSTR))
    if len(flags) < 2:
        raise IndexError
    known = _STEPS[flags] = steps, USER_ID if word & _FLAGS["user_id"] else 0
    return known


STEP_SHORTSTR, STEP_TABLE, STEP_MODE, STEP_PRIORITY, STEP_EXPIRATION, STEP_REPLY_TO = range(
    0, -6, -1
)
_STEP_OF = {
    "headers": STEP_TABLE,
    "delivery_mode": STEP_MODE,
    "priority": STEP_PRIORITY,
    "expiration": STEP_EXPIRATION,
    "reply_to": STEP_REPLY_TO,
}
# By the flags: at most 65,536 entries; traffic uses a few.
_STEPS: dict[bytes, tuple[list[int], int]] = {}
_NEEDS = {
    b"CC": CC,
    b"BCC": CC,
    b"x-delay": DELAY,
    b"x-deduplication-header": DEDUP,
    RECORD_HEADER.encode(): RECORD,
}
# Traits that were made before, to be the same object again. They are forgotten when there are too
# many: each message may have another expiration.
TRAITS_MAX = 4096
_new_tuple = tuple.__new__
_KNOWN_TRAITS: dict[tuple[bool, int | None, bytes | None, int], Traits] = {}
