"""Properties, against pamqp; and `examine`, against decoding and encoding them."""

import datetime
import struct
from collections.abc import Iterator
from math import isfinite

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pamqp import commands
from pamqp import header as pamqp_header

from qlog.server.amqp.envelope import NO_RECORD, Envelope, Record
from qlog.server.amqp.errors import HardError
from qlog.server.amqp.properties import (
    BAD_EXPIRATION,
    CC,
    DEDUP,
    DELAY,
    NO_TRAITS,
    REPLY_TO,
    USER_ID,
    Properties,
    Traits,
    decode_properties,
    encode_properties,
    examine,
    headers_of,
    raw_headers,
    text_of,
    with_headers,
    with_text,
    without_header,
)
from qlog.server.amqp.values import Int64Capital, Table, Timestamp, Value
from tests.server.amqp.conversation import longstr
from tests.server.amqp.strategies import PROPERTIES, SHORTSTRS, typed

_FIVE = struct.pack(">q", 5)


@given(PROPERTIES)
def test_properties_come_back(properties: Properties) -> None:
    raw = encode_properties(properties)
    decoded = decode_properties(raw)
    assert encode_properties(decoded) == raw
    assert decoded.message_id == properties.message_id
    assert typed(decoded.headers or {}) == typed(properties.headers or {})


def test_pamqp_reads_ours() -> None:
    ours = Properties(
        content_type="text/plain",
        content_encoding="gzip",
        headers={"a": "b", "n": 1},
        delivery_mode=2,
        priority=5,
        correlation_id="c",
        reply_to="r",
        expiration="1000",
        message_id="m",
        timestamp=Timestamp(1_000_000_000),
        type="t",
        user_id="u",
        app_id="a",
    )
    theirs = commands.Basic.Properties(
        content_type="text/plain",
        content_encoding="gzip",
        headers={"a": "b", "n": 1},
        delivery_mode=2,
        priority=5,
        correlation_id="c",
        reply_to="r",
        expiration="1000",
        message_id="m",
        timestamp=datetime.datetime.fromtimestamp(1_000_000_000, datetime.UTC),
        message_type="t",
        user_id="u",
        app_id="a",
    )
    raw = encode_properties(ours)
    content = pamqp_header.ContentHeader()
    content.unmarshal(struct.pack(">HHQ", 60, 0, 7) + raw)
    assert content.body_size == 7
    assert dict(content.properties) == dict(theirs)


@pytest.mark.parametrize(
    ("properties", "traits"),
    [
        (Properties(), NO_TRAITS),
        (Properties(delivery_mode=1), NO_TRAITS),
        (Properties(delivery_mode=2), NO_TRAITS._replace(persistent=True)),
        (Properties(delivery_mode=3), NO_TRAITS),
        (Properties(priority=0), NO_TRAITS._replace(priority=0)),
        (Properties(priority=255), NO_TRAITS._replace(priority=255)),
        (Properties(expiration="0"), NO_TRAITS._replace(expiration=0)),
        (Properties(expiration="+60000"), NO_TRAITS._replace(expiration=60000)),
        (Properties(expiration=""), NO_TRAITS._replace(expiration="", needs=BAD_EXPIRATION)),
        (Properties(expiration="-1"), NO_TRAITS._replace(expiration="-1", needs=BAD_EXPIRATION)),
        (
            Properties(expiration="10 s"),
            NO_TRAITS._replace(expiration="10 s", needs=BAD_EXPIRATION),
        ),
        (
            Properties(expiration=f"{2**64}"),
            NO_TRAITS._replace(expiration=f"{2**64}", needs=BAD_EXPIRATION),
        ),
        (Properties(reply_to="q"), NO_TRAITS),
        (Properties(reply_to="amq.rabbitmq.reply-tp"), NO_TRAITS),
        (Properties(reply_to="amq.rabbitmq.reply-to.x"), NO_TRAITS),
        (Properties(reply_to="amq.rabbitmq.reply-to"), NO_TRAITS._replace(needs=REPLY_TO)),
        (Properties(correlation_id="amq.rabbitmq.reply-to"), NO_TRAITS),
        (Properties(user_id=""), NO_TRAITS._replace(needs=USER_ID)),
        (Properties(headers={"CC": ["a"]}), NO_TRAITS._replace(needs=CC)),
        (Properties(headers={"x": 1, "BCC": None}), NO_TRAITS._replace(needs=CC)),
        (Properties(headers={"x-delay": 1}), NO_TRAITS._replace(needs=DELAY)),
        (
            Properties(headers={"x-deduplication-header": "a", "CC": 1}),
            NO_TRAITS._replace(needs=DEDUP | CC),
        ),
        (Properties(headers={"x": {"CC": "nested"}, "y": "CC", "cc": 1}), NO_TRAITS),
        (Properties(message_id="\x02CC"), NO_TRAITS),
    ],
)
def test_traits(properties: Properties, traits: Traits) -> None:
    raw = encode_properties(properties)
    assert examine(raw) == (traits, raw)
    assert examine(raw)[1] is raw


