"""Shapes accept what walking accepts, and nothing else."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from qlog.server.amqp.connection import Publishes
from qlog.server.amqp.errors import HardError
from qlog.server.amqp.properties import Properties, encode_properties, scan
from qlog.server.amqp.shapes import (
    RECOGNISED_PER_SHAPE,
    SHAPE_HEAD_BYTES,
    SHAPES_MAX,
    Shape,
    Shapes,
)
from qlog.server.amqp.values import Table
from tests.server.amqp.conversation import body, header, hear, message, method, publish, running

TEXTS = st.text(max_size=9)
HEADERS: st.SearchStrategy[Table] = st.dictionaries(
    TEXTS, st.one_of(TEXTS, st.booleans(), st.integers(-9, 2**40), st.none(), st.binary(max_size=5))
)
PROPERTIES = st.builds(
    Properties,
    content_type=st.none() | TEXTS,
    headers=st.none() | HEADERS,
    delivery_mode=st.none() | st.integers(0, 3),
    priority=st.none() | st.integers(0, 9),
    message_id=st.none() | TEXTS,
    user_id=st.none() | TEXTS,
)


def header_frame(raw: bytes, body_size: int, channel: int = 1) -> bytes:
    payload = struct.pack(">HHQ", 60, 0, body_size) + raw
    return struct.pack(">BHI", 2, channel, len(payload)) + payload + b"\xce"


def recognised(shape: Shape, frame: bytes) -> bool:
    """Whether the header frame is of the shape, a body frame of 9 octets behind it."""
    data = frame + struct.pack(">BHI", 3, 1, 9)
    assert shape.octets == len(data)
    size, *found, frame_size = shape.unpack_from(data, SHAPE_HEAD_BYTES)
    assert (size, frame_size) == (struct.unpack_from(">Q", frame, 11)[0], 9)
    return found == shape.expected


@given(PROPERTIES, st.integers(0, 2**40), st.data())
def test_a_shape_accepts_what_scan_accepts(
    properties: Properties, size: int, data: st.DataObject
) -> None:
    raw = encode_properties(properties)
    shapes = Shapes()
    shapes.learn(header_frame(raw, 5), scan(raw))
    frame = bytearray(header_frame(raw, size))
    shape = shapes[bytes(frame[:SHAPE_HEAD_BYTES])]
    assert recognised(shape, bytes(frame))
    for _ in range(data.draw(st.integers(0, 3))):
        frame[data.draw(st.integers(19, len(frame) - 2))] = data.draw(st.integers(0, 255))
    if recognised(shape, bytes(frame)):
        changed = bytes(frame[19:-1])
        assert scan(changed).persistent == shape.traits.persistent
        # By mere chance a value may now hold the octets of a CC's name.
        assert scan(changed).special in (shape.traits.special, b"CC" in changed)


@given(PROPERTIES)
def test_every_octet_that_says_what_is_where_counts(properties: Properties) -> None:
    raw = encode_properties(properties)
    shapes = Shapes()
    frame = header_frame(raw, 5)
    shapes.learn(frame, scan(raw))
    shape = shapes[frame[:SHAPE_HEAD_BYTES]]
    for at in range(len(raw)):
        changed = raw[:at] + bytes((raw[at] ^ 0xFF,)) + raw[at + 1 :]
        try:
            scan(changed)
        except HardError:
            assert not recognised(shape, header_frame(changed, 5))


def test_nested_tables_are_walked() -> None:
    raw = encode_properties(Properties(headers={"a": {"b": "c"}}))
    shapes = Shapes()
    shapes.learn(header_frame(raw, 5), scan(raw))
    assert not shapes


def test_learning_stops_where_shapes_do_not_come_back() -> None:
    shapes = Shapes()
    frames = [header_frame(encode_properties(Properties(type="x" * n)), 5) for n in range(200)]
    traits = scan(encode_properties(Properties(type="x")))
    for frame in frames:
        shapes.learn(frame, traits)
    assert len(shapes) == SHAPES_MAX
    shapes.recognised = RECOGNISED_PER_SHAPE
    shapes.learn(frames[100], traits)
    assert list(shapes) == [frames[100][:SHAPE_HEAD_BYTES]]


def test_a_shape_is_of_one_channel() -> None:
    """Content frames of two channels in turn, both of a known shape, stay with their publishes."""
    connection = running()
    hear(connection, method(2, 20, 10, b"\0"))
    properties = encode_properties(Properties(message_id="abc", headers={"a": 1}))
    for channel in (1, 2):
        for text in (b"one", b"other"):  # two, so that the shape is learnt and recognised
            hear(connection, message(text, properties, key="k", ch=channel))
    first = publish(1, "to-first"), header(5, properties, channel=1), body(b"first", 1)
    second = publish(2, "to-second"), header(6, properties, channel=2), body(b"second", 2)
    data = second[0] + first[0] + second[1] + second[2] + first[1] + first[2]
    told = [
        (event.channel, run.methods[0].routing_key, run.bodies)
        for event in hear(connection, data)
        if isinstance(event, Publishes)
        for run in event.runs
    ]
    assert told == [(2, "to-second", [b"second"]), (1, "to-first", [b"first"])]
