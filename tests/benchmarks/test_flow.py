"""What a consumer gets of a publisher's messages; what is checked and computed of a run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.flow import LoadFailed, Share, check_confirmed, cpu_figures
from benchmarks.load import Published
from benchmarks.measure import Progress


@given(st.integers(1, 7), st.data(), st.lists(st.integers(0, 60), min_size=1))
def test_shares_part_the_messages_of_a_publisher(
    of: int, data: st.DataObject, counts: list[int]
) -> None:
    counts = sorted(counts)
    whole = Progress()
    for time_ns, count in enumerate(counts):
        whole.note(time_ns, count)
    first = data.draw(st.integers(0, of - 1))
    part = Share(0, first, of).of_progress(whole)
    for time_ns, count in enumerate(counts):
        assert part.count_at(time_ns) == len([n for n in range(count) if n % of == first])
    assert Share(0, first, of).of_count(counts[-1]) == part.count


def test_what_was_not_confirmed_is_an_error() -> None:
    one = Published()
    one.begun.note(1, 5)
    one.confirmed.note(2, 4)
    with pytest.raises(LoadFailed, match="5 published, 4 confirmed"):
        check_confirmed([one])
    one.confirmed.note(3, 5)
    check_confirmed([one])


def test_processor_time_is_given_for_each_message() -> None:
    before, after = {"broker": 1.0, "loop": 0.5}, {"broker": 3.0, "loop": 1.5}
    assert cpu_figures(before, after, 1_000_000) == {"broker_cpu_us": 2.0, "loop_cpu_us": 1.0}
    assert cpu_figures({}, {}, 10) == {}
    assert cpu_figures(before, after, 0) == {}
