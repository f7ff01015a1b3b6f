"""What is settled, against a plain set."""

from hypothesis import given
from hypothesis import strategies as st

from qlog.storage.lanes.settled import BLOCK, FULL, Settled, add, contains

END = 6 * BLOCK + 40

stretches = st.lists(
    st.tuples(
        st.integers(0, END - 1) | st.integers(0, 6).map(lambda block: block * BLOCK),
        st.integers(1, 3 * BLOCK) | st.sampled_from([1, BLOCK, 2 * BLOCK, 4 * BLOCK]),
    ),
    max_size=20,
)


@given(st.lists(st.tuples(st.integers(0, 4), stretches), max_size=4), st.data())
def test_it_is_a_set(marked: list[tuple[int, list[tuple[int, int]]]], data: st.DataObject) -> None:
    """What is marked is in it, and what is restored is out of it again."""
    settled = Settled()
    model: set[int] = set()
    for restored, several in marked:
        for first, count in several:
            end = min(first + count, END)
            fresh = set(range(first, end)) - model
            assert settled.mark(first, end) == len(fresh)
            model |= fresh
        for _ in range(restored):
            if not model:
                break
            first = data.draw(st.sampled_from(sorted(model)))
            end = first + data.draw(st.sampled_from((1, 2, 300)))
            end = next((qseq for qseq in range(first, end) if qseq not in model), end)
            settled.restore(first, end)
            model -= set(range(first, end))
    left = [qseq for qseq in range(END + 1) if qseq not in model]
    assert settled.floor == left[0]
    for block, bits in settled.bits.items():
        assert 0 < bits < FULL and not contains(settled.full, block)
    assert settled.full == sorted(set(settled.full)) and len(settled.full) % 2 == 0
    first = data.draw(st.integers(0, END - 1))
    count = data.draw(st.integers(1, 800))
    bits = settled.unsettled(first, count)
    assert [at for at in range(count) if bits >> at & 1] == [
        at for at in range(count) if first + at not in model
    ]
    start, stop = settled.stretch(first, END, count)
    expected = [qseq for qseq in left if first <= qseq < END]
    if not expected:
        assert start == stop
        return
    assert start == expected[0]
    assert stop == next(qseq for qseq in range(start, END + 1) if qseq in model or qseq == END) or (
        stop == start + count
    )
    assert not model & set(range(start, stop)) and stop > start


@given(stretches)
def test_what_changed_is_dirty_or_below_the_floor(marked: list[tuple[int, int]]) -> None:
    settled = Settled()
    copy: dict[int, int] = {}
    for first, count in marked:
        settled.mark(first, first + count)
        for block in settled.dirty:
            copy[block] = settled.bits_of(block)
        settled.dirty.clear()
        for block in range(settled.floor // BLOCK + 1, END // BLOCK + 5):
            assert copy.get(block, 0) == settled.bits_of(block)


def test_one_that_is_stuck_costs_nothing() -> None:
    settled = Settled()
    for qseq in range(1, 100_000):
        settled.mark(qseq, qseq + 1)
    assert settled.floor == 0 and len(settled.bits) <= 2 and settled.full == [1, 393]
    assert settled.mark(0, 1) == 1
    assert settled.floor == 100_000 and settled.in_order


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 10)), max_size=12))
def test_ranges_are_a_set(added: list[tuple[int, int]]) -> None:
    ranges: list[int] = []
    model: set[int] = set()
    for start, count in added:
        add(ranges, start, start + count)
        model |= set(range(start, start + count))
        assert ranges == sorted(set(ranges))
    assert {value for value in range(50) if contains(ranges, value)} == model
