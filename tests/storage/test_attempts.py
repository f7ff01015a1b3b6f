"""Attempts as ranges, against a dictionary."""

from hypothesis import given
from hypothesis import strategies as st

from qlog.storage.lanes.attempts import Attempts

END = 60
_ranges = st.tuples(st.integers(0, END - 1), st.integers(1, END)).map(
    lambda pair: (pair[0], min(pair[0] + pair[1], END))
)
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("note"), _ranges, st.integers(0, 3)),
        st.tuples(st.just("settle"), _ranges, st.just(0)),
    ),
    max_size=30,
)


@given(_steps, _ranges)
def test_what_waits_has_the_number_that_was_noted_last(
    steps: list[tuple[str, tuple[int, int], int]], asked: tuple[int, int]
) -> None:
    attempts = Attempts()
    model = dict.fromkeys(range(END), 0)  # of those that are not settled
    for step, (first, end), number in steps:
        if step == "note":
            attempts.note(first, end, number)
            model |= {qseq: number for qseq in range(first, end) if qseq in model}
        else:
            attempts.settle(first, end)
            for qseq in range(first, end):
                model.pop(qseq, None)
        before = None
        for low, high, value in attempts.ranges():
            assert low < high and value > 0
            if before is not None:
                assert before[1] <= low and (before[1] < low or before[2] != value)
            before = (low, high, value)
    first, end = asked
    found = dict(zip(range(first, end), attempts.of(first, end - first), strict=True))
    assert all(found[qseq] == model[qseq] for qseq in found.keys() & model.keys())
    copy = Attempts()
    copy.load(attempts.flat())
    assert list(copy.ranges()) == list(attempts.ranges())
    attempts.settle(0, END)
    assert not attempts


def test_a_million_that_come_back_and_are_settled_one_by_one_are_one_range() -> None:
    attempts = Attempts()
    attempts.note(0, 1_000_000, 1)
    for qseq in range(1, 1_000_000, 1000):  # out of order, in the middle
        attempts.settle(qseq, qseq + 1)
    assert len(list(attempts.ranges())) == 1
    for qseq in range(1000):  # in order
        attempts.settle(qseq, qseq + 1)
    assert list(attempts.ranges()) == [(1000, 1_000_000, 1)]