@pytest.mark.parametrize(
    ("came", "written"),
    [
        (b"\x01kL" + _FIVE, b"\x01kl" + _FIVE),
        (b"\x01kA" + longstr(b"L" + _FIVE), b"\x01kA" + longstr(b"l" + _FIVE)),
        (
            b"\x01kF" + longstr(b"\x01iA" + longstr(b"L" + _FIVE)),
            b"\x01kF" + longstr(b"\x01iA" + longstr(b"l" + _FIVE)),
        ),
        (b"\x01kt\x01\x01it\x00\x01kt\x00", b"\x01kt\x01\x01it\x00"),
        (b"\x01kL" + _FIVE + b"\x01kS" + longstr(b"x"), b"\x01kl" + _FIVE),
        (b"\x01kt\x07", b"\x01kt\x01"),
        (b"\x01kA" + longstr(b"t\xff"), b"\x01kA" + longstr(b"t\x01")),
    ],
)
def test_headers_are_written_as_rabbitmq_does(came: bytes, written: bytes) -> None:
    """As RabbitMQ 4.0.5 answered to the same octets, but that it sorts keys."""
    before, behind = b"\xb0\x00\x04text", b"\x02"
    traits, clean = examine(before + longstr(came) + behind)
    assert clean == before + longstr(written) + behind
    assert traits.persistent
    assert examine(clean) == (traits, clean)


def test_keys_inside_of_headers_may_stand_twice() -> None:
    """So RabbitMQ passes them on."""
    raw = b"\x20\x00" + longstr(b"\x01kF" + longstr(b"\x01at\x01\x01at\x00"))
    assert examine(raw) == (NO_TRAITS, raw)


def test_flags_of_no_property_are_cleared() -> None:
    assert examine(b"\x10\x02\x02") == (NO_TRAITS._replace(persistent=True), b"\x10\x00\x02")


@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("wire", ["f", "d"])
@pytest.mark.parametrize("nested", [False, True])
def test_floats_that_are_no_numbers_are_refused(text: str, wire: str, nested: bool) -> None:
    value = wire.encode() + struct.pack(f">{wire}", float(text))
    if nested:
        value = b"A" + longstr(b"F" + longstr(b"\x01i" + value))
    with pytest.raises(HardError) as refused:
        examine(b"\x20\x00" + longstr(b"\x01k" + value))
    assert refused.value.code == 541


@given(PROPERTIES, st.data())
def test_examining_accepts_what_decoding_accepts(
    properties: Properties, data: st.DataObject
) -> None:
    raw = bytearray(encode_properties(properties))
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    octets = bytes(raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw)
    try:
        decoded = decode_properties(octets)
    except HardError as error:
        assert error.code == 541
        with pytest.raises(HardError):
            examine(octets)
        return
    try:
        traits, clean = examine(octets)
    except HardError:
        assert not all(map(isfinite, _floats(decoded.headers or {})))
        return
    written = decode_properties(clean)
    assert written == decoded  # an Int64Capital is equal to an Int64
    assert not any(isinstance(value, Int64Capital) for value in _scalars(written.headers))
    assert examine(clean) == (traits, clean)
    assert traits == NO_TRAITS._replace(
        persistent=decoded.delivery_mode == 2,
        priority=decoded.priority,
        expiration=traits.expiration,
        needs=_needs(decoded) | (BAD_EXPIRATION if isinstance(traits.expiration, str) else 0),
    )
    if isinstance(traits.expiration, int):
        assert decoded.expiration is not None and int(decoded.expiration) == traits.expiration
    else:
        assert traits.expiration == decoded.expiration


