"""Properties and field tables: what was sent comes back, as RabbitMQ 4 writes it."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from pamqp.commands import Basic

from tests.live.conversation import Client, Talk, encode_raw_content

Connect = Callable[..., Client]
HEADERS_FLAG = 0x2000


def table_of(*entries: tuple[bytes, bytes]) -> bytes:
    """A field table of named, already encoded values."""
    inside = b"".join(bytes([len(name)]) + name + value for name, value in entries)
    return struct.pack(">I", len(inside)) + inside


def array_of(*values: bytes) -> bytes:
    """A field array of already encoded values."""
    inside = b"".join(values)
    return b"A" + struct.pack(">I", len(inside)) + inside


def longstr(kind: bytes, data: bytes) -> bytes:
    """An S or x value."""
    return kind + struct.pack(">I", len(data)) + data


VALUES = {
    "longstr": longstr(b"S", "grüße".encode()),
    "longstr, empty": longstr(b"S", b""),
    "longstr, not UTF-8": longstr(b"S", b"\xff\xfe\x00"),
    "longstr, long": longstr(b"S", b"a" * 70_000),
    "signed 32": b"I\x80\x00\x00\x00",
    "unsigned 32": b"i\xff\xff\xff\xff",
    "signed 64": b"l\x80\x00\x00\x00\x00\x00\x00\x00",
    "signed 8": b"b\x80",
    "unsigned 8": b"B\xff",
    "signed 16": b"s\x80\x00",
    "unsigned 16": b"u\xff\xff",
    "double": b"d" + struct.pack(">d", 3.141592653589793),
    "float": b"f" + struct.pack(">f", 0.1),
    "decimal": b"D\x02\x00\x00\x30\x39",
    "bool, true": b"t\x01",
    "bool, false": b"t\x00",
    "timestamp": b"T" + struct.pack(">Q", 1_700_000_000),
    "timestamp, far away": b"T" + struct.pack(">Q", 253_402_300_800),
    "void": b"V",
    "binary": longstr(b"x", bytes(range(256))),
    "table": b"F" + table_of((b"inner", b"t\x01"), (b"more", longstr(b"S", b"x"))),
    "table, empty": b"F" + table_of(),
    "array": array_of(b"I\x00\x00\x00\x01", longstr(b"S", b"two"), array_of(b"V"), b"b\x03"),
    "array, empty": array_of(),
    "deep": b"F" + table_of((b"a", array_of(b"F" + table_of((b"b", array_of(b"V")))))),
}


def round_trip(talk: Talk, raw: bytes) -> bytes:
    """Publish with raw properties, get the message, return its raw properties."""
    queue = talk.declare("", exclusive=True)
    talk.send(
        Basic.Publish(exchange="", routing_key=queue), encode_raw_content(talk.number, b"x", raw)
    )
    return talk.get_soon(queue).raw_properties


@pytest.mark.parametrize("name", VALUES)
def test_value_keeps_its_type(talk: Talk, name: str) -> None:
    raw = struct.pack(">H", HEADERS_FLAG) + table_of((b"key", VALUES[name]))
    assert round_trip(talk, raw) == raw


FIVE = struct.pack(">q", 5)
WRITTEN = {
    "L": (table_of((b"k", b"L" + FIVE)), table_of((b"k", b"l" + FIVE))),
    "L in an array": (
        table_of((b"k", array_of(b"L" + FIVE))),
        table_of((b"k", array_of(b"l" + FIVE))),
    ),
    "L in a table": (
        table_of((b"k", b"F" + table_of((b"i", b"L" + FIVE)))),
        table_of((b"k", b"F" + table_of((b"i", b"l" + FIVE)))),
    ),
    "a key twice": (
        table_of((b"k", b"t\x01"), (b"m", b"V"), (b"k", b"t\x00")),
        table_of((b"k", b"t\x01"), (b"m", b"V")),
    ),
    "a key twice, in a table": (
        table_of((b"k", b"F" + table_of((b"i", b"t\x01"), (b"i", b"t\x00")))),
        table_of((b"k", b"F" + table_of((b"i", b"t\x01"), (b"i", b"t\x00")))),
    ),
    "a bool of 7": (table_of((b"k", b"t\x07")), table_of((b"k", b"t\x01"))),
}


@pytest.mark.newer
@pytest.mark.parametrize("name", WRITTEN)
def test_headers_are_written_anew(talk: Talk, name: str) -> None:
    came, written = WRITTEN[name]
    flags = struct.pack(">H", HEADERS_FLAG)
    for _ in range(3):  # also when such a header was seen before
        assert round_trip(talk, flags + came) == flags + written


@pytest.mark.parametrize(
    "value",
    [
        b"d" + struct.pack(">d", float("nan")),
        b"f" + struct.pack(">f", float("inf")),
        array_of(b"F" + table_of((b"i", b"d" + struct.pack(">d", float("-inf"))))),
    ],
    ids=["nan", "inf", "nested"],
)
def test_floats_that_are_no_numbers_end_the_connection(talk: Talk, value: bytes) -> None:
    raw = struct.pack(">H", HEADERS_FLAG) + table_of((b"k", value))
    refusal = talk.refused(
        Basic.Publish(exchange="", routing_key="nowhere"),
        encode_raw_content(talk.number, b"x", raw),
    )
    assert (refusal.scope, refusal.code) == ("connection", 541)


def test_order_of_keys_is_kept(talk: Talk) -> None:
    entries = [(bytes([97 + (i * 7) % 26, 97 + i]), b"b" + bytes([i])) for i in range(26)]
    raw = struct.pack(">H", HEADERS_FLAG) + table_of(*entries)
    assert round_trip(talk, raw) == raw


def test_all_properties_come_back(talk: Talk) -> None:
    def shortstr(text: bytes) -> bytes:
        return bytes([len(text)]) + text

    raw = struct.pack(">H", 0xFFFC) + b"".join(
        [
            shortstr(b"text/plain"),
            shortstr(b"utf-8"),
            table_of(*((name.encode(), value) for name, value in VALUES.items())),
            b"\x02",
            b"\x09",
            shortstr(b"correlation"),
            shortstr(b"reply"),
            shortstr(b"60000"),
            shortstr(b"message"),
            struct.pack(">Q", 1_700_000_000),
            shortstr(b"type"),
            shortstr(b"guest"),
            shortstr(b"application"),
            shortstr(b"cluster"),
        ]
    )
    assert round_trip(talk, raw) == raw


def test_no_properties_stay_none(talk: Talk) -> None:
    assert round_trip(talk, b"\x00\x00") == b"\x00\x00"


def test_empty_strings_stay_empty(talk: Talk) -> None:
    raw = struct.pack(">H", 0x8000 | 0x4000 | 0x0080) + b"\x00\x00\x00"
    assert round_trip(talk, raw) == raw


@pytest.mark.parametrize("mode", [1, 2])
def test_delivery_mode_comes_back(talk: Talk, mode: int) -> None:
    raw = struct.pack(">HB", 0x1000, mode)
    assert round_trip(talk, raw) == raw


def test_properties_survive_fan_out_and_requeue(talk: Talk) -> None:
    raw = struct.pack(">H", HEADERS_FLAG) + table_of(
        *((name.encode(), value) for name, value in VALUES.items())
    )
    exchange = talk.exchange("fanout")
    queues = [talk.declare("", exclusive=True, durable=False) for _ in range(2)]
    for queue in queues:
        talk.bind(queue, exchange)
    talk.send(
        Basic.Publish(exchange=exchange, routing_key=""),
        encode_raw_content(talk.number, b"x", raw),
    )
    for queue in queues:
        first = talk.get_soon(queue)
        talk.send(Basic.Nack(first.method.delivery_tag, requeue=True))
        assert first.raw_properties == talk.get_soon(queue).raw_properties == raw


def test_returned_properties_are_the_same(talk: Talk) -> None:
    raw = struct.pack(">H", HEADERS_FLAG) + table_of((b"key", VALUES["array"]))
    talk.send(
        Basic.Publish(exchange="amq.direct", routing_key="nowhere", mandatory=True),
        encode_raw_content(talk.number, b"x", raw),
    )
    assert talk.expect(Basic.Return).raw_properties == raw
