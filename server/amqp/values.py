"""Field tables: the typed values that methods and message headers carry.

Promises that each of RabbitMQ's value types (`S I i l L b B s u d f D t T F A x V`) comes out of
decoding as a Python value that is encoded back to the same type, and that no input raises anything
but `HardError`. Knows nothing of what a key means. A decoded table has each key once: a key that
stands twice keeps its first value, as in RabbitMQ. A key that is not UTF-8 is accepted, as by
RabbitMQ; its odd octets become surrogates (PEP 383), which encoding turns back.

RabbitMQ decodes headers and encodes them again. A table is *clean* when RabbitMQ would write the
same octets (but for the order of keys, which it sorts). A clean table has none of these:

- a key twice (tables inside the table may have that),
- the type `L`, which becomes `l`,
- a bool other than 0 and 1, which becomes 1,
- a float that is not a number, which is refused.

    table: length u32, then per entry: key (u8 length, UTF-8), type u8, value
    array: length u32, then per entry: type u8, value
"""

import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import isfinite
from typing import TypeAlias, Union

from qlog.server.amqp.errors import HardError, frame_error, internal_error

# Deep enough for any header seen in the wild (x-death is 3), far from Python's recursion limit.
NESTING_MAX = 200


class Int8(int):
    """Type `b`."""

    __slots__ = ()


class UInt8(int):
    """Type `B`."""

    __slots__ = ()


class Int16(int):
    """Type `s`."""

    __slots__ = ()


class UInt16(int):
    """Type `u`."""

    __slots__ = ()


class UInt32(int):
    """Type `i`. (Type `I`, signed, is a plain `int`.)"""

    __slots__ = ()


class Int64(int):
    """Type `l`, where the number would also fit in 32 bits (otherwise a plain `int`)."""

    __slots__ = ()


class Int64Capital(int):
    """Type `L`, which RabbitMQ reads as `l`."""

    __slots__ = ()


class Float32(float):
    """Type `f`. (Type `d` is a plain `float`.)"""

    __slots__ = ()


class Timestamp(int):
    """Type `T`: seconds since 1970."""

    __slots__ = ()


class LongStr(bytes):
    """Type `S` that is not UTF-8. (Otherwise a `str`; a plain `bytes` is type `x`.)"""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class DecimalValue:
    """Type `D`: `unscaled` divided by ten to the power of `scale`."""

    scale: int
    unscaled: int


Value: TypeAlias = Union[
    str,
    bytes,
    bool,
    int,
    float,
    None,
    datetime,
    DecimalValue,
    "Mapping[str, Value]",
    "Sequence[Value]",
]
Table: TypeAlias = dict[str, Value]

_U32 = struct.Struct(">I")
_DECIMAL = struct.Struct(">BI")
_TIMESTAMP = struct.Struct(">Q")

# Wire type, Python type, layout, RabbitMQ's name. Python types of our own stand first: the wire
# type of a plain int or float is chosen by its size.
_NUMBERS: tuple[tuple[bytes, type[int] | type[float], str, str], ...] = (
    (b"b", Int8, ">b", "byte"),
    (b"B", UInt8, ">B", "unsignedbyte"),
    (b"s", Int16, ">h", "short"),
    (b"u", UInt16, ">H", "unsignedshort"),
    (b"i", UInt32, ">I", "unsignedint"),
    (b"L", Int64Capital, ">q", "long"),
    (b"l", Int64, ">q", "long"),
    (b"T", Timestamp, ">Q", "timestamp"),
    (b"f", Float32, ">f", "float"),
    (b"d", float, ">d", "double"),
    (b"I", int, ">i", "signedint"),
)
_NUMBER_BY_TYPE = {
    kind: (wire, struct.Struct(layout), name) for wire, kind, layout, name in _NUMBERS
}
_INT32 = range(-(2**31), 2**31)
_INT64 = struct.Struct(">q")


def malformed(what: str) -> HardError:
    """The error for octets that are no field table."""
    return frame_error(f"malformed field table: {what}")


# --- decoding


def decode_table(data: bytes, offset: int = 0) -> tuple[Table, int]:
    """Decode the table that starts with its length at `offset`.

    Returns the table and the offset behind it. Raises HardError (501) when it is malformed, cut
    short, or nested deeper than NESTING_MAX.
    """
    try:
        return _table(data, offset, 0)
    except (struct.error, IndexError):
        raise malformed("cut short") from None


