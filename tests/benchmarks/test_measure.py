"""Rates and latencies out of progress records."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.measure import Progress, Span, latencies, overlapping, quantile_ms, rate


def progress(*records: tuple[int, int]) -> Progress:
    result = Progress()
    for time_ns, count in records:
        result.note(time_ns, count)
    return result


@st.composite
def progresses(draw: st.DrawFn, total: int) -> Progress:
    """Some way from 0 to `total` messages, with times that do not fall."""
    counts = sorted({*draw(st.lists(st.integers(1, total), max_size=8)), total})
    times = sorted(draw(st.lists(st.integers(0, 100), min_size=len(counts), max_size=len(counts))))
    return progress(*zip(times, counts, strict=True))


def time_of(record: Progress, number: int) -> int:
    """When a message was done, looked up on its own."""
    return next(
        time_ns
        for time_ns, count in zip(record.times_ns, record.counts, strict=True)
        if count > number
    )


@given(st.data(), st.integers(1, 30))
def test_latencies_of_ranges_are_those_of_single_messages(data: st.DataObject, total: int) -> None:
    begun, done = data.draw(progresses(total)), data.draw(progresses(total))
    early = data.draw(st.dictionaries(st.integers(0, total - 1), st.integers(0, 100)))
    start, stop = sorted(data.draw(st.tuples(st.integers(0, 100), st.integers(0, 100))))
    found = latencies(begun, done, Span(start, stop), early)
    expected = [
        early.get(number, time_of(done, number)) - time_of(begun, number)
        for number in range(total)
        if start <= time_of(begun, number) < stop
    ]
    assert sorted(latency for latency, count in found for _ in range(count)) == sorted(expected)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=8),
    st.integers(0, 99),
    st.integers(1, 99),
)
def test_who_waits_one_after_the_other_is_seen_while_under_way(
    steps: list[tuple[int, int]], start: int, length: int
) -> None:
    begun, done = Progress(), Progress()
    times, now = [], 0
    for number, (pause, wait) in enumerate(steps, start=1):
        begun.note(now + pause, number)
        done.note(now + pause + wait, number)
        times.append((now + pause, now + pause + wait))
        now += pause + wait
    span = Span(start, start + length)
    found = overlapping(begun, done, span)
    expected = [b - a for a, b in times if b > span.start_ns and a < span.stop_ns]
    assert sorted(latency for latency, count in found for _ in range(count)) == sorted(expected)


def test_latencies_leave_out_what_was_never_done() -> None:
    assert latencies(progress((0, 4)), progress((5, 3)), Span(0, 10)) == [(5, 3)]


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(1, 50)), min_size=1), st.floats(0, 1))
def test_quantile_is_the_least_value_that_enough_messages_do_not_exceed(
    samples: list[tuple[int, int]], fraction: float
) -> None:
    spread_out = sorted(latency for latency, count in samples for _ in range(count))
    index = max(0, math.ceil(fraction * len(spread_out)) - 1)
    assert quantile_ms(samples, fraction) == spread_out[index] / 1e6


def test_quantile_of_nothing_is_not_a_number() -> None:
    assert math.isnan(quantile_ms([], 0.5))


def test_rate_counts_what_was_done_within_the_span() -> None:
    second = 10**9
    records = [
        progress((0, 10), (second, 30), (3 * second, 90)),
        progress((2 * second, 7), (4 * second, 100)),
    ]
    assert rate(records, Span(second, 3 * second)) == (60 + 7) / 2


def test_count_at_a_time() -> None:
    record = progress((10, 1), (20, 5))
    assert [record.count_at(time_ns) for time_ns in (9, 10, 19, 20, 99)] == [0, 1, 1, 5, 5]
