"""Timers against a sorted list, and what may go wrong in a call."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlog.server.broker.timers import AT_ONCE, Timers


@given(
    dues=st.lists(st.integers(0, 20), max_size=60),
    cancelled=st.sets(st.integers(0, 59)),
    steps=st.lists(st.integers(0, 7), max_size=8),
)
def test_calls_come_in_order_and_in_time(
    dues: list[int], cancelled: set[int], steps: list[int]
) -> None:
    timers = Timers()
    called: list[int] = []
    made = [timers.at(due, lambda at=at: called.append(at)) for at, due in enumerate(dues)]  # type: ignore[misc]
    for at in cancelled & set(range(len(made))):
        made[at].cancel()
        made[at].cancel()
    now = 0
    expected: list[int] = []
    left = [(due, at) for at, due in enumerate(dues) if at not in cancelled]
    for step in [*steps, 50]:
        now += step
        expected += [at for due, at in sorted(left) if due <= now]
        left = [(due, at) for due, at in left if due > now]
        timers.run(now)
        assert called == expected
        assert timers.due_s <= min((due for due, _ in left), default=math.inf)
        assert timers.due_s > now
    assert timers.due_s == math.inf


def test_what_is_set_in_a_call_comes_with_the_next_run() -> None:
    timers = Timers()
    called: list[float] = []

    def again() -> None:
        called.append(1.0)
        timers.at(1.0, again)

    timers.at(1.0, again)
    assert timers.run(1.0) and called == [1.0]
    assert timers.run(1.0) and called == [1.0, 1.0]


def test_many_that_are_due_at_once_are_called_turn_by_turn() -> None:
    timers = Timers()
    called: list[int] = []
    count = 3 * AT_ONCE + 1
    for number in range(count):
        timers.at(1.0, lambda number=number: called.append(number))  # type: ignore[misc]
    seen = []
    while timers.run(1.0):
        seen.append(len(called))
        assert len(seen) < 10
    assert seen == [AT_ONCE, 2 * AT_ONCE, 3 * AT_ONCE, count] and called == list(range(count))


def test_error_in_a_call_costs_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    timers = Timers()
    called: list[int] = []
    timers.at(1.0, lambda: 1 // 0)  # type: ignore[arg-type]
    timers.at(2.0, lambda: called.append(2))
    assert timers.run(2.0)
    assert called == [2] and "ZeroDivisionError" in caplog.text


def test_cancelled_timers_are_forgotten() -> None:
    timers = Timers()
    kept = timers.at(10.0, lambda: None)
    for _ in range(10_000):
        timers.at(9.0, lambda: None).cancel()
    assert kept.waits and len(timers._heap) < 200
    assert not timers.run(9.5)


def test_nobody_is_woken_for_a_cancelled_timer() -> None:
    timers = Timers()
    early, late = timers.at(1.0, lambda: None), timers.at(2.0, lambda: None)
    assert timers.due_s == 1.0
    early.cancel()
    assert timers.due_s == 2.0
    late.cancel()
    assert timers.due_s == math.inf and not timers.run(5.0)