def _table(data: bytes, offset: int, depth: int) -> tuple[Table, int]:
    if depth > NESTING_MAX:
        raise malformed("nested too deeply")
    (size,) = _U32.unpack_from(data, offset)
    offset += 4
    end = offset + size
    if end > len(data):
        raise malformed("cut short")
    table: Table = {}
    while offset < end:
        key_end = offset + 1 + data[offset]
        key = str(data[offset + 1 : key_end], "utf-8", "surrogateescape")
        value, offset = _value(data, key_end, depth)
        table.setdefault(key, value)
    if offset != end:
        raise malformed("entry crosses its end")
    return table, end


def _array(data: bytes, offset: int, depth: int) -> tuple[list[Value], int]:
    if depth > NESTING_MAX:
        raise malformed("nested too deeply")
    (size,) = _U32.unpack_from(data, offset)
    offset += 4
    end = offset + size
    if end > len(data):
        raise malformed("cut short")
    array: list[Value] = []
    while offset < end:
        value, offset = _value(data, offset, depth)
        array.append(value)
    if offset != end:
        raise malformed("entry crosses its end")
    return array, end


def _value(data: bytes, offset: int, depth: int) -> tuple[Value, int]:
    decode = _DECODERS.get(data[offset])
    if decode is None:
        raise malformed(f"unknown type {data[offset]}")
    return decode(data, offset + 1, depth + 1)


def _octets(data: bytes, offset: int) -> tuple[bytes, int]:
    (size,) = _U32.unpack_from(data, offset)
    end = offset + 4 + size
    if end > len(data):
        raise malformed("cut short")
    return data[offset + 4 : end], end


def _string(data: bytes, offset: int, depth: int) -> tuple[Value, int]:
    octets, end = _octets(data, offset)
    try:
        return str(octets, "utf-8"), end
    except UnicodeDecodeError:
        return LongStr(octets), end


def _binary(data: bytes, offset: int, depth: int) -> tuple[Value, int]:
    return _octets(data, offset)


def _boolean(data: bytes, offset: int, depth: int) -> tuple[Value, int]:
    return data[offset] != 0, offset + 1


def _void(data: bytes, offset: int, depth: int) -> tuple[Value, int]:
    return None, offset


def _decimal(data: bytes, offset: int, depth: int) -> tuple[Value, int]:
    return DecimalValue(*_DECIMAL.unpack_from(data, offset)), offset + _DECIMAL.size


def _long(data: bytes, offset: int, depth: int) -> tuple[Value, int]:
    (number,) = _INT64.unpack_from(data, offset)
    return Int64(number) if number in _INT32 else number, offset + _INT64.size


def _number(kind: type[int] | type[float], layout: struct.Struct) -> "_Decoder":
    def decode(data: bytes, offset: int, depth: int) -> tuple[Value, int]:
        (number,) = layout.unpack_from(data, offset)
        return kind(number), offset + layout.size

    return decode


_Decoder: TypeAlias = Callable[[bytes, int, int], tuple[Value, int]]
_DECODERS: dict[int, _Decoder] = {
    wire[0]: _number(kind, struct.Struct(layout)) for wire, kind, layout, _ in _NUMBERS
} | {
    ord("S"): _string,
    ord("x"): _binary,
    ord("t"): _boolean,
    ord("V"): _void,
    ord("D"): _decimal,
    ord("l"): _long,
    ord("F"): _table,
    ord("A"): _array,
}


def skip_table(data: bytes, offset: int, depth: int = 0, keyed: bool = True) -> int:
    """The offset behind the table (or array, if not `keyed`) at `offset`, validated, not built.

    Accepts what `decode_table` accepts. Raises HardError, IndexError or struct.error otherwise.
    """
    if depth > NESTING_MAX:
        raise malformed("nested too deeply")
    end: int = offset + 4 + _U32.unpack_from(data, offset)[0]
    offset += 4
    if end > len(data):
        raise malformed("cut short")
    while offset < end:
        if keyed:
            offset += 1 + data[offset]
        wire = data[offset]
        if wire == _LONGSTR or wire == _BINARY:
            offset += 5 + _U32.unpack_from(data, offset + 1)[0]
        elif fixed_bytes := _FIXED_BYTES.get(wire):
            offset += fixed_bytes
        elif wire == _TABLE or wire == _ARRAY:
            offset = skip_table(data, offset + 1, depth + 1, wire == _TABLE)
        else:
            raise malformed(f"unknown type {wire}")
    if offset != end:
        raise malformed("entry crosses its end")
    return end


