"""Delivery tags against the simplest model: a dict from tag to message."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from qlog.server.broker.channels.unacked import Unacked, UnackedRun

QUEUE: Any = object()
TAGS = st.integers(min_value=0, max_value=60)


def flat(runs: list[UnackedRun]) -> list[tuple[int, int]]:
    """(tag, qseq) of each message."""
    return [(run.tag + at, run.qseq + at) for run in runs for at in range(run.count)]


class UnackedMachine(RuleBasedStateMachine):
    """Deliveries and settlements in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.unacked = Unacked()
        self.model: dict[int, int] = {}
        self.next_tag = 1
        self.taken: list[list[UnackedRun]] = []

    @rule(count=st.integers(min_value=1, max_value=7), qseq=st.integers(0, 1000))
    def deliver(self, count: int, qseq: int) -> None:
        self.unacked.add(UnackedRun(self.next_tag, count, QUEUE, qseq, None, 0.0))
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

    @rule()
    def take_all(self) -> None:
        runs = self.unacked.take_all()
        assert flat(runs) == sorted(self.model.items())
        self.model.clear()
        self.taken.append(runs)

    @rule()
    def give_all_back(self) -> None:
        runs = [run for taken in self.taken for run in taken]
        self.taken.clear()
        self.unacked.give_back(runs)
        self.model.update(flat(runs))

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
TestUnacked.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_cut_runs_keep_queue_consumer_and_time() -> None:
    unacked = Unacked()
    unacked.add(UnackedRun(1, 10, QUEUE, 100, None, 7.0))
    taken, _ = unacked.take_range(4, 6)
    for run in [*taken, *unacked]:
        assert run.queue is QUEUE and run.consumer is None and run.delivered_at_s == 7.0
    assert [(run.tag, run.count, run.qseq) for run in unacked] == [(1, 3, 100), (7, 4, 106)]
