"""Whatever comes: events or a violation, never an exception, the same however cut, and bounded."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlog.server.amqp.connection import Connection, Event, Violation
from qlog.server.amqp.recognise import FORMS_MAX
from qlog.server.amqp.shapes import SHAPES_MAX
from tests.server.amqp.conversation import (
    CHANNEL_CLOSE,
    CHANNEL_CLOSE_OK,
    CHANNEL_OPEN,
    CLOSE,
    HEADER,
    HEARTBEAT,
    OPEN,
    START_OK,
    ack,
    body,
    declare,
    frame,
    header,
    hear,
    message,
    publish,
    running,
    shortstr,
    starting,
    tune_ok,
    tuning,
)
from tests.server.amqp.test_connection import told

PIECES = st.one_of(
    st.sampled_from(
        [
            *(HEADER, START_OK, tune_ok(), OPEN, CHANNEL_OPEN, CHANNEL_CLOSE, CHANNEL_CLOSE_OK),
            *(HEARTBEAT, CLOSE, declare(), publish(), header(3), header(0), body(b"abc")),
            *(ack(1), ack(2), ack(9, True), message(b""), message(b"abc"), message(b"abc") * 3),
            message(b"abcd", b"\xb0\0" + shortstr("t") + b"\0\0\0\x04\x01kt\x01\x02", "other"),
        ]
    ),
    st.builds(frame, st.integers(0, 9), st.integers(0, 2), st.binary(max_size=30)),
    st.binary(max_size=12),
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    octets = bytearray(b"".join(draw(st.lists(PIECES, min_size=1, max_size=12))))
    for _ in range(draw(st.integers(0, 3))):
        if octets:
            octets[draw(st.integers(0, len(octets) - 1))] = draw(st.integers(0, 255))
    return bytes(octets)


@given(
    st.sampled_from([Connection, starting, tuning, running]),
    mutated(),
    st.lists(st.integers(1, 40), min_size=1, max_size=6),
)
def test_any_octets(begin: Callable[[], Connection], octets: bytes, steps: list[int]) -> None:
    whole = hear(begin(), octets)
    hard = [event for event in whole if isinstance(event, Violation)]
    assert len(hard) <= 2  # at most one for the channel, and one for the connection

    connection = begin()
    events: list[Event] = []
    at = turn = 0
    while at < len(octets):
        step = steps[turn % len(steps)]
        events += hear(connection, octets[at : at + step])
        at += step
        turn += 1
    assert told(events) == told(whole)


@pytest.mark.parametrize(
    "octets",
    [
        frame(3, 1, b"x" * 131072)[:-1],
        publish() + header(300_000),
    ],
    ids=["half a frame", "a message announced"],
)
def test_what_is_kept_is_what_came(octets: bytes) -> None:
    connection = running()
    assert hear(connection, octets) == []
    assert sum(map(len, connection._rest)) <= 131072 + 8
    body = connection._channels[1].body
    assert body is None or body._stream is None


def test_different_headers_and_keys_are_not_kept_for_ever() -> None:
    connection = running()
    properties = b"\x20\0" + (100_000).to_bytes(4, "big") + b"\x01kx" + (99_993).to_bytes(4, "big")
    properties += bytes(99_993)
    for number in range(600):
        hear(connection, message(b"x", properties, key=str(number)))
    kept = connection._forms
    assert len(kept.by_frame) <= FORMS_MAX
    assert sum(len(raw) + len(form.prefix) for raw, form in kept.by_frame.items()) < 2**20
    assert len(kept.shapes) <= SHAPES_MAX
    assert all(form.envelope is None for form in kept.by_frame.values())
