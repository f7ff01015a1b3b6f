"""Streams: message numbers and byte positions of an endless repetition."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands, frame
from pamqp.header import ContentHeader

from benchmarks.traffic import Stream, Traffic, encode

MESSAGES = st.lists(st.binary(min_size=1, max_size=9), min_size=1, max_size=5)


@given(MESSAGES, st.integers(0, 60))
def test_positions_agree_with_the_bytes_written_out(messages: list[bytes], cut: int) -> None:
    stream = Stream(messages)
    starts = [0]
    for number in range(80):
        starts.append(starts[-1] + len(messages[number % len(messages)]))
    assert [stream.position(number) for number in range(81)] == starts
    assert stream.started(cut) == sum(start < cut for start in starts[:-1])
    assert stream.completed(cut) == sum(end <= cut for end in starts[1:])


@given(MESSAGES, st.lists(st.integers(1, 20), max_size=20))
def test_slices_joined_are_the_messages(messages: list[bytes], sizes: list[int]) -> None:
    stream = Stream(messages)
    sent = b""
    for size in sizes:
        piece = stream.slice(len(sent), size)
        assert 1 <= len(piece) <= size
        sent += piece
    assert (b"".join(messages) * 400).startswith(sent)


def decoded(traffic: Traffic) -> list[tuple[commands.Basic.Publish, ContentHeader, bytes]]:
    """The messages of a block, read by an independent decoder."""
    data = bytes(encode(traffic, 4096).block)
    messages = []
    while data:
        size, _, method = frame.unmarshal(data)
        data = data[size:]
        size, _, header = frame.unmarshal(data)
        data = data[size:]
        assert isinstance(method, commands.Basic.Publish) and isinstance(header, ContentHeader)
        body = b""
        while len(body) < header.body_size:
            size, _, part = frame.unmarshal(data)
            data = data[size:]
            body += part.value  # type: ignore[union-attr]
        messages.append((method, header, body))
    return messages


def test_uniform_messages_differ_in_their_key_only() -> None:
    messages = decoded(Traffic("events", ("a", "b"), 5000))
    assert {(method.exchange, method.routing_key) for method, _, _ in messages} == {
        ("events", "a"),
        ("events", "b"),
    }
    assert {len(body) for _, _, body in messages} == {5000}
    assert {header.properties.delivery_mode for _, header, _ in messages} == {2}


def test_varied_messages_have_ids_headers_and_sizes_of_their_own() -> None:
    messages = decoded(Traffic("", ("a", "b", "c"), 64, varied=True, persistent=False))
    properties = [header.properties for _, header, _ in messages]
    assert len({one.message_id for one in properties}) == len(messages)
    assert len({one.correlation_id for one in properties}) == len(messages)
    assert all(one.headers is not None and len(one.headers) == 3 for one in properties)
    assert {one.delivery_mode for one in properties} == {1}
    sizes = [len(body) for _, _, body in messages]
    assert (min(sizes), max(sizes)) == (32, 96)
    assert {method.routing_key for method, _, _ in messages} == {"a", "b", "c"}
