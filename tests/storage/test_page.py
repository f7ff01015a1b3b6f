"""Reading ahead: what a lane gives is the same as if it read exactly what it is asked for."""

from array import array
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlog.storage.bytes.record import Lengths
from qlog.storage.errors import CorruptLog
from qlog.storage.lanes.cache import Cache
from qlog.storage.lanes.lane import Changes, Lane
from qlog.storage.lanes.page import FEW, PAGE_BYTES_MAX, PAGE_COUNT
from qlog.storage.lanes.run import Pointers, Run, Slice
from qlog.storage.lanes.settled import BLOCK
from tests.storage.support import Envelope, envelope, ignore

INDEXED = 600  # of these the index knows the place; what follows is in runs
COUNT = 1000
RUN = 100  # messages a run
META = envelope()


def size_of(qseq: int) -> int:
    """Of a record and its body; some are as large as half a page."""
    return PAGE_BYTES_MAX // 2 if qseq % 97 == 0 else 10 + qseq % 7


def due_of(qseq: int) -> int:
    """Every second of the indexed has a due time, and no run has."""
    return (qseq % 2) * qseq if qseq < INDEXED else 0


class Shelf:
    """A disk with damage."""

    def __init__(self, damaged: set[int]) -> None:
        self.damaged = damaged
        self.reads = 0
        self.messages = 0

    def pointers(self, lane_id: int, qseq: int, count_max: int) -> Pointers:
        assert qseq < INDEXED
        count = min(count_max, BLOCK - qseq % BLOCK, INDEXED - qseq)
        lengths = array("I", map(size_of, range(qseq, qseq + count)))
        return Pointers(1, array("I", [0]) * count, lengths, lengths)

    def segments(self, lane_id: int, block: int) -> Sequence[int]:
        raise AssertionError

    def may_restore(self, segment_id: int) -> bool:
        raise AssertionError

    def fetch(self, lane_id: int, qseq: int, pointers: Pointers, into: Slice[Envelope]) -> None:
        qseqs = range(qseq, qseq + len(pointers.lengths))
        self.reads += 1
        self.messages += len(qseqs)
        if not self.damaged.isdisjoint(qseqs):
            raise CorruptLog("damaged")
        dues = [due_of(qseq) for qseq in qseqs]
        into.add(
            [META] * len(qseqs),
            [b"%d" % qseq for qseq in qseqs],
            list(qseqs),
            pointers.sizes,
            dues if any(dues) else None,
        )


def lane_with(shelf: Shelf, cache: Cache[Envelope], in_memory: Sequence[bool]) -> Lane[Envelope]:
    """Of the runs behind what is indexed, these are in memory."""
    lane: Lane[Envelope] = Lane(1, shelf, cache, Changes([], [], [], {}, ignore))
    lane.next_qseq = lane.alive = INDEXED
    lane.alive_bytes = sum(map(size_of, range(INDEXED)))
    for first, stays in zip(range(INDEXED, COUNT, RUN), in_memory, strict=True):
        qseqs = range(first, first + RUN)
        run: Run[Envelope] = Run(1, first, 1, has_dues=False)
        run.positions = array("I", [0]) * RUN
        cache.add(run)
        lane.add(run)
        sizes = array("I", map(size_of, qseqs))
        measured = Lengths(sizes, sum(sizes), sizes, sum(sizes))
        bodies = [b"%d" % qseq for qseq in qseqs]
        cache.grown(run, run.extend([META] * RUN, bodies, measured, first, None))
        run.times_ms = array("Q", qseqs)
        lane.grown(run, RUN, measured.body_bytes)
        if not stays:
            cache.drop(run)
    return lane


def expected(left: set[int], qseq: int, count_max: int, bytes_max: int) -> list[int]:
    """What a read gives when nothing is damaged."""
    start = min((known for known in left if known >= qseq), default=COUNT)
    found: list[int] = []
    while start + len(found) in left and len(found) < count_max:
        bytes_max -= size_of(start + len(found))
        if found and bytes_max < 0:
            break
        found.append(start + len(found))
    return found


steps = st.lists(
    st.one_of(
        st.tuples(st.just("next"), st.integers(1, FEW), st.sampled_from((1 << 20, 30, 0))),
        st.tuples(st.just("next"), st.just(1), st.just(1 << 20)),
        st.tuples(st.just("next"), st.integers(1, COUNT), st.just(1 << 20)),
        st.tuples(st.just("seek"), st.integers(0, COUNT - 1), st.just(0)),
        st.tuples(st.just("peek"), st.integers(0, COUNT - 1), st.integers(1, FEW)),
        st.tuples(st.just("settle"), st.integers(0, COUNT - 1), st.integers(1, 80)),
        st.tuples(st.just("settle read"), st.integers(1, 5), st.just(0)),
    ),
    max_size=60,
)