def _needs(properties: Properties) -> int:
    headers = properties.headers or {}
    return (
        (CC if "CC" in headers or "BCC" in headers else 0)
        | (REPLY_TO if properties.reply_to == "amq.rabbitmq.reply-to" else 0)
        | (USER_ID if properties.user_id is not None else 0)
        | (DELAY if "x-delay" in headers else 0)
        | (DEDUP if "x-deduplication-header" in headers else 0)
    )


def _scalars(value: Value) -> Iterator[Value]:
    """The values in a table, at every depth."""
    if isinstance(value, dict):
        for item in value.values():
            yield from _scalars(item)
    elif isinstance(value, list):
        for item in value:
            yield from _scalars(item)
    else:
        yield value


def _floats(headers: Table) -> Iterator[float]:
    return (value for value in _scalars(headers) if isinstance(value, float))


@given(PROPERTIES)
def test_one_property_is_found_without_the_others(properties: Properties) -> None:
    assume(all(map(isfinite, _floats(properties.headers or {}))))
    raw = examine(encode_properties(properties))[1]
    decoded = decode_properties(raw)
    for name in ("content_type", "reply_to", "user_id", "expiration", "cluster_id"):
        assert text_of(raw, name) == getattr(decoded, name)
        if getattr(decoded, name) is not None:
            changed = decode_properties(with_text(raw, name, "other"))
            assert getattr(changed, name) == "other"
            setattr(changed, name, getattr(decoded, name))
            assert encode_properties(changed) == raw
    headers = decoded.headers or {}
    for wanted in (*list(headers)[:2], "absent"):
        found = headers_of(raw, (wanted,))
        assert typed(found) == typed({k: v for k, v in headers.items() if k == wanted})
        if wanted in headers:
            left = decode_properties(without_header(raw, wanted)).headers
            assert left is not None and list(left) == [key for key in headers if key != wanted]


@given(PROPERTIES)
def test_headers_are_replaced_without_being_decoded(properties: Properties) -> None:
    assume(all(map(isfinite, _floats(properties.headers or {}))))
    raw = examine(encode_properties(properties))[1]
    changed = decode_properties(with_headers(raw, {**raw_headers(raw), b"x": b"S\0\0\0\1y"}))
    expected = decode_properties(raw)
    headers = {**(expected.headers or {}), "x": "y"}
    assert changed.headers is not None and typed(changed.headers) == typed(headers)
    names = [name.encode("utf-8", "surrogateescape") for name in changed.headers]
    assert names == sorted(names)
    expected.headers, expected.expiration = changed.headers, None
    assert encode_properties(changed) == encode_properties(expected)


@pytest.mark.parametrize(
    "properties", [Properties(message_id="x" * 256), Properties(timestamp=Timestamp(-1))]
)
def test_properties_that_amqp_cannot_carry(properties: Properties) -> None:
    with pytest.raises(ValueError):
        encode_properties(properties)


@given(SHORTSTRS, SHORTSTRS, PROPERTIES, st.integers(0, 2**40))
def test_envelopes_come_back(exchange: str, key: str, properties: Properties, size: int) -> None:
    envelope = Envelope.pack(exchange, key, encode_properties(properties), size)
    again = Envelope.unpack(envelope.packed, size)
    for name in ("exchange", "routing_key", "properties", "body_size", "packed_hash"):
        assert getattr(again, name) == getattr(envelope, name)
    assert encode_properties(envelope.decoded_properties()) == envelope.properties
    assert envelope.record is NO_RECORD


@given(st.booleans(), st.lists(SHORTSTRS), st.lists(SHORTSTRS))
def test_records_of_envelopes_come_back(died: bool, keys: list[str], hidden: list[str]) -> None:
    record = Record(died, keys, hidden)
    envelope = Envelope.pack("x", "k", b"\0\0", 3, record)
    again = Envelope.unpack(envelope.packed, 3)
    assert again == envelope and again.record == record
