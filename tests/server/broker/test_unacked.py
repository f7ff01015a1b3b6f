"""Delivery tags against the simplest model: a dict from tag to message."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from qlog.server.broker.channels import unacked as unacked_module
from qlog.server.broker.channels.unacked import CHUNK_RUNS, Unacked, UnackedRun
from tests.costs import bytecodes

BACKLOG: Any = object()
TAGS = st.integers(min_value=0, max_value=60)


class Holder:
    """Whose timeout counts."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s


QUEUE: Any = Holder(0)


def delivered(
    tag: int, count: int, qseq: int, *, taker: Any = None, at_s: float = 0.0
) -> UnackedRun:
    """A delivery; each message is one octet larger than the one before."""
    sizes = range(qseq, qseq + count)
    return UnackedRun(tag, count, QUEUE, BACKLOG, qseq, sizes, 0, taker, at_s)


def flat(runs: list[UnackedRun]) -> list[tuple[int, int]]:
    """(tag, qseq) of each message."""
    for run in runs:
        assert run.size == sum(range(run.qseq, run.qseq + run.count))
    return [(run.tag + at, run.qseq + at) for run in runs for at in range(run.count)]


class UnackedMachine(RuleBasedStateMachine):
    """Deliveries and settlements in any order, in chunks so small that they are cut and go."""

    def __init__(self) -> None:
        super().__init__()
        unacked_module.CHUNK_RUNS = 4
        self.unacked = Unacked()
        self.model: dict[int, int] = {}
        self.next_tag = 1
        self.taken: list[list[UnackedRun]] = []

    def teardown(self) -> None:
        unacked_module.CHUNK_RUNS = CHUNK_RUNS

    @rule(count=st.integers(min_value=1, max_value=7), qseq=st.integers(0, 1000))
    def deliver(self, count: int, qseq: int) -> None:
        self.unacked.add(delivered(self.next_tag, count, qseq))
        for at in range(count):
            self.model[self.next_tag + at] = qseq + at
        self.next_tag += count

    @rule(first=TAGS, count=st.integers(min_value=1, max_value=12))
    def take_range(self, first: int, count: int) -> None:
        expected = []
        tag = first
        while tag < first + count and tag in self.model:
            expected.append((tag, self.model.pop(tag)))
            tag += 1
        runs, stopped_at = self.unacked.take_range(first, first + count - 1)
        assert flat(runs) == expected and stopped_at == tag
        self.taken.append(runs)

    @rule(tag=TAGS)
    def take_through(self, tag: int) -> None:
        runs = self.unacked.take_through(tag)
        assert flat(runs) == [(at, self.model.pop(at)) for at in sorted(self.model) if at <= tag]
        self.taken.append(runs)

    @rule(tag=TAGS, runs_max=st.integers(1, 5))
    def take_through_bit_by_bit(self, tag: int, runs_max: int) -> None:
        runs: list[UnackedRun] = []
        while some := self.unacked.take_through(tag, runs_max):
            assert len(some) <= runs_max + 2 * unacked_module.CHUNK_RUNS
            runs += some
        assert flat(runs) == [(at, self.model.pop(at)) for at in sorted(self.model) if at <= tag]
        self.taken.append(runs)

    @rule()
    def take_all(self) -> None:
        runs = self.unacked.take_through(self.next_tag)
        assert flat(runs) == sorted(self.model.items())
        self.model.clear()
        self.taken.append(runs)

    @rule()
    def give_all_back(self) -> None:
        runs = [run for taken in self.taken for run in taken]
        self.taken.clear()
        self.model.update(flat(runs))
        for run in runs:
            self.unacked.give_back(run)

    @rule()
    def forget_taken(self) -> None:
        self.taken.clear()

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        assert flat(list(self.unacked)) == sorted(self.model.items())
        assert bool(self.unacked) == bool(self.model)
        for tag in range(self.next_tag + 1):
            assert (tag in self.unacked) == (tag in self.model)


TestUnacked = UnackedMachine.TestCase
TestUnacked.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_cut_runs_keep_queue_consumer_and_time() -> None:
    unacked = Unacked()
    unacked.add(delivered(1, 10, 100, at_s=7.0))
    taken, _ = unacked.take_range(4, 6)
    for run in [*taken, *unacked]:
        assert run.queue is QUEUE and run.backlog is BACKLOG
        assert run.taker is None and run.delivered_at_s == 7.0
    assert [(run.tag, run.count, run.qseq) for run in unacked] == [(1, 3, 100), (7, 4, 106)]


# --- what an ack costs


def some_of(order: str, outstanding: int) -> list[int]:
    """200 tags of `outstanding`, as they come in an order."""
    tags = list(range(1, outstanding + 1))
    if order == "reverse":
        tags.reverse()
    elif order == "random":
        random.Random(1).shuffle(tags)
    elif order == "every second":
        tags = tags[1::2]
    return tags[-200:]


