"""Bodies in pieces: what is kept, and how often it is copied."""

import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlog.server.amqp import spec
from qlog.server.amqp.body import Body
from qlog.server.amqp.connection import Connection, MethodReceived, Publishes, Violation
from tests.server.amqp.conversation import (
    CHANNEL_CLOSE_OK,
    CHANNEL_OPEN,
    HEADER,
    OPEN,
    START_OK,
    body,
    declare,
    header,
    hear,
    publish,
    tune_ok,
)

MIB = 1024 * 1024


@given(st.lists(st.binary(max_size=50), max_size=10))
def test_pieces_make_the_whole(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    content = Body(len(whole))
    for piece in pieces:
        assert content.missing >= len(piece)
        content.add(memoryview(piece))
    assert content.missing == 0 and content.take() == whole and type(content.take()) is bytes


def reads(octets: bytes, size: int) -> Iterator[bytes]:
    """The octets as reads of a socket bring them."""
    for start in range(0, len(octets), size):
        yield octets[start : start + size]


@pytest.fixture
def connection() -> Connection:
    """With channel 1 open, for messages of up to 64 MiB."""
    made = Connection(message_bytes_max=64 * MIB)
    hear(made, HEADER)
    made.send(0, spec.ConnectionStart(0, 9, {}, b"PLAIN", b"en_US"))
    hear(made, START_OK)
    made.send(0, spec.ConnectionTune(2047, 131072, 60))
    hear(made, tune_ok() + OPEN)
    made.send(0, spec.ConnectionOpenOk())
    hear(made, CHANNEL_OPEN)
    made.send(1, spec.ChannelOpenOk())
    return made


@pytest.mark.parametrize("read_bytes", [100_000, 131_080, MIB])
def test_a_large_body_is_copied_once(connection: Connection, read_bytes: int) -> None:
    """At no time is more kept than the body, and a read or two."""
    size = 32 * MIB
    whole = bytes(range(256)) * (size // 256)
    octets = publish() + header(size)
    octets += b"".join(map(body, reads(whole, 131_064)))
    tracemalloc.start()
    try:
        events = [event for data in reads(octets, read_bytes) for event in connection.receive(data)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    (event,) = events
    assert isinstance(event, Publishes) and event.runs[0].bodies == [whole]
    assert peak < size + 4 * MIB


def test_an_announced_body_costs_nothing(connection: Connection) -> None:
    tracemalloc.start()
    try:
        hear(connection, publish() + header(60 * MIB))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 100_000


@pytest.mark.parametrize("end", ["channel", "connection", "socket"])
def test_a_body_that_is_cut_off_is_forgotten(connection: Connection, end: str) -> None:
    hear(connection, publish() + header(60 * MIB) + body(b"x" * 131_064)[:-1000])
    upload = connection.channel(1).body
    assert upload is not None and upload.missing < 60 * MIB
    channel = connection.channel(1)
    if end == "channel":
        connection.send(1, spec.ChannelClose(404, "NOT_FOUND", 60, 40))
    elif end == "connection":
        connection.send(0, spec.ConnectionClose(320, "CONNECTION_FORCED", 0, 0))
    else:
        connection.end()
    assert channel.body is None and not connection.uploads


def test_what_comes_of_a_frame_after_its_channel_was_closed_is_not_kept(
    connection: Connection,
) -> None:
    """The rest of the frame is passed over, and what follows is understood."""
    frame = body(b"x" * 131_064)
    hear(connection, publish() + header(60 * MIB) + frame[:1000])
    upload = connection.channel(1).body
    assert upload is not None
    connection.send(1, spec.ChannelClose(404, "NOT_FOUND", 60, 40))
    missing = upload.missing
    assert hear(connection, frame[1000:50_000]) == []
    assert upload.missing == missing
    rest = frame[50_000:] + declare() + CHANNEL_CLOSE_OK
    assert hear(connection, rest) == [MethodReceived(1, spec.ChannelCloseOk())]


@pytest.mark.parametrize("cut", [10, 20, 500, -1])
def test_a_wrong_end_is_told_by_the_frames_first_octets(connection: Connection, cut: int) -> None:
    frame = body(b"0123456789abcdefghij" * 100)[:-1] + b"\x00"
    assert hear(connection, publish() + header(60 * MIB) + frame[:cut]) == []
    (violation,) = hear(connection, frame[cut:])
    assert isinstance(violation, Violation)
    assert violation.error.reply_text == (
        'FRAME_ERROR - type 3, first 16 octets = <<"0123456789abcdef">>: '
        "{invalid_frame_end_marker,0}"
    )
