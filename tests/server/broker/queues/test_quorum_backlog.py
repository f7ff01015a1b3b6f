"""The ready set of a quorum queue against plain lists."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qlog.server.amqp.envelope import Envelope
from qlog.server.broker.numbers import Numbers
from qlog.server.broker.queues.arrivals import Arrivals
from qlog.server.broker.queues.quorum import QuorumBacklog, in_order
from qlog.server.broker.queues.returns import note_return
from tests.server.broker.test_backlog import Shelf

COUNTS = st.integers(1, 12)
FEW = st.integers(1, 3)
BODY = b"12345678"


class Progress:
    """Who waits for the log."""

    def __init__(self) -> None:
        self.waiting: list[Arrivals] = []

    def await_confirms(self, confirms: Arrivals) -> None:
        self.waiting.append(confirms)


class QuorumBacklogMachine(RuleBasedStateMachine):
    """Messages are numbers, equal to their qseqs.

    `front` came back, `passed` was passed by the cursor, `rest` is the other ready ones, in which
    `behind` are those that were put behind. All below `durable` are on the disk.
    """

    shelf: Shelf  # one store for all examples, each with a lane of its own: it is slow to make

    @initialize()
    def start(self) -> None:
        store = self.shelf.store
        self.front: list[int] = []
        self.passed: list[int] = []
        self.rest: list[int] = []
        self.behind: set[int] = set()
        self.out: list[int] = []
        self.withdrawn = 0
        self.counts: dict[int, int] = {}
        self.durable = self.end = 0
        self.progress = Progress()
        self.woken = 0
        lane = store.lane(store.new_lane_id())
        self.arrivals = Arrivals(lane, store, self.progress, self.wake)
        self.backlog = QuorumBacklog(lane, self.arrivals)
        self.append(20)
        self.write()
        self.append(5)

    def wake(self) -> None:
        self.woken += 1

    def teardown(self) -> None:
        if hasattr(self, "backlog"):
            self.shelf.store.drop(self.backlog.lane)

    def order(self) -> list[int]:
        """Those that may be taken, in their order."""
        numbers = [*self.front, *self.passed, *self.rest]
        return [number for number in numbers if number < self.durable]

    def leave(self, numbers: list[int]) -> None:
        for line in (self.front, self.passed, self.rest):
            line[:] = [number for number in line if number not in numbers]
        self.behind.difference_update(numbers)

    @rule(count=COUNTS)
    def append(self, count: int) -> None:
        envelope = Envelope.pack("", "q", b"\0\0", len(BODY))
        bodies = [BODY] * count
        lanes = [self.backlog.lane]
        self.shelf.store.append(lanes, [envelope] * count, bodies, persistent=True, now_ms=1)
        self.rest += range(self.end, self.end + count)
        self.end += count
        assert self.backlog.bound == self.durable
        assert self.progress.waiting

    @rule()
    def write(self) -> None:
        waiting, self.progress.waiting = self.progress.waiting, []
        woken = self.woken
        self.shelf.write()
        for arrivals in waiting:
            assert arrivals.confirm_through(self.shelf.store.durable_lsn)
        assert (self.woken > woken) is bool(waiting)
        self.durable = self.end

    @precondition(lambda self: self.order())
    @rule(count_max=COUNTS)
    def take(self, count_max: int) -> None:
        order = self.order()
        assert self.backlog.cold in (True, False)
        taken = self.backlog.take(count_max)
        numbers = list(range(taken.first_qseq, taken.first_qseq + len(taken.bodies)))
        assert 0 < len(numbers) <= count_max
        assert numbers == order[: len(numbers)]
        told = [envelope.headers().get("x-delivery-count", 0) for envelope in taken.envelopes]
        assert told == [self.counts.get(number, 0) for number in numbers]
        self.leave(numbers)
        self.out += numbers

    def some_out(self, data: st.DataObject) -> Numbers:
        chosen = data.draw(st.lists(st.sampled_from(self.out), min_size=1, unique=True))
        numbers = Numbers()
        for number in sorted(chosen):
            numbers.add(number, 1)
            self.out.remove(number)
            self.counts[number] = self.counts.get(number, 0) + 1
        for first, count in numbers:
            assert not list(note_return(self.backlog.lane, first, count, None))
        return numbers

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        numbers = self.some_out(data)
        self.backlog.give_all_back(numbers, numbers.count * len(BODY))
        for first, count in numbers:
            self.front += range(first, first + count)

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def put_behind(self, data: st.DataObject) -> None:
        numbers = self.some_out(data)
        self.backlog.put_behind(numbers, numbers.count * len(BODY), in_order(numbers))
        for first, count in numbers:
            self.rest += range(first, first + count)
            self.behind.update(range(first, first + count))

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.out))
        self.out.remove(number)
        self.backlog.settle(number, 1, len(BODY))

    @rule(data=st.data(), count=FEW)
    def withdraw(self, data: st.DataObject, count: int) -> None:
        """As what expires is: the cursor passes all before it."""
        qseq = data.draw(st.integers(0, self.end))
        wanted = range(qseq, qseq + count)
        here = [number for number in (*self.front, *self.passed, *self.rest) if number in wanted]
        gone = self.backlog.withdraw_at(qseq, count)
        assert sum(length for _, length, _ in gone) == len(here)
        for number in [*self.rest]:
            if number < qseq + count and number not in self.behind:
                self.rest.remove(number)
                self.passed.append(number)
        self.leave(here)
        for first, length, size in gone:
            self.backlog.settle(first, length, size)

    @rule(count=FEW)
    def drop(self, count: int) -> None:
        came_back = sorted([*self.front, *self.passed, *self.behind])
        others = [number for number in self.rest if number not in self.behind]
        numbers = [*came_back, *others][:count]
        assert self.backlog.drop(count) == len(numbers)
        self.leave(numbers)

    @rule(data=st.data(), count=FEW)
    def remove(self, data: st.DataObject, count: int) -> None:
        qseq = data.draw(st.integers(0, self.end))
        wanted = range(qseq, qseq + count)
        here = [number for number in (*self.front, *self.passed, *self.rest) if number in wanted]
        assert self.backlog.remove(qseq, count) == len(here)
        self.leave(here)

    @precondition(lambda self: len(self.rest) > 30)
    @rule()
    def purge(self) -> None:
        everything = [*self.front, *self.passed, *self.rest]
        assert self.backlog.purge() == len(everything)
        self.leave(everything)
        while not self.backlog.sweep(3):
            pass

    @invariant()
    def counts_are_right(self) -> None:
        if hasattr(self, "backlog"):
            waiting = len(self.front) + len(self.passed) + len(self.rest)
            assert (self.backlog.ready, self.backlog.out) == (waiting, len(self.out))
            assert self.backlog.takeable == len(self.order())


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    shelf = Shelf(Path(tmp_path_factory.mktemp("quorum")) / "data")
    yield shelf
    shelf.store.close()


def test_it_does_what_lists_do(shelf: Shelf) -> None:
    QuorumBacklogMachine.shelf = shelf
    case = QuorumBacklogMachine.TestCase
    case.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
    case("runTest").runTest()
