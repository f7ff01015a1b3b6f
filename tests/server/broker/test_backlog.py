"""The ready set of a lane against a plain list, across restarts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qlog.server.amqp.envelope import Envelope
from qlog.server.broker.queues.backlog import Backlog, Taken
from qlog.storage.store import Store
from tests.storage.support import SMALL, FaultyDisk, ManualWorker, abandon, ignore

COUNTS = st.integers(1, 30)
PLACES = st.integers(0, 200)


class Shelf:
    """A store whose threads run when told to, in a directory that survives restarts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.now_s = 0.0
        self.open()

    def open(self) -> None:
        self.workers: list[ManualWorker] = []

        def new_worker(*_: object) -> ManualWorker:
            self.workers.append(ManualWorker())
            return self.workers[-1]

        self.store: Store[Envelope] = Store.open(
            self.directory,
            decode=Envelope.unpack,
            notify=ignore,
            settings=SMALL,
            disk=FaultyDisk(),
            new_worker=new_worker,
        )

    def write(self) -> None:
        """All that waits for the disk is written."""
        for _ in range(2):  # the first one starts the time of what is due later
            self.now_s += 10
            self.store.tick(self.now_s)
            self.store.commit()
            while sum(worker.run_one() for worker in self.workers):
                self.store.advance()

    def restart(self, killed: bool) -> None:
        if killed:
            self.write()
            abandon(self.store)  # type: ignore[arg-type]
        else:
            self.store.close()
        self.open()


# What ends a state is rare: else there is hardly one that is worth looking at.
STEPS_BETWEEN_ENDS = 10


