"""Counting deliveries and confirms, however they arrive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from benchmarks import wire
from benchmarks.deliveries import DELIVERY_TAG, DeliveryCounter, take_deliveries
from benchmarks.load import Confirms, Published

CONSUMER_TAG = "consumer-1"


def delivery(tag: int, body_bytes: int, frame_bytes_max: int) -> bytes:
    """The frames of one delivery; its body is made of frame ends and headers, to mislead."""
    arguments = (
        wire.shortstr(CONSUMER_TAG)
        + DELIVERY_TAG.pack(tag)
        + b"\x00"
        + wire.shortstr("")
        + wire.shortstr("key")
    )
    body = (b"\xce\x01\x00\x01\x00\x00\x00\x20\x00\x3c\x00\x3c\x0a" * body_bytes)[:body_bytes]
    header = (
        wire.METHOD.pack(60, 0) + DELIVERY_TAG.pack(len(body)) + b"\x10\x00\x02"
    )  # delivery mode only
    step = frame_bytes_max - wire.FRAME_OVERHEAD_BYTES
    return (
        wire.method_frame(wire.BASIC_DELIVER, arguments)
        + wire.frame(wire.HEADER_FRAME, wire.CHANNEL, header)
        + b"".join(
            wire.frame(wire.BODY_FRAME, wire.CHANNEL, body[at : at + step])
            for at in range(0, len(body), step)
        )
    )


def feed(counter: DeliveryCounter, data: bytes) -> None:
    while data:
        space = counter.space()
        size = min(len(space), len(data))
        space[:size] = data[:size]
        data = data[size:]
        counter.received(size)


def pieces(data: bytes, cuts: Sequence[int]) -> Iterator[bytes]:
    for start, stop in pairwise([0, *sorted(cuts), len(data)]):
        yield data[start:stop]


@given(
    st.lists(st.integers(0, 90), min_size=1, max_size=12),
    st.integers(24, 60),
    st.lists(st.integers(0, 2000), max_size=30),
)
@example([0, 90, 1], 24, list(range(1000)))
def test_whole_deliveries_are_counted_however_the_bytes_are_cut(
    sizes: list[int], frame_bytes_max: int, cuts: list[int]
) -> None:
    deliveries = [delivery(tag, size, frame_bytes_max) for tag, size in enumerate(sizes, start=1)]
    stream = b"".join(deliveries)
    ends = [sum(map(len, deliveries[: number + 1])) for number in range(len(deliveries))]
    with pytest.MonkeyPatch.context() as patch:
        # So little room that what is left over has to be moved to the front.
        patch.setattr("benchmarks.deliveries.RECEIVE_BYTES", 100)
        patch.setattr("benchmarks.deliveries.DELIVERY_BUFFER_BYTES", 700)
        counter = DeliveryCounter(CONSUMER_TAG)
        fed = 0
        for piece in pieces(stream, [min(cut, len(stream)) for cut in cuts]):
            feed(counter, piece)
            fed += len(piece)
            assert counter.count == sum(end <= fed for end in ends)


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (
            wire.method_frame((20, 40), b"\x01\x96" + wire.shortstr("PRECONDITION_FAILED - no")),
            "406 PRECONDITION_FAILED - no",
        ),
        (wire.method_frame((60, 30), b"\x00\x00"), "unexpected method 60.30"),
        (wire.frame(wire.BODY_FRAME, 1, b"body"), "frame of kind 3"),
    ],
)
def test_what_is_no_delivery_is_refused(frame: bytes, text: str) -> None:
    counter = DeliveryCounter(CONSUMER_TAG)
    feed(counter, delivery(1, 10, 4096))
    with pytest.raises(wire.Refused, match=text):
        feed(counter, frame)
    with pytest.raises(wire.Refused, match=text):
        take_deliveries(bytearray(delivery(1, 10, 4096) + frame))


@given(st.lists(st.integers(0, 90), max_size=8), st.integers(24, 60), st.integers(0, 2000))
def test_whole_deliveries_are_taken_from_the_front(
    sizes: list[int], frame_bytes_max: int, cut: int
) -> None:
    whole = [delivery(tag, size, frame_bytes_max) for tag, size in enumerate(sizes, start=1)]
    stream = b"".join(whole)
    buffer = bytearray(stream[:cut])
    found = take_deliveries(buffer)
    buffer += stream[cut:]
    found += take_deliveries(buffer)
    assert [tag for tag, _ in found] == list(range(1, len(sizes) + 1))
    # Class and weight, the size of the body, and delivery mode as the only property.
    assert [header[4:] for _, header in found] == [
        DELIVERY_TAG.pack(size) + b"\x10\x00\x02" for size in sizes
    ]
    assert not buffer


def test_confirms_count_each_message_once() -> None:
    result = Published()
    confirms = Confirms(result)
    steps = [
        # tag, multiple, prefix, count
        (1, False, 1, 1),
        (4, False, 1, 2),
        (3, False, 1, 3),
        (2, False, 4, 4),
        (9, False, 4, 5),
        (8, True, 9, 9),
        (8, True, 9, 9),
        (5, False, 9, 9),
    ]
    for now_ns, (tag, multiple, prefix, count) in enumerate(steps):
        confirms.add(tag, multiple, now_ns)
        assert (confirms.prefix, confirms.count) == (prefix, count)
    assert result.confirmed_early_ns == {3: 1, 2: 2, 8: 4}


@given(st.permutations(range(1, 20)))
def test_confirms_one_by_one_in_any_order_make_a_whole(tags: list[int]) -> None:
    confirms = Confirms(Published())
    for number, tag in enumerate(tags, start=1):
        confirms.add(tag, False, 0)
        assert confirms.count == number
    assert confirms.prefix == 19