@given(
    steps,
    st.sets(st.integers(0, COUNT - 1), max_size=8),
    st.lists(st.booleans(), min_size=4, max_size=4),
    st.sampled_from((1 << 20, 100 << 10, 0)),
)
def test_what_is_read_is_what_exact_reads_give(
    script: list[tuple[str, int, int]],
    damaged: set[int],
    in_memory: list[bool],
    cache_bytes_max: int,
) -> None:
    """Damage fails those reads that ask for what is damaged, and no others."""
    shelf = Shelf(damaged)
    cache: Cache[Envelope] = Cache(cache_bytes_max)
    lane = lane_with(shelf, cache, in_memory)
    on_disk = set(range(INDEXED))
    for first, stays in zip(range(INDEXED, COUNT, RUN), in_memory, strict=True):
        on_disk |= set() if stays else set(range(first, first + RUN))
    left = set(range(COUNT))
    cursor = 0
    for step, number, limit in script:
        if step == "seek":
            cursor = number
            continue
        if step.startswith("settle"):
            first = number if step == "settle" else max(cursor - number, 0)
            going = left & set(range(first, first + (limit or number)))
            assert lane.settle(first, limit or number) == len(going)
            left -= going
            continue
        passing = step == "next"
        qseq, count_max, bytes_max = (
            (cursor, number, limit) if passing else (number, limit, 1 << 20)
        )
        wanted = expected(left, qseq, count_max, bytes_max)
        if damaged & on_disk & set(wanted):
            with pytest.raises(CorruptLog):
                lane.read(qseq, count_max, bytes_max, passing=passing)
            continue
        found = lane.read(qseq, count_max, bytes_max, passing=passing)
        if found is None:
            assert not wanted
            continue
        assert found.first_qseq == wanted[0]
        assert found.bodies == [b"%d" % qseq for qseq in wanted]
        assert found.metas == [META] * len(wanted)
        assert list(found.times_ms) == wanted
        assert list(found.sizes) == [size_of(qseq) for qseq in wanted]
        assert (found.dues_ms or [0] * len(wanted)) == [due_of(qseq) for qseq in wanted]
        if passing:
            cursor = wanted[-1] + 1
        assert 0 <= cache.pages_bytes <= min(cache.bytes, cache_bytes_max // 4)
    lane.forget()
    assert cache.pages_bytes == cache.bytes == 0


def cold(cache_bytes_max: int = 8 << 20) -> tuple[Lane[Envelope], Shelf, Cache[Envelope]]:
    shelf = Shelf(set())
    cache: Cache[Envelope] = Cache(cache_bytes_max)
    return lane_with(shelf, cache, [False] * 4), shelf, cache


def test_who_reads_one_by_one_reads_a_page() -> None:
    lane, shelf, _ = cold()
    for qseq in range(1, 97):  # none of them is large
        lane.read(qseq, 1, 1 << 20)
    assert shelf.reads <= 1 + -(-95 // PAGE_COUNT)


def test_who_reads_here_and_there_reads_no_more_than_he_asks_for() -> None:
    lane, shelf, cache = cold()
    for qseq in (5, 500, 50, 400, 20, 999, 0):
        lane.read(qseq, 1, 1 << 20)
        lane.read(qseq + 1, 1, 1 << 20, passing=False)
    assert shelf.messages == shelf.reads == 13 and not cache.pages_bytes


def test_a_page_goes_when_it_is_read_or_settled() -> None:
    lane, _, cache = cold()
    lane.read(1, 1, 1 << 20)
    lane.read(2, 1, 1 << 20)
    assert cache.bytes == cache.pages_bytes > 0
    lane.read(3, PAGE_COUNT - 1, 1 << 20)  # to its end
    assert not cache.bytes
    lane.read(3 + PAGE_COUNT - 1, 1, 1 << 20)
    assert cache.pages_bytes > 0
    lane.settle(0, 300)
    assert not cache.bytes and not cache.pages_bytes


def test_pages_of_all_lanes_are_bounded_and_the_oldest_goes() -> None:
    shelf = Shelf(set())
    cache: Cache[Envelope] = Cache(100 << 10)
    lanes = [lane_with(shelf, cache, [False] * 4) for _ in range(50)]
    for qseq in (1, 2):
        for lane in lanes:
            lane.read(qseq, 1, 1 << 20)
            assert cache.pages_bytes <= 25 << 10
    reads = shelf.reads
    lanes[-1].read(3, 1, 1 << 20)
    assert shelf.reads == reads
    found = lanes[0].read(3, 1, 1 << 20)
    assert found is not None and found.bodies == [b"3"] and shelf.reads == reads + 1
