"""Shapes accept what walking accepts and finds clean, with the same traits, and nothing else."""

import struct
from dataclasses import replace

import pytest
from hypothesis import assume, example, given, reject
from hypothesis import strategies as st

from qlog.server.amqp.connection import Publishes
from qlog.server.amqp.errors import HardError
from qlog.server.amqp.properties import Properties, Traits, encode_properties, examine
from qlog.server.amqp.shapes import (
    FIXED_PER_SKELETON,
    RECOGNISED_PER_SHAPE,
    SHAPE_FRAME_BYTES_MAX,
    SHAPES_MAX,
    SHAPES_PER_HEAD_MAX,
    VARYING_PER_CHANNEL_MAX,
    Shapes,
)
from qlog.server.amqp.values import Float32, Int64Capital, Table, Value
from tests.server.amqp.conversation import (
    body,
    header,
    hear,
    longstr,
    message,
    method,
    publish,
    running,
)

TEXTS = st.text(max_size=9)
SCALARS: st.SearchStrategy[Value] = st.one_of(
    TEXTS,
    st.booleans(),
    st.integers(-9, 2**40),
    st.integers(0, 9).map(Int64Capital),
    st.none(),
    st.binary(max_size=5),
    st.floats(),
    st.floats(width=32).map(Float32),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
KEYS = TEXTS | st.sampled_from(["CC", "BCC", "x-delay", "x-deduplication-header"])
HEADERS: st.SearchStrategy[Table] = st.dictionaries(KEYS, VALUES, max_size=5)
REPLY_TOS = st.sampled_from(
    ["q", "amq.rabbitmq.reply-to", "amq.rabbitmq.reply-tp", "amq.gen-" + "x" * 13]
)
PROPERTIES = st.builds(
    Properties,
    content_type=st.none() | TEXTS,
    headers=st.none() | HEADERS,
    delivery_mode=st.none() | st.integers(0, 3),
    priority=st.none() | st.integers(0, 9),
    reply_to=st.none() | REPLY_TOS,
    expiration=st.none() | st.integers(-9, 99999).map(str) | TEXTS,
    message_id=st.none() | TEXTS,
    user_id=st.none() | TEXTS,
)
# What Celery 5 sends with a task, by py-amqp.
CELERY = Properties(
    content_type="application/json",
    content_encoding="utf-8",
    headers={
        "lang": "py",
        "task": "shop.orders.confirm",
        "id": "bc7d09aa-4f1c-4a3f-8c4e-1f3b6a6f8c11",
        "shadow": None,
        "eta": None,
        "expires": None,
        "group": None,
        "group_index": None,
        "retries": 0,
        "timelimit": [None, None],
        "root_id": "bc7d09aa-4f1c-4a3f-8c4e-1f3b6a6f8c11",
        "parent_id": None,
        "argsrepr": "(4711, 'customer-17')",
        "kwargsrepr": "{}",
        "origin": "gen4021@shop-1",
        "ignore_result": False,
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
    },
    delivery_mode=2,
    priority=0,
    correlation_id="bc7d09aa-4f1c-4a3f-8c4e-1f3b6a6f8c11",
    reply_to="5c0d3d7c-6e1f-3f5e-9d9a-0d0d6f2f4d55",
)


def header_frame(raw: bytes, body_size: int, channel: int = 1) -> bytes:
    payload = struct.pack(">HHQ", 60, 0, body_size) + raw
    return struct.pack(">BHI", 2, channel, len(payload)) + payload + b"\xce"


def with_body_head(frame: bytes) -> bytes:
    """A header frame, and the head of the frame of its whole body."""
    return frame + struct.pack(">BH", 3, 1) + frame[15:19]


def recognised(shapes: Shapes, frame: bytes) -> Traits | None:
    """The traits of a header frame that is of a known shape, the body's frame behind it."""
    data = with_body_head(frame)
    found = shapes.of(1).find(b"ahead" + data, 5)
    if found is None:
        return None
    traits, body_size, body_at = found
    assert body_size == struct.unpack_from(">Q", frame, 11)[0]
    assert body_at == 5 + len(data)
    for end in range(0, len(data), 7):  # what is not whole is not recognised
        assert shapes.of(1).find(data[:end], 0) is None
    return traits


@given(PROPERTIES, st.integers(0, 2**32 - 1), st.data())
@example(CELERY, 1, None)
def test_a_shape_accepts_what_examining_accepts(
    properties: Properties, size: int, data: st.DataObject | None
) -> None:
    try:
        traits, raw = examine(encode_properties(properties))
    except HardError:
        return  # a float that is no number
    shapes = Shapes()
    assert shapes.learn(header_frame(raw, 5), traits) > 0
    frame = bytearray(header_frame(raw, size))
    assert recognised(shapes, bytes(frame)) == traits
    if data is None:
        return
    for _ in range(data.draw(st.integers(0, 3))):
        frame[data.draw(st.integers(19, len(frame) - 2))] = data.draw(st.integers(0, 255))
    found = recognised(shapes, bytes(frame))
    if found is not None:
        changed = bytes(frame[19:-1])
        assert examine(changed) == (found, changed)


@given(PROPERTIES)
def test_every_octet_that_says_what_is_where_counts(properties: Properties) -> None:
    try:
        traits, raw = examine(encode_properties(properties))
    except HardError:
        return
    shapes = Shapes()
    shapes.learn(header_frame(raw, 5), traits)
    for at in range(len(raw)):
        changed = raw[:at] + bytes((raw[at] ^ 0xFF,)) + raw[at + 1 :]
        found = recognised(shapes, header_frame(changed, 5))
        if found is not None:
            assert examine(changed) == (found, changed)


@pytest.mark.parametrize(
    ("known", "other"),
    [
        (CELERY, {"message_id": None, "priority": 3}),
        (Properties(expiration="60000"), {"expiration": "59873"}),
        (Properties(expiration="60000"), {"expiration": "6000x"}),
        (Properties(headers={"a": {"b": "c"}}), {"headers": {"a": {"b": "d"}}}),
        (Properties(headers={"a": [1, ["x"]]}), {"headers": {"a": [2, ["y"]]}}),
        (Properties(headers={"at": 1.7e9}), {"headers": {"at": 1.8e9}}),
        (Properties(reply_to="amq.gen-" + "x" * 13), {"reply_to": "amq.gen-" + "y" * 13}),
    ],
)
def test_other_values_are_of_the_same_shape(known: Properties, other: dict[str, Value]) -> None:
    shapes = Shapes()
    raw = encode_properties(known)
    shapes.learn(header_frame(raw, 5), examine(raw)[0])
    changed = encode_properties(replace(known, **other))  # type: ignore[arg-type]
    assert recognised(shapes, header_frame(changed, 9)) == examine(changed)[0]


@pytest.mark.parametrize(
    ("known", "other"),
    [
        ({"headers": {"a": True}}, b"\x20\x00\x00\x00\x00\x04\x01at\x02"),
        ({"headers": {"a": Float32(1)}}, b"\x20\x00\x00\x00\x00\x07\x01af\x7f\x80\x00\x00"),
        ({"headers": {"a": Float32(3e38)}}, b"\x20\x00\x00\x00\x00\x07\x01af\x7f\x80\x00\x00"),
        ({"headers": {"a": 1e308}}, b"\x20\x00\x00\x00\x00\x0b\x01ad\x7f\xf0\0\0\0\0\0\0"),
        ({"headers": {"a": 1}}, b"\x20\x00\x00\x00\x00\x07\x01bI\x00\x00\x00\x01"),
        ({"reply_to": "amq.rabbitmq.reply-tp"}, b"\x02\x00\x15amq.rabbitmq.reply-to"),
        ({"reply_to": "amq.rabbitmq.reply-to"}, b"\x02\x00\x15amq.rabbitmq.reply-tp"),
        ({"delivery_mode": 1}, b"\x10\x00\x02"),
    ],
)
def test_what_needs_another_look_is_of_another_shape(known: dict[str, Value], other: bytes) -> None:
    shapes = Shapes()
    raw = encode_properties(Properties(**known))  # type: ignore[arg-type]
    shapes.learn(header_frame(raw, 5), examine(raw)[0])
    assert recognised(shapes, header_frame(raw, 9)) is not None
    assert recognised(shapes, header_frame(other, 9)) is None


@pytest.mark.parametrize("known", [1, FIXED_PER_SKELETON + 2])
@pytest.mark.parametrize("size", [0, 4, 6, 5 + 2**32])
def test_a_body_in_several_frames_is_not_recognised(known: int, size: int) -> None:
    """The header frame is followed by one that has less than the body, or more."""
    shapes = Shapes()
    for number in range(known):
        raw = encode_properties(Properties(headers={"a": "x" * number}))
        shapes.learn(header_frame(raw, 5), examine(raw)[0])
    body_head = struct.pack(">BHI", 3, 1, 5)
    assert shapes.of(1).find(header_frame(raw, 5) + body_head, 0) is not None
    assert shapes.of(1).find(header_frame(raw, size) + body_head, 0) is None


def test_learning_stops_where_shapes_do_not_come_back() -> None:
    shapes = Shapes()
    frames = [header_frame(encode_properties(Properties(type="x" * n)), 5) for n in range(200)]
    traits, _ = examine(encode_properties(Properties(type="x")))
    for frame in frames:
        shapes.learn(frame, traits)
    assert len(shapes) == SHAPES_MAX
    assert sum(recognised(shapes, frame) is not None for frame in frames) == SHAPES_MAX
    shapes.recognised = RECOGNISED_PER_SHAPE
    shapes.learn(frames[100], traits)
    assert recognised(shapes, frames[100]) == traits and len(shapes) == 1


def test_shapes_of_one_size_live_side_by_side() -> None:
    shapes = Shapes()
    raws = [encode_properties(Properties(headers={f"key-{n:02}": "x"})) for n in range(20)]
    frames = [header_frame(raw, 5) for raw in raws]
    for raw, frame in zip(raws, frames, strict=True):
        shapes.learn(frame, examine(raw)[0])
    assert len(shapes) == SHAPES_PER_HEAD_MAX
    kept = frames[-SHAPES_PER_HEAD_MAX:]
    assert all(recognised(shapes, frame) is not None for frame in kept)
    assert not any(recognised(shapes, frame) for frame in frames[:-SHAPES_PER_HEAD_MAX])
    assert recognised(shapes, kept[0]) is not None  # which makes it the most recent one
    shapes.learn(frames[0], examine(raws[0])[0])
    assert recognised(shapes, kept[0]) is not None and recognised(shapes, kept[1]) is None


def test_a_shape_is_learnt_once() -> None:
    shapes = Shapes()
    raw = encode_properties(CELERY)
    traits, _ = examine(raw)
    assert shapes.learn(header_frame(raw, 0), traits) > 0
    assert shapes.learn(header_frame(raw, 0), traits) == 0
    assert len(shapes) == 1


def test_long_headers_are_walked() -> None:
    shapes = Shapes()
    raw = encode_properties(Properties(headers={"a": "x" * SHAPE_FRAME_BYTES_MAX}))
    assert shapes.learn(header_frame(raw, 5), examine(raw)[0]) == 0
    assert len(shapes) == 0


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


# --- strings whose length varies


def with_strings(properties: Properties, first: str, last: str) -> Properties:
    """The properties with two strings in the headers, around what is there."""
    return replace(
        properties, headers={"first": first} | (properties.headers or {}) | {"last": last}
    )


def learn_varying(properties: Properties) -> Shapes:
    """What is known when both strings were seen to differ in length."""
    shapes = Shapes()
    for number in range(FIXED_PER_SKELETON + 1):
        raw = encode_properties(with_strings(properties, "x" * number, "y" * (9 - number)))
        traits, clean = examine(raw)
        assert shapes.learn(header_frame(clean, 5), traits) > 0
    assert len(shapes) == FIXED_PER_SKELETON + 1 and shapes.of(1).varying_count == 1
    return shapes


def varying(shapes: Shapes, data: bytes) -> Traits | None:
    """The traits of the header frame that `data` begins with, if it is of a varying shape.

    Asserts that what is found is a whole header frame, which examining finds clean.
    """
    found = shapes.of(1).find(b"ahead" + data, 5)
    if found is None:
        return None
    traits, body_size, body_at = found
    header_end = body_at - 5 - 7
    kind, channel, size, ids, announced = struct.unpack_from(">BHIIQ", data)
    assert (kind, channel, size, ids) == (2, 1, header_end - 8, 60 << 16)
    assert announced == body_size and data[header_end - 1] == 0xCE
    assert struct.unpack_from(">BHI", data, header_end) == (3, 1, body_size)
    raw = data[19 : header_end - 1]
    assert examine(raw) == (traits, raw)
    return traits


@st.composite
def cleaned(draw: st.DrawFn) -> Properties:
    """Properties that are written as they are, with headers of other keys than the two strings."""
    properties = draw(PROPERTIES)
    try:
        raw = encode_properties(properties)
        assume(examine(raw)[1] == raw)
    except HardError:
        reject()
    return properties


@given(cleaned(), TEXTS, st.text(max_size=300), st.integers(0, 9), st.data())
@example(CELERY, "", "x", 7, None)
def test_strings_of_any_length(
    properties: Properties, first: str, last: str, priority: int, data: st.DataObject | None
) -> None:
    shapes = learn_varying(properties)
    if properties.priority is not None:
        properties = replace(properties, priority=priority)
    raw = encode_properties(with_strings(properties, first, last))
    whole = with_body_head(header_frame(raw, 2**31))
    assert varying(shapes, whole) == examine(raw)[0]
    assert varying(shapes, whole + b"behind") == examine(raw)[0]
    for end in range(len(whole)):
        assert varying(shapes, whole[:end]) is None
    if data is None:
        return
    octets = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
    varying(shapes, bytes(octets))


@pytest.mark.parametrize("properties", [CELERY, Properties(headers={"t": True}, user_id="u")])
def test_every_octet_of_a_varying_shape_counts(properties: Properties) -> None:
    """Any octet changed in any way: what is found then is what examining finds."""
    shapes = learn_varying(properties)
    raw = encode_properties(with_strings(properties, "abc", "de"))
    whole = with_body_head(header_frame(raw, 5))
    for at in range(len(whole)):
        for bits in (1, 2, 3, 4, 8, 16, 32, 64, 128, 255):
            varying(shapes, whole[:at] + bytes((whole[at] ^ bits,)) + whole[at + 1 :])


def table(*entries: bytes) -> bytes:
    return longstr(b"".join(entries))


def entry(key: bytes, text: bytes, more: int = 0) -> bytes:
    """A string in a table whose length is given as `more` than it is."""
    return bytes((len(key),)) + key + b"S" + struct.pack(">I", len(text) + more) + text


@pytest.mark.parametrize(
    ("headers", "accepted"),
    [
        (table(entry(b"first", b"abc"), entry(b"last", b"de")), True),
        (table(entry(b"first", b"abc", 1), entry(b"last", b"de")), False),
        (table(entry(b"first", b"abc"), entry(b"last", b"de", 1)), False),
        (table(entry(b"first", b"abc"), entry(b"last", b"de", -1)), False),
        (table(entry(b"first", b"abc"), entry(b"last", b"de", 2**32 - 3)), False),
        (table(entry(b"first", b"abc", 2**32 - 4), entry(b"last", b"de")), False),
        # The first string swallows the second: the length is right, and no second one is left.
        (table(entry(b"first", b"abc", 12), entry(b"last", b"de")), False),
        # Two strings in the first one, which is all right.
        (table(entry(b"first", entry(b"last", b"de")), entry(b"last", b"de")), True),
        (table(entry(b"first", b"abc"), entry(b"first", b"de")), False),
        (table(entry(b"first", b"abc"), entry(b"lost", b"de")), False),
        (table(entry(b"first", b"abc"), entry(b"last", b"de"), entry(b"more", b"")), False),
        (struct.pack(">I", 27) + entry(b"first", b"abc") + entry(b"last", b"de"), False),
        (struct.pack(">I", 25) + entry(b"first", b"abc") + entry(b"last", b"de"), False),
    ],
)
def test_lengths_must_agree(headers: bytes, accepted: bool) -> None:
    shapes = learn_varying(Properties())
    frame = header_frame(b"\x20\0" + headers, 5)
    assert (varying(shapes, with_body_head(frame)) is not None) == accepted
    size = struct.pack(">I", len(frame) - 8 + 1)
    assert varying(shapes, with_body_head(frame[:3] + size + frame[7:])) is None
    assert varying(shapes, with_body_head(frame[:-1] + b"\0" + frame[-1:])) is None


@pytest.mark.parametrize(
    ("known", "other", "accepted"),
    [
        ("amq.rabbitmq.reply-tp", "amq.rabbitmq.reply-to", False),
        ("amq.rabbitmq.reply-to", "amq.rabbitmq.reply-tp", False),
        ("amq.gen-" + "x" * 13, "amq.gen-" + "y" * 13, True),
    ],
)
def test_a_varying_shape_tells_the_pseudo_queue(known: str, other: str, accepted: bool) -> None:
    shapes = learn_varying(Properties(reply_to=known))
    raw = encode_properties(with_strings(Properties(reply_to=other), "a", "b"))
    assert (varying(shapes, with_body_head(header_frame(raw, 5))) is not None) == accepted


def test_strings_inside_tables_do_not_vary() -> None:
    shapes = Shapes()
    for number in range(3 * FIXED_PER_SKELETON):
        inner: Value = {"b": "x" * number, "c": "y" * (99 - number)}  # of one size
        raw = encode_properties(Properties(headers={"a": inner}))
        shapes.learn(header_frame(raw, 5), examine(raw)[0])
    assert not shapes.of(1).varying_count


def test_a_string_that_varies_later_makes_one_shape_of_two() -> None:
    shapes = learn_varying(Properties(headers={"z": "zz"}))
    raw = encode_properties(with_strings(Properties(headers={"z": "zzz"}), "a", "b"))
    traits, _ = examine(raw)
    assert varying(shapes, with_body_head(header_frame(raw, 5))) is None
    assert shapes.learn(header_frame(raw, 5), traits) > 0
    assert shapes.learn(header_frame(raw, 5), traits) == 0  # it is known already
    assert shapes.of(1).varying_count == 1
    raw = encode_properties(with_strings(Properties(headers={"z": ""}), "abc", "bcd"))
    assert varying(shapes, with_body_head(header_frame(raw, 5))) == traits


def test_a_channel_keeps_few_varying_shapes() -> None:
    shapes = Shapes()
    shapes.recognised = 10**6  # as if there was much to be recognised
    for name in range(VARYING_PER_CHANNEL_MAX + 2):
        for number in range(FIXED_PER_SKELETON + 1):
            raw = encode_properties(Properties(headers={f"key-{name}": "x" * number}))
            shapes.learn(header_frame(raw, 5), examine(raw)[0])
            assert len(shapes) <= SHAPES_MAX
    assert shapes.of(1).varying_count == VARYING_PER_CHANNEL_MAX
    for name, accepted in ((0, False), (2, True), (VARYING_PER_CHANNEL_MAX + 1, True)):
        raw = encode_properties(Properties(headers={f"key-{name}": "x" * 20}))
        assert (varying(shapes, with_body_head(header_frame(raw, 5))) is not None) == accepted
    shapes.clear()
    assert len(shapes) == 0 and not shapes.of(1).varying_count and not shapes._skeletons


def test_skeletons_do_not_pile_up() -> None:
    shapes = Shapes()
    shapes.recognised = 10**6
    for number in range(10 * SHAPES_MAX):
        raw = encode_properties(Properties(headers={f"key-{number:04}": "x"}))
        shapes.learn(header_frame(raw, 5), examine(raw)[0])
        assert len(shapes._skeletons) <= SHAPES_MAX