class Unclean(Exception):
    """A table that is malformed, or that RabbitMQ would write in another way."""


def skip_clean_table(
    data: bytes, offset: int, keys: list[bytes], depth: int = 0, keyed: bool = True
) -> int:
    """The offset behind the clean table (or array, if not `keyed`) at `offset`.

    The table's own keys are added to `keys`. Raises Unclean, IndexError or struct.error if the
    table is not clean.
    """
    end: int = offset + 4 + _U32.unpack_from(data, offset)[0]
    offset += 4
    if end > len(data) or depth > NESTING_MAX:
        raise Unclean
    while offset < end:
        if keyed:
            key_at = offset + 1
            offset = key_at + data[offset]
            keys.append(data[key_at:offset])
        wire = data[offset]
        if wire == _LONGSTR or wire == _BINARY:
            offset += 5 + _U32.unpack_from(data, offset + 1)[0]
        elif fixed_bytes := _ALWAYS_CLEAN_BYTES.get(wire):
            offset += fixed_bytes
        elif wire == _TABLE or wire == _ARRAY:
            offset = skip_clean_table(data, offset + 1, [], depth + 1, wire == _TABLE)
        else:
            _check_clean(data, offset)
            offset += _FIXED_BYTES[wire]
    if offset != end or (not depth and len(set(keys)) != len(keys)):
        raise Unclean
    return end


def _check_clean(data: bytes, offset: int) -> None:
    """Raise Unclean unless a float that is a number, or a bool of 0 or 1, stands at `offset`."""
    wire = data[offset]
    if wire == _BOOL:
        clean = data[offset + 1] <= 1
    else:
        clean = wire in _FLOATS and isfinite(_FLOATS[wire].unpack_from(data, offset + 1)[0])
    if not clean:
        raise Unclean


def rewrite_table(data: bytes, offset: int, *, without: bytes | None = None) -> tuple[bytes, int]:
    """The table at `offset` made clean, without the key `without`, and the offset behind it.

    Raises HardError, IndexError or struct.error when it is malformed or holds a float that is no
    number.
    """
    return _rewritten(data, offset, 0, True, set() if without is None else {without})


def _rewritten(
    data: bytes, offset: int, depth: int, keyed: bool, dropped: set[bytes]
) -> tuple[bytes, int]:
    """A table or array made clean; at depth 0 a key is written once, and none of `dropped`."""
    if depth > NESTING_MAX:
        raise malformed("nested too deeply")
    end: int = offset + 4 + _U32.unpack_from(data, offset)[0]
    offset += 4
    if end > len(data):
        raise malformed("cut short")
    parts: list[bytes] = []
    while offset < end:
        key = b""
        if keyed:
            key = data[offset + 1 : offset + 1 + data[offset]]
            offset += 1 + len(key)
        value, offset = _rewritten_value(data, offset, depth)
        if not keyed:
            parts.append(value)
        elif depth or key not in dropped:
            parts += (bytes((len(key),)), key, value)
            dropped.add(key)
    if offset != end:
        raise malformed("entry crosses its end")
    table = b"".join(parts)
    return _U32.pack(len(table)) + table, end


def _rewritten_value(data: bytes, offset: int, depth: int) -> tuple[bytes, int]:
    """A value made clean, its type first, and the offset behind it."""
    wire = data[offset]
    if wire == _TABLE or wire == _ARRAY:
        inner, end = _rewritten(data, offset + 1, depth + 1, wire == _TABLE, set())
        return bytes((wire,)) + inner, end
    if wire == _LONGSTR or wire == _BINARY:
        end = offset + 5 + _U32.unpack_from(data, offset + 1)[0]
    elif wire in _FIXED_BYTES:
        end = offset + _FIXED_BYTES[wire]
    else:
        raise malformed(f"unknown type {wire}")
    if wire == _LONG_CAPITAL:
        return b"l" + data[offset + 1 : end], end
    if wire == _BOOL:
        return (b"t\x01" if data[offset + 1] else b"t\x00"), end
    if wire in _FLOATS and not isfinite(_FLOATS[wire].unpack_from(data, offset + 1)[0]):
        raise internal_error()
    return data[offset:end], end


