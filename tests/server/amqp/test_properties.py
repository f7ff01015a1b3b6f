"""Properties, against pamqp; and `scan`, against decoding them."""

import datetime
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands
from pamqp import header as pamqp_header

from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.errors import HardError
from qlog.server.amqp.properties import (
    Properties,
    decode_properties,
    encode_properties,
    scan,
)
from qlog.server.amqp.values import Timestamp
from tests.server.amqp.strategies import PROPERTIES, SHORTSTRS, typed


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
    ("properties", "special"),
    [
        (Properties(), False),
        (Properties(delivery_mode=2, content_type="cc", headers={"x": "y"}), False),
        (Properties(content_type="CC", headers={"x": "y"}), True),  # to no effect, like the nested
        (Properties(priority=0), False),
        (Properties(expiration=""), True),
        (Properties(reply_to="q"), True),
        (Properties(user_id="u"), True),
        (Properties(headers={"CC": ["a"]}), True),
        (Properties(headers={"BCC": ["a"]}), True),
        (Properties(delivery_mode=3), True),
        (Properties(headers={"x": {"CC": "nested"}}), True),
        (Properties(message_id="\x02CC"), False),
    ],
)
def test_special(properties: Properties, special: bool) -> None:
    assert scan(encode_properties(properties)) == (properties.delivery_mode == 2, special)


@given(PROPERTIES, st.data())
def test_scan_accepts_what_decoding_accepts(properties: Properties, data: st.DataObject) -> None:
    raw = bytearray(encode_properties(properties))
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    octets = bytes(raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw)
    try:
        decoded = decode_properties(octets)
    except HardError as error:
        assert error.code == 541
        with pytest.raises(HardError):
            scan(octets)
    else:
        headers = decoded.headers or {}
        named = (decoded.expiration, decoded.reply_to, decoded.user_id)
        special = (
            any(value is not None for value in named)
            or bool({"CC", "BCC"} & set(headers))
            or decoded.delivery_mode not in (None, 1, 2)
        )
        traits = scan(octets)
        assert traits.persistent == (decoded.delivery_mode == 2)
        assert traits.special == special or (traits.special and b"CC" in octets)


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