class BacklogMachine(RuleBasedStateMachine):
    """Messages are numbers, equal to their qseqs; `ready` is a sorted list of them."""

    shelf: Shelf  # one store for all examples, each with a lane of its own: it is slow to make

    @initialize()
    def start(self) -> None:
        self.ready: list[int] = []
        self.out: dict[int, int] = {}  # number -> size
        self.leaving: dict[int, int] = {}  # withdrawn, and not settled: number -> size
        self.delivered: set[int] = set()
        self.next_number = 0
        self.steps = 0
        self.lane_id = self.shelf.store.new_lane_id()
        self.backlog = Backlog(self.shelf.store.lane(self.lane_id))
        for _ in range(3):
            self.append(12, True)
        while len(self.out) < 24:
            self.take(24 - len(self.out), 1 << 20)

    def teardown(self) -> None:
        if hasattr(self, "backlog"):
            self.shelf.store.drop(self.backlog.lane)

    # --- helpers

    def size(self, number: int) -> int:
        return 10 + number % 7

    def check(self, taken: Taken, count_max: int, ready: list[int]) -> list[int]:
        """What was taken is what comes first in `ready`; the numbers."""
        numbers = [int(body) for body in taken.bodies]
        assert 0 < len(numbers) <= count_max
        assert numbers == ready[: len(numbers)]
        first = taken.first_qseq
        assert numbers == list(range(first, first + len(numbers)))
        assert list(taken.sizes) == list(map(self.size, numbers))
        assert {number in self.delivered for number in numbers} == {taken.redelivered}
        assert len(taken.envelopes) == len(numbers)
        return numbers

    def some_out(self, at: int, count_max: int) -> list[int]:
        """Consecutive numbers that are out."""
        out = sorted(self.out)
        if not out:
            return []
        first = out[at % len(out)]
        numbers = [first]
        while numbers[-1] + 1 in self.out and len(numbers) < count_max:
            numbers.append(numbers[-1] + 1)
        return numbers

    # --- what happens to messages

    @rule(count=COUNTS, persistent=st.booleans())
    def append(self, count: int, persistent: bool) -> None:
        numbers = range(self.next_number, self.next_number + count)
        bodies = [b"%0*d" % (self.size(number), number) for number in numbers]
        envelopes = [Envelope.pack("", "q", b"\0\0", len(body)) for body in bodies]
        # All are kept across restarts: what is transient is another lane's business.
        self.shelf.store.append([self.backlog.lane], envelopes, bodies, persistent=True, now_ms=1)
        if persistent:
            self.shelf.store.commit()
        self.ready += numbers
        self.next_number += count

    @precondition(lambda self: self.ready)
    @rule(count_max=COUNTS, bytes_max=st.sampled_from([1, 200, 1 << 20]))
    def take(self, count_max: int, bytes_max: int) -> None:
        numbers = self.check(self.backlog.take(count_max, bytes_max), count_max, self.ready)
        del self.ready[: len(numbers)]
        self.delivered.update(numbers)
        self.out.update((number, self.size(number)) for number in numbers)

    @rule(at=PLACES, count_max=COUNTS)
    def give_back(self, at: int, count_max: int) -> None:
        if numbers := self.some_out(at, count_max):
            size = sum(self.out.pop(number) for number in numbers)
            self.backlog.give_back(numbers[0], len(numbers), size)
            self.ready = sorted(self.ready + numbers)

    @rule(at=PLACES, count_max=COUNTS)
    def settle(self, at: int, count_max: int) -> None:
        if numbers := self.some_out(at, count_max):
            size = sum(self.out.pop(number) for number in numbers)
            self.backlog.settle(numbers[0], len(numbers), size)

    @rule(count_max=st.integers(1, 8))
    def withdraw(self, count_max: int) -> None:
        self.withdrawn(self.backlog.withdraw(count_max), self.ready[:count_max])

    @rule(at=PLACES, before=st.integers(0, 3), count=st.integers(1, 8))
    def withdraw_at(self, at: int, before: int, count: int) -> None:
        """A few, around one that is ready."""
        qseq = max(self.ready[at % len(self.ready)] - before, 0) if self.ready else at
        going = [number for number in self.ready if qseq <= number < qseq + count]
        self.withdrawn(self.backlog.withdraw_at(qseq, count), going)

    def withdrawn(self, pieces: list[tuple[int, int, int]], expected: list[int]) -> None:
        numbers: list[int] = []
        for first, count, size in pieces:
            numbers += range(first, first + count)
            assert size == sum(map(self.size, range(first, first + count)))
        assert numbers == expected
        self.ready = [number for number in self.ready if number not in numbers]
        self.leaving.update((number, self.size(number)) for number in numbers)

    @precondition(lambda self: self.leaving)
    @rule(at=PLACES)
    def hand_on(self, at: int) -> None:
        """Read one that was withdrawn, and settle it."""
        number = sorted(self.leaving)[at % len(self.leaving)]
        taken = self.backlog.read_out(number, 1)
        assert [int(body) for body in taken.bodies] == [number]
        self.backlog.settle(number, 1, self.leaving.pop(number))

    @rule(count_max=st.integers(1, 8))
    def drop(self, count_max: int) -> None:
        dropped = min(count_max, len(self.ready))
        assert self.backlog.drop(count_max) == dropped
        del self.ready[:dropped]

    @rule(at=PLACES, before=st.integers(0, 3), count=st.integers(1, 8))
    def remove(self, at: int, before: int, count: int) -> None:
        """A few, around one that is ready."""
        qseq = max(self.ready[at % len(self.ready)] - before, 0) if self.ready else at
        self.remove_all(qseq, count)

    @precondition(lambda self: self.steps > STEPS_BETWEEN_ENDS)
    @rule(qseq=PLACES, count=COUNTS)
    def remove_all(self, qseq: int, count: int) -> None:
        going = [number for number in self.ready if qseq <= number < qseq + count]
        assert self.backlog.remove(qseq, count) == len(going)
        self.ready = [number for number in self.ready if number not in going]

    @rule(qseq=PLACES, count_max=COUNTS, bytes_max=st.sampled_from([1, 200, 1 << 20]))
    def peek(self, qseq: int, count_max: int, bytes_max: int) -> None:
        behind = [number for number in self.ready if number >= qseq]
        seen = self.backlog.peek(qseq, count_max, bytes_max)
        if seen is None:
            assert not behind
        else:
            self.check(seen, count_max, behind)

    @precondition(lambda self: self.steps > STEPS_BETWEEN_ENDS)
    @rule(stretches=st.integers(0, 3))
    def purge(self, stretches: int) -> None:
        self.steps = 0
        assert self.backlog.purge() == len(self.ready)
        self.ready.clear()
        self.backlog.sweep(stretches)  # some of it; the rest with the next restart

    # --- the store

    @rule()
    def write(self) -> None:
        self.shelf.write()

    @rule()
    def checkpoint(self) -> None:
        assert self.shelf.store.checkpoint()

    @precondition(lambda self: self.steps > STEPS_BETWEEN_ENDS)
    @rule(killed=st.booleans())
    def restart(self, killed: bool) -> None:
        self.steps = 0
        while not self.backlog.sweep(1):
            pass
        self.shelf.restart(killed)
        self.ready = sorted([*self.ready, *self.out, *self.leaving])
        self.out.clear()
        self.leaving.clear()
        self.delivered.update(range(max(self.delivered, default=-1) + 1))  # a high-water mark
        self.backlog = Backlog(self.shelf.store.lane(self.lane_id))

    # --- what must hold

    @invariant()
    def counts_agree(self) -> None:
        if hasattr(self, "backlog"):
            self.steps += 1
            assert self.backlog.ready == len(self.ready)
            out = [*self.out.values(), *self.leaving.values()]
            assert self.backlog.out == len(out)
            assert self.backlog.out_bytes == sum(out)
            assert self.backlog.ready_bytes == sum(map(self.size, self.ready))


TestBacklog = BacklogMachine.TestCase
TestBacklog.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


@pytest.fixture(scope="module", autouse=True)
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The store of all examples."""
    BacklogMachine.shelf = Shelf(tmp_path_factory.mktemp("shelf") / "data")
    yield
    BacklogMachine.shelf.store.close()


def test_closed_backlog_takes_what_was_out_without_a_word() -> None:
    store = BacklogMachine.shelf.store
    lane = store.lane(store.new_lane_id())
    bodies = [b"a", b"b", b"c"]
    envelopes = [Envelope.pack("", "q", b"\0\0", 1)] * 3
    store.append([lane], envelopes, bodies, persistent=True, now_ms=1)
    backlog = Backlog(lane)
    backlog.take(2)
    store.drop(lane)
    backlog.close()
    assert (backlog.ready, backlog.out, backlog.out_bytes) == (0, 0, 0)
    backlog.give_back(0, 1, 1)
    backlog.settle(1, 1, 1)
    assert (backlog.ready, backlog.out, backlog.out_bytes) == (0, 0, 0)
