"""Field tables: each type keeps its type, and no octets break the decoder."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import decode as pamqp_decode

from qlog.server.amqp.errors import HardError
from qlog.server.amqp.values import (
    NESTING_MAX,
    DecimalValue,
    Float32,
    Int8,
    Int16,
    Int64,
    Int64Capital,
    LongStr,
    Table,
    Timestamp,
    UInt8,
    UInt16,
    UInt32,
    Value,
    decode_table,
    encode_table,
    encode_value,
    skip_table,
    type_name,
)
from tests.server.amqp.conversation import longstr
from tests.server.amqp.strategies import TABLES, typed


@pytest.mark.parametrize(
    ("octets", "value", "name"),
    [
        (b"S\0\0\0\x03abc", "abc", "longstr"),
        (b"S\0\0\0\x01\xff", LongStr(b"\xff"), "longstr"),
        (b"I\xff\xff\xff\xff", -1, "signedint"),
        (b"i\xff\xff\xff\xff", UInt32(2**32 - 1), "unsignedint"),
        (b"l\x00\x00\x00\x01\x00\x00\x00\x00", 2**32, "long"),
        (b"l\x00\x00\x00\x00\x00\x00\x00\x01", Int64(1), "long"),
        (b"L\x00\x00\x00\x00\x00\x00\x00\x01", Int64Capital(1), "long"),
        (b"b\xff", Int8(-1), "byte"),
        (b"B\xff", UInt8(255), "unsignedbyte"),
        (b"s\xff\xff", Int16(-1), "short"),
        (b"u\xff\xff", UInt16(65535), "unsignedshort"),
        (b"d\x3f\xf8\0\0\0\0\0\0", 1.5, "double"),
        (b"f\x3f\xc0\0\0", Float32(1.5), "float"),
        (b"D\x02\0\0\0\x7b", DecimalValue(2, 123), "decimal"),
        (b"t\x01", True, "bool"),
        (b"t\x00", False, "bool"),
        (b"T\0\0\0\0\0\0\0\x01", Timestamp(1), "timestamp"),
        (b"F\0\0\0\x04\x01kt\x01", {"k": True}, "table"),
        (b"A\0\0\0\x03Vt\x01", [None, True], "array"),
        (b"x\0\0\0\x01\xff", b"\xff", "binary"),
        (b"V", None, "void"),
    ],
)
def test_types(octets: bytes, value: Value, name: str) -> None:
    table = longstr(b"\x01k" + octets)
    decoded, end = decode_table(table)
    assert typed(decoded["k"]) == typed(value)
    assert end == skip_table(table, 0) == len(table)
    assert encode_value(value) == octets
    assert type_name(value) == name


def test_a_datetime_is_a_timestamp() -> None:
    moment = datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC)
    assert encode_value(moment) == encode_value(Timestamp(1_000_000_000))
    assert type_name(moment) == "timestamp"


@given(TABLES)
def test_tables_come_back_with_their_types(table: Table) -> None:
    octets = encode_table(table)
    decoded, end = decode_table(b"??" + octets + b"?", 2)
    assert typed(decoded) == typed(table)
    assert list(decoded) == list(table)
    assert end == len(octets) + 2 == skip_table(b"??" + octets + b"?", 2)
    assert encode_table(decoded) == octets


@given(st.dictionaries(st.text(max_size=20), st.text() | st.booleans() | st.integers(0, 2**31 - 1)))
def test_pamqp_reads_our_tables(table: Table) -> None:
    octets = encode_table(table)
    assert pamqp_decode.field_table(octets) == (len(octets), table)


def test_of_a_key_that_stands_twice_the_first_stays() -> None:
    octets = longstr(b"\x01kt\x01\x01iV\x01kt\x00")
    assert decode_table(octets) == ({"k": True, "i": None}, len(octets))


def test_keys_that_are_not_utf8_come_back() -> None:
    octets = longstr(b"\x02\xff\xfet\x01")
    table, _ = decode_table(octets)
    assert list(table.values()) == [True]
    assert encode_table(table) == octets


def _nested(levels: int, wire: bytes) -> bytes:
    """A table in which tables (or arrays) stand within each other."""
    octets = b""
    for _ in range(levels):
        octets = (b"\x01k" if wire == b"F" else b"") + wire + longstr(octets)
    return longstr(octets if wire == b"F" else b"\x01k" + octets)


@pytest.mark.parametrize("wire", [b"F", b"A"])
def test_nesting_is_bounded(wire: bytes) -> None:
    deep = _nested(NESTING_MAX, wire)
    assert decode_table(deep)[1] == skip_table(deep, 0) == len(deep)
    for levels in (NESTING_MAX + 1, 1000):
        for read in (decode_table, skip_table):
            with pytest.raises(HardError, match="nested too deeply"):
                read(_nested(levels, wire), 0)


@given(TABLES, st.data())
def test_mutated_tables_are_read_or_refused(table: Table, data: st.DataObject) -> None:
    octets = bytearray(encode_table(table))
    for _ in range(data.draw(st.integers(1, 4))):
        octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
    octets = octets[: data.draw(st.integers(0, len(octets)))]
    _check_same_verdict(bytes(octets))


@given(st.binary(max_size=60).map(longstr) | st.binary(max_size=60))
def test_any_octets_are_read_or_refused(octets: bytes) -> None:
    _check_same_verdict(octets)


def _check_same_verdict(octets: bytes) -> None:
    import struct

    try:
        _, end = decode_table(octets)
    except HardError:
        with pytest.raises((HardError, IndexError, struct.error)):
            skip_table(octets, 0)
    else:
        assert skip_table(octets, 0) == end


@pytest.mark.parametrize(
    "value", [2**63, -(2**63) - 1, Int8(128), UInt16(-1), object(), {"k" * 256: 1}]
)
def test_values_that_amqp_cannot_carry(value: Value) -> None:
    with pytest.raises(ValueError):
        encode_value(value)
