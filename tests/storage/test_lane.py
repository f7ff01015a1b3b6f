"""Settling and reading in memory, against a set."""

from array import array
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlog.storage.bytes.record import Lengths
from qlog.storage.lanes.cache import Cache
from qlog.storage.lanes.lane import Changes, Lane
from qlog.storage.lanes.run import Pointers, Run, Slice
from qlog.storage.lanes.settled import BLOCK
from tests.storage.support import Envelope, envelope, ignore


class NoShelf:
    """All is in memory here."""

    def pointers(self, lane_id: int, qseq: int, count_max: int) -> Pointers:
        raise AssertionError

    def segments(self, lane_id: int, block: int) -> Sequence[int]:
        raise AssertionError

    def may_restore(self, segment_id: int) -> bool:
        raise AssertionError

    def fetch(
        self,
        lane_id: int,
        qseq: int,
        pointers: Pointers,
        into: Slice[Envelope],
    ) -> None:
        raise AssertionError


def lane_of(*counts: int) -> Lane[Envelope]:
    cache: Cache[Envelope] = Cache(1 << 20)
    lane: Lane[Envelope] = Lane(1, NoShelf(), cache, Changes([], [], [], {}, ignore))
    serial = 0
    for count in counts:
        bodies = [b"%d" % (serial + at) for at in range(count)]
        serial += count
        run: Run[Envelope] = Run(1, serial, 1, has_dues=False)
        cache.add(run)
        lane.add(run)
        sizes = array("I", map(len, bodies))
        measured = Lengths(array("I", [10]) * count, 10 * count, sizes, sum(sizes))
        cache.grown(run, run.extend([envelope()] * count, bodies, measured, serial, None))
        lane.grown(run, count, measured.body_bytes)
    return lane


ranges = st.lists(st.tuples(st.integers(0, 900), st.integers(1, 300)), max_size=12)


@given(ranges, st.integers(0, 900), st.integers(1, 1000))
def test_settled_messages_are_not_read_again(
    settled: list[tuple[int, int]], qseq: int, count_max: int
) -> None:
    lane = lane_of(300, 1, 299, 100, 200)
    left = set(range(900))
    for first, count in settled:
        going = left & set(range(first, first + count))
        size = sum(len(b"%d" % qseq) for qseq in going)
        known = size if len(going) == count else None  # who knows the size must know it right
        assert lane.settle(first, count, known) == len(going)
        left -= going
        assert lane.alive == len(left)
        assert lane.alive_bytes == sum(len(b"%d" % qseq) for qseq in left)
        assert lane.settled.floor == min(left, default=900)
    part = lane.read(qseq, count_max, 1 << 20)
    expected = sorted(known for known in left if known >= qseq)
    if not expected:
        assert part is None
        return
    assert part is not None and part.first_qseq == expected[0]
    contiguous = 1
    while (
        contiguous < min(len(expected), count_max)
        and expected[contiguous] == expected[0] + contiguous
    ):
        contiguous += 1
    assert part.bodies == [b"%d" % (expected[0] + at) for at in range(contiguous)]
    assert list(part.sizes) == list(map(len, part.bodies))
    assert list(part.times_ms) == [
        next(end for end in (300, 301, 600, 700, 900) if qseq < end)  # each run has one time
        for qseq in range(expected[0], expected[0] + contiguous)
    ]
    assert part.dues_ms is None


@given(ranges)
def test_bitmaps_stay_small(settled: list[tuple[int, int]]) -> None:
    lane = lane_of(900)
    for first, count in settled:
        lane.settle(first, count)
        assert len(lane.settled.bits) <= 900 // BLOCK + 1
        assert all(bits >> (lane.settled.floor - block * BLOCK if block == lane.settled.floor // BLOCK else 0)
                   for block, bits in lane.settled.bits.items())  # fmt: skip
    lane.settle(0, 900)
    assert lane.settled.in_order and lane.settled.floor == 900 and not lane.runs()


def test_bytes_are_limited_but_one_message_comes_always() -> None:
    lane = lane_of(10, 10)
    for size, count in ((0, 1), (1, 1), (10, 1), (29, 2), (30, 3), (100, 10), (119, 11), (999, 20)):
        part = lane.read(0, 100, size)
        assert part is not None and len(part.bodies) == count, size


def test_a_million_are_settled_in_one_step() -> None:
    """And no size is looked up for it: of these, none has a place."""
    lane = lane_of()
    lane.next_qseq = lane.alive = 1_000_000
    lane.alive_bytes = 5_000_000
    assert lane.settle(1000, 1, 5) == 1
    assert lane.alive_bytes == 4_999_995
    assert lane.settle(0, 1_000_000) == 999_999
    assert lane.alive == lane.alive_bytes == 0 and lane.settled.in_order
    assert lane.unwritten == [1000, 1001, 0, 1_000_000]


def test_a_size_is_given_for_messages_that_wait_only() -> None:
    lane = lane_of(10)
    lane.settle(0, 1)
    for first, count in ((0, 1), (0, 2), (9, 2)):
        with pytest.raises(AssertionError):
            lane.settle(first, count, count)


def test_settling_in_order_makes_one_range_for_the_ledger() -> None:
    lane = lane_of(100)
    for qseq in range(100):
        assert lane.settle(qseq, 1) == 1
    assert lane.settle(5, 5) == 0
    assert lane.unwritten == [0, 100]


def test_what_was_read_by_all_leaves_memory_when_it_is_durable() -> None:
    lane = lane_of(10)
    run = lane.runs()[0][1]
    lane.read(0, 10, 1000)
    assert run.bodies is not None
    lane._cache.advance(10)
    assert run.bodies is None and lane._cache.bytes == 0


def test_what_is_handed_on_is_settled_when_the_log_is_durable_and_counts_no_more_before() -> None:
    lane = lane_of(10)
    lane.settle_after(99, 2, 3, 3)
    assert lane.alive == 7 and lane.alive_bytes == 7
    assert not lane.unwritten and lane.settled.floor == 0
    assert lane.settle(0, 2) == 2 and lane.alive_bytes == 5  # looked up around what waits
    changes = lane._changes
    changes.release(98)
    assert lane.settled.floor == 2
    changes.release(99)
    assert lane.settled.floor == 5 and lane.unwritten == [0, 5]
    assert lane.alive == lane.alive_bytes == 5