def decode_entries(data: bytes, offset: int, wanted: Mapping[bytes, str]) -> Table:
    """The entries with these names of the valid table at `offset`; no other is decoded."""
    table: Table = {}
    end = offset + 4 + _U32.unpack_from(data, offset)[0]
    offset += 4
    while offset < end:
        key_end = offset + 1 + data[offset]
        name = wanted.get(data[offset + 1 : key_end])
        if name is not None and name not in table:
            table[name], offset = _value(data, key_end, 0)
        else:
            offset = _behind_value(data, key_end)
    return table


def raw_entries(data: bytes, offset: int) -> dict[bytes, bytes]:
    """The entries of the valid table at `offset`, not decoded: each value with its type."""
    entries: dict[bytes, bytes] = {}
    end = offset + 4 + _U32.unpack_from(data, offset)[0]
    offset += 4
    while offset < end:
        key_end = offset + 1 + data[offset]
        behind = _behind_value(data, key_end)
        entries[data[offset + 1 : key_end]] = data[key_end:behind]
        offset = behind
    return entries


def join_entries(entries: Mapping[bytes, bytes]) -> bytes:
    """The table with these entries, sorted by their keys, as RabbitMQ writes a table."""
    parts: list[bytes] = []
    for key, value in sorted(entries.items()):
        parts += (bytes((len(key),)), key, value)
    table = b"".join(parts)
    return _U32.pack(len(table)) + table


def join_arrays(one: bytes, other: bytes) -> bytes:
    """An array with the values of two others, each encoded, its type first."""
    values = one[5:] + other[5:]
    return b"A" + _U32.pack(len(values)) + values


def _behind_value(data: bytes, offset: int) -> int:
    """The offset behind the valid value whose type is at `offset`."""
    return offset + (_FIXED_BYTES.get(data[offset]) or 5 + _U32.unpack_from(data, offset + 1)[0])


class Spans:
    """Counts of octets that must be the same and of octets that may differ, alternating.

    Octets must be the same if they say what stands where. `counts` begins and ends with such.

    The strings of the outermost table have numbers, from 0. Those whose number is in `varying` may
    have any length: each of them, with the length before it, parts two `segments`. `counts` is the
    last segment. `strings` has the octets of each string.
    """

    __slots__ = ("counts", "segments", "strings", "varying")

    def __init__(self, varying: Collection[int] = ()) -> None:
        self.counts = [0]
        self.segments = [self.counts]
        self.strings: list[int] = []
        self.varying = varying

    def same(self, octets: int) -> None:
        """So many that must be the same follow."""
        self.counts[-1] += octets

    def differ(self, octets: int) -> None:
        """So many that may differ follow."""
        if octets:
            self.counts += (octets, 0)

    def alone(self, octets: int) -> int:
        """So many follow that are a count of their own among those that must be the same.

        Returns the place of this count among those of the segment.
        """
        at = (len(self.counts) + 1) // 2
        self.counts += (0, octets, 0, 0)
        return at

    def string(self, octets: int) -> None:
        """A string of so many octets in the outermost table follows, its length first."""
        varies = len(self.strings) in self.varying
        self.strings.append(octets)
        if varies:
            self.counts = [0]
            self.segments.append(self.counts)
        else:
            self.same(4)
            self.differ(octets)


def table_spans(data: bytes, offset: int, spans: Spans, keyed: bool = True, depth: int = 0) -> int:
    """Add the spans of the clean table (or array, if not `keyed`) at `offset`.

    The 4 octets of the outermost table's size are not added: they change with its strings. Returns
    the offset behind the table. Every table of the right size with the same octets in the spans
    that must be the same is clean, whatever its other octets are.
    """
    end: int = offset + 4 + _U32.unpack_from(data, offset)[0]
    offset += 4
    if depth:
        spans.same(4)
    while offset < end:
        named = 1 + data[offset] if keyed else 0
        offset += named
        wire = data[offset]
        offset += 1
        spans.same(named + 1)
        if wire == _TABLE or wire == _ARRAY:
            offset = table_spans(data, offset, spans, wire == _TABLE, depth + 1)
            continue
        if wire == _LONGSTR or wire == _BINARY:
            size = _U32.unpack_from(data, offset)[0]
            offset += 4 + size
            if not depth:
                spans.string(size)
                continue
            spans.same(4)
        else:
            size = _FIXED_BYTES[wire] - 1
            proof = _proof_octets(wire, data, offset)
            offset += size
            size -= proof
            spans.same(proof)
        spans.differ(size)
    return end


