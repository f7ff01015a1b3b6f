"""Sets of numbers in stretches, against Python's own sets."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from qlog.server.broker import numbers as numbers_module
from qlog.server.broker.numbers import BLOCK, Numbers

PLACES = st.integers(0, 400)
COUNTS = st.integers(1, 150)


def flat(stretches: list[tuple[int, int]]) -> list[int]:
    return [number for first, count in stretches for number in range(first, first + count)]


def stretch(numbers: set[int], first: int, count_max: int) -> tuple[int, int]:
    count = 0
    while first + count in numbers and count < count_max:
        count += 1
    return first, count


class NumbersMachine(RuleBasedStateMachine):
    """All that can be done, in blocks so small that stretches cross them."""

    def __init__(self) -> None:
        super().__init__()
        numbers_module.BLOCK = 16
        numbers_module._ALL = (1 << 16) - 1
        self.numbers = Numbers()
        self.model: set[int] = set()

    def teardown(self) -> None:
        numbers_module.BLOCK = BLOCK
        numbers_module._ALL = (1 << BLOCK) - 1

    @rule(first=PLACES, count=COUNTS)
    def add(self, first: int, count: int) -> None:
        _, free = stretch(set(range(first, first + count)) - self.model, first, count)
        if free:
            self.numbers.add(first, free)
            self.model.update(range(first, first + free))

    @rule(first=PLACES, count=COUNTS)
    def join(self, first: int, count: int) -> None:
        other = Numbers()
        for number in range(first, first + count, 3):
            if number not in self.model:
                other.add(number, 1)
        self.numbers.join(other)
        self.model.update(flat(list(other)))

    @rule(first=PLACES, count=st.integers(0, 150))
    def discard(self, first: int, count: int) -> None:
        going = self.model & set(range(first, first + count))
        assert self.numbers.discard(first, count) == len(going)
        self.model -= going

    @precondition(lambda self: self.model)
    @rule(count_max=COUNTS)
    def take_lowest(self, count_max: int) -> None:
        first, count = self.numbers.lowest(count_max)
        assert (first, count) == stretch(self.model, min(self.model), count_max)
        self.numbers.discard(first, count)
        self.model.difference_update(range(first, first + count))

    @rule()
    def clear(self) -> None:
        self.numbers.clear()
        self.model.clear()

    @rule(number=PLACES, count_max=COUNTS)
    def look(self, number: int, count_max: int) -> None:
        found = self.numbers.at_or_after(number, count_max)
        above = [known for known in self.model if known >= number]
        if found is None:
            assert not above
        else:
            first, count = found
            assert first == min(above) and 0 < count <= count_max
            assert set(range(first, first + count)) <= self.model

    @rule(first=PLACES, count=COUNTS)
    def look_within(self, first: int, count: int) -> None:
        found = flat(list(self.numbers.within(first, first + count)))
        assert found == sorted(self.model & set(range(first, first + count)))

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        assert self.numbers.count == len(self.model)
        assert flat(list(self.numbers)) == sorted(self.model)
        assert all(
            (number in self.numbers) == (number in self.model) for number in range(0, 500, 7)
        )


TestNumbers = NumbersMachine.TestCase
TestNumbers.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_what_is_gone_takes_no_memory() -> None:
    """One number stays for ever, and millions come and go behind it."""
    numbers = Numbers()
    numbers.add(0, 1)
    for first in range(BLOCK, 400 * BLOCK, 64):
        numbers.add(first, 64)
        if first >= 3 * BLOCK:
            numbers.discard(first - 2 * BLOCK, 64)
    assert len(numbers._blocks) <= 4 and len(numbers._heap) <= 100
    assert numbers.lowest(5) == (0, 1)
    numbers.discard(0, 1)
    first, count = numbers.lowest(10**9)
    assert count == numbers.count == 400 * BLOCK - first