@pytest.mark.parametrize("order", ["in order", "reverse", "random", "every second"])
@pytest.mark.parametrize("together", [1, 250])
def test_an_ack_costs_the_same_with_many_outstanding(order: str, together: int) -> None:
    costs = []
    for outstanding in (1_000, 100_000):
        unacked = Unacked()
        for tag in range(1, outstanding + 1, together):
            unacked.add(delivered(tag, together, tag))
        acked = set(some_of(order, outstanding))
        if order == "every second":
            for tag in range(2, outstanding + 1, 2):
                if tag not in acked:
                    unacked.take_range(tag, tag)
        tags = some_of(order, outstanding)

        def ack_all(tags: list[int] = tags, unacked: Unacked = unacked) -> None:
            for tag in tags:
                assert unacked.take_range(tag, tag)[1] == tag + 1

        costs.append(bytecodes(ack_all))
        # Nothing longer than a chunk, or the list of chunks, was moved.
        assert all(len(chunk.runs) <= 2 * CHUNK_RUNS for chunk in unacked._chunks)
        assert len(unacked._chunks) <= max(outstanding // (CHUNK_RUNS // 2), 2)
    assert costs[1] <= 1.2 * costs[0]
    assert costs[1] / 200 < 600


# --- what is overdue


def overdue(unacked: Unacked, now_s: float) -> list[int]:
    return [run.tag for runs in unacked.overdue(now_s) for run in runs]


def test_overdue_looks_at_the_oldest_of_a_chunk_only() -> None:
    unacked = Unacked()
    taker: Any = Holder(10.0)
    for tag in range(1, 10 * CHUNK_RUNS + 1):
        unacked.add(delivered(tag, 1, tag, taker=taker, at_s=float(tag)))
    assert overdue(unacked, 13.5) == [1, 2, 3]
    looking = bytecodes(lambda: overdue(unacked, 11.0))
    assert looking < 100 * 10


def test_deliveries_may_come_and_go_while_overdue_ones_are_looked_for() -> None:
    """Between two pieces chunks go, are halved, and grow; each delivery is found once."""
    unacked = Unacked()
    taker: Any = Holder(1.0)
    count = 5 * CHUNK_RUNS
    for tag in range(1, count + 1):
        unacked.add(delivered(tag, 1, tag, taker=taker))
    pieces = unacked.overdue(10.0)
    found = [run.tag for run in next(pieces)]
    assert found == list(range(1, CHUNK_RUNS + 1))
    unacked.take_through(CHUNK_RUNS)  # the chunk that was looked at
    kept, _ = unacked.take_range(2 * CHUNK_RUNS, 3 * CHUNK_RUNS)
    unacked.give_back(kept.pop())
    gone = {run.tag for run in kept}
    for tag in range(count + 1, count + CHUNK_RUNS + 1):
        unacked.add(delivered(tag, 1, tag, taker=taker))
    found += [run.tag for runs in pieces for run in runs]
    assert found == [tag for tag in range(1, count + CHUNK_RUNS + 1) if tag not in gone]


def test_a_delivery_is_listed_once_though_others_come_meanwhile() -> None:
    unacked = Unacked()
    for tag in range(1, 4):
        unacked.add(delivered(tag, 1, tag))
    found: list[int] = []
    for runs in unacked.of_queue(QUEUE):
        found += [run.tag for run in runs]
        assert len(found) < 100
        unacked.add(delivered(100 + len(found), 1, 100))
    assert found == [1, 2, 3]


def test_a_delivery_that_may_stay_longer_keeps_its_grace_until_it_is_taken() -> None:
    unacked = Unacked()
    taker: Any = Holder(10.0)
    unacked.add(delivered(1, 5, 1, taker=taker))
    unacked.extend(3, 5.0)
    unacked.extend(3, 2.0)
    assert flat(list(unacked)) == [(tag, tag) for tag in range(1, 6)]
    assert overdue(unacked, 11.0) == [1, 4]  # runs of two, one and two messages
    (run,), _ = unacked.take_range(3, 3)
    unacked.give_back(run)
    assert overdue(unacked, 16.9) == [1, 4]
    assert overdue(unacked, 17.1) == [1, 3, 4]


def test_mixed_timeouts_are_each_kept() -> None:
    unacked = Unacked()
    never, soon, late = (Holder(timeout_s) for timeout_s in (0.0, 5.0, 100.0))
    holders: list[Any] = [never, late, soon, late, soon, never]
    for tag, taker in enumerate(holders, 1):
        unacked.add(delivered(tag, 1, tag, taker=taker, at_s=float(tag)))
    assert overdue(unacked, 8.0) == []
    assert overdue(unacked, 8.1) == [3]
    assert overdue(unacked, 60.0) == [3, 5]
    assert overdue(unacked, 103.5) == [2, 3, 5]
    soon.timeout_s = 200.0  # a timeout that changes counts for what is out
    assert overdue(unacked, 103.5) == [2]