def _proof_octets(wire: int, data: bytes, offset: int) -> int:
    """The number of octets of a value that prove it clean, whatever its other octets are."""
    if wire == _BOOL:
        return 1
    if wire in _FLOATS:
        # A float is no number when all bits of its exponent are set. Seven of these bits are here.
        return 2 if data[offset] & 0x7F == 0x7F else 1
    return 0


_LONGSTR, _BINARY, _TABLE, _ARRAY = b"SxFA"
# The octets of values of all other types, with that of the type.
_FIXED_BYTES = {wire[0]: 1 + struct.calcsize(layout) for wire, _, layout, _ in _NUMBERS} | {
    ord("t"): 2,
    ord("V"): 1,
    ord("D"): 1 + _DECIMAL.size,
}
_BOOL, _LONG_CAPITAL = b"tL"
_FLOATS = {ord("f"): struct.Struct(">f"), ord("d"): struct.Struct(">d")}
# Of the types that are clean with any value.
_ALWAYS_CLEAN_BYTES = {
    wire: octets
    for wire, octets in _FIXED_BYTES.items()
    if wire not in (_BOOL, _LONG_CAPITAL, *_FLOATS)
}


# --- encoding


def encode_table(table: Mapping[str, Value]) -> bytes:
    """Encode a table, its length first.

    Raises ValueError for a key over 255 octets, a number over 64 bits, or a value of a type that
    AMQP has not.
    """
    parts = []
    for key, value in table.items():
        octets = key.encode("utf-8", "surrogateescape")
        if len(octets) > 255:
            raise ValueError(f"table key over 255 octets: {key[:32]!r}…")
        parts.append(bytes((len(octets),)) + octets + encode_value(value))
    body = b"".join(parts)
    return _U32.pack(len(body)) + body


def encode_value(value: Value) -> bytes:
    """Encode one value, its type first. Raises ValueError as `encode_table` does."""
    match value:
        case str():
            octets = value.encode()
            return b"S" + _U32.pack(len(octets)) + octets
        case bool():
            return b"t\x01" if value else b"t\x00"
        case int() | float():
            return _encode_number(value)
        case None:
            return b"V"
        case bytes():
            return (b"S" if isinstance(value, LongStr) else b"x") + _U32.pack(len(value)) + value
        case Mapping():
            return b"F" + encode_table(value)
        case DecimalValue():
            return b"D" + _DECIMAL.pack(value.scale, value.unscaled)
        case datetime():
            return b"T" + _TIMESTAMP.pack(int(value.timestamp()))
        case Sequence():
            body = b"".join(map(encode_value, value))
            return b"A" + _U32.pack(len(body)) + body
        case _:
            raise ValueError(f"AMQP has no type for {type(value).__name__}")


def _encode_number(value: float) -> bytes:
    kind = type(value)
    if kind is int and value not in _INT32:
        kind = Int64
    wire, layout, _ = _NUMBER_BY_TYPE[kind]
    try:
        return wire + layout.pack(value)
    except struct.error:
        raise ValueError(f"{value} does not fit AMQP type {wire.decode()}") from None


def type_name(value: Value) -> str:
    """RabbitMQ's name of the value's type, as error texts have it: longstr, signedint, bool …"""
    match value:
        case bool():
            return "bool"
        case int() | float():
            if type(value) is int and value not in _INT32:
                return "long"
            return _NUMBER_BY_TYPE[type(value)][2]
        case str() | LongStr():
            return "longstr"
        case bytes():
            return "binary"
        case None:
            return "void"
        case Mapping():
            return "table"
        case DecimalValue():
            return "decimal"
        case datetime():
            return "timestamp"
        case _:
            return "array"
