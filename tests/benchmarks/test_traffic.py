"""Streams: message numbers and byte positions of an endless repetition."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands, frame
from pamqp.header import ContentHeader

from benchmarks.traffic import (
    CELERY,
    KEY_DIGITS,
    VARIED,
    VARIED_BLOCK_MESSAGES,
    FreshKeys,
    Stream,
    Traffic,
    encode,
)

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


@given(st.integers(1, 5), st.lists(st.integers(1, 90), max_size=20))
def test_fresh_keys_are_numbered_through_all_rounds(messages: int, sizes: list[int]) -> None:
    head, tail = b"<", b">tail"
    stream = FreshKeys([head + bytes(KEY_DIGITS) + tail] * messages, len(head))
    sent = b""
    for size in sizes:
        sent += stream.slice(len(sent), size)
    expected = b"".join(b"<%012x>tail" % number for number in range(200))
    # The first round is sent as it was encoded.
    first = stream.position(messages)
    assert expected[first : len(sent)] == sent[first:]


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


def test_messages_have_priorities_in_turn_a_ttl_and_a_delay() -> None:
    traffic = Traffic("", ("a",), 50, priorities=3, expiration_ms=60_000, delay_ms=1500)
    properties = [header.properties for _, header, _ in decoded(traffic)]
    assert [one.priority for one in properties[:6]] == [0, 1, 2, 0, 1, 2]
    assert {one.expiration for one in properties} == {"60000"}
    assert all(one.headers == {"x-delay": 1500} for one in properties)
    assert {one.delivery_mode for one in properties} == {2}


def test_varied_messages_have_ids_headers_and_sizes_of_their_own() -> None:
    messages = decoded(Traffic("", ("a", "b", "c"), 64, VARIED, persistent=False))
    properties = [header.properties for _, header, _ in messages]
    assert len({one.message_id for one in properties}) == len(messages)
    assert len({one.correlation_id for one in properties}) == len(messages)
    assert all(one.headers is not None and len(one.headers) == 3 for one in properties)
    assert {one.delivery_mode for one in properties} == {1}
    sizes = [len(body) for _, _, body in messages]
    assert (min(sizes), max(sizes)) == (32, 96)
    assert {method.routing_key for method, _, _ in messages} == {"a", "b", "c"}


def test_fresh_keys_come_once() -> None:
    traffic = Traffic("events", ("user.",), 64, VARIED, fresh_keys=True)
    stream = encode(traffic, 4096)
    # A stream that is sent is changed by that: two publishers never share one.
    assert encode(traffic, 4096) is not stream
    block = len(stream.block)
    keys = [wire_keys(bytes(stream.slice(turn * block, block))) for turn in range(2)]
    assert len({*keys[0], *keys[1]}) == 2 * len(keys[0]) == 2 * VARIED_BLOCK_MESSAGES
    assert all(key.startswith("user.") for key in keys[1])


def wire_keys(data: bytes) -> list[str]:
    keys = []
    while data:
        size, _, part = frame.unmarshal(data)
        data = data[size:]
        if isinstance(part, commands.Basic.Publish):
            keys.append(part.routing_key)
    return keys


def test_celery_messages_are_those_of_tasks() -> None:
    messages = decoded(Traffic("", ("tasks",), 256, CELERY))
    assert len(messages) == VARIED_BLOCK_MESSAGES
    for method, header, body in messages[:50]:
        assert method.routing_key == "tasks"
        assert header.properties.correlation_id is not None
        assert header.properties.headers is not None
        assert header.properties.headers["id"] == header.properties.correlation_id
        assert len(json.loads(body)) == 3


def test_publishers_that_send_the_same_share_the_bytes() -> None:
    assert encode(Traffic("", ("a",), 10), 4096) is encode(Traffic("", ("a",), 10), 4096)
