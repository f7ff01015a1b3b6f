"""Single active consumer: the choice against plain lists, and what a peer sees beyond that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qlog.server.amqp import spec
from qlog.server.broker.queues.single_active import SingleActive
from tests.server.broker.support import Bench, Peer, make

PLACES = st.integers(0, 20)


@dataclass(eq=False)
class Stub:
    """A taker, as far as the choice looks at it."""

    priority: int
    unacked: int = 0
    room: int = 5

    def credit(self) -> int:
        return self.room


class ChoiceMachine(RuleBasedStateMachine):
    """The model: `active`, and a list of the others in the order in which they became waiting."""

    @initialize(preemptive=st.booleans())
    def start(self, preemptive: bool) -> None:
        self.preemptive = preemptive
        self.choice = SingleActive(preemptive=preemptive)
        self.active: Stub | None = None
        self.waiting: list[Stub] = []
        self.joined: list[Stub] = []

    def heir(self) -> Stub | None:
        """Who comes next: the first of the highest priority."""
        return max(self.waiting, key=lambda stub: stub.priority, default=None)

    def pick(self, at: int) -> Stub:
        return self.joined[at % len(self.joined)]

    @rule(priority=st.integers(-2, 2))
    def join(self, priority: int) -> None:
        stub = Stub(priority)
        self.joined.append(stub)
        self.choice.add(cast(Any, stub))
        if self.active is None:
            self.active = stub
        else:
            self.waiting.append(stub)

    @precondition(lambda self: self.joined)
    @rule(at=PLACES, of_active=st.booleans())
    def leave(self, at: int, of_active: bool) -> None:
        stub = self.active if of_active and self.active else self.pick(at)
        self.joined.remove(stub)
        self.choice.remove(cast(Any, stub))
        if stub is not self.active:
            self.waiting.remove(stub)
            return
        self.active = self.heir()
        if self.active is not None:
            self.waiting.remove(self.active)

    @precondition(lambda self: self.joined)
    @rule(at=PLACES, unacked=st.integers(0, 1), room=st.integers(-1, 3))
    def settle(self, at: int, unacked: int, room: int) -> None:
        stub = self.pick(at)
        stub.unacked, stub.room = unacked, room

    @rule()
    def deliver(self) -> None:
        turn = self.choice.next(1)
        active, heir = self.active, self.heir()
        quiesces = False
        if self.preemptive and active and heir and heir.priority > active.priority:
            quiesces = active.unacked > 0
            if not quiesces:
                self.waiting.remove(heir)
                self.waiting.insert(0, active)
                self.active = active = heir
        if active is None or quiesces or active.room <= 0:
            assert turn is None
        else:
            assert turn is not None and turn == (cast(Any, active), active.room)

    @invariant()
    def all_are_there(self) -> None:
        if hasattr(self, "choice"):
            assert list(self.choice.takers) == cast(Any, self.joined)
            assert len(self.choice) == len(self.joined)


TestChoice = ChoiceMachine.TestCase
TestChoice.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def single_active(peer: Peer, kind: str) -> None:
    peer.declare("q", arguments={"x-single-active-consumer": True, "x-queue-type": kind})


def joined(bench: Bench, tag: str, priority: int = 0) -> Peer:
    """A peer that consumes."""
    peer = Peer(bench)
    arguments = {"x-priority": priority}
    peer.send(1, make(spec.BasicConsume, queue="q", consumer_tag=tag, arguments=arguments))
    assert peer.hear() == [spec.BasicConsumeOk(tag)]
    return peer


def bodies(peer: Peer) -> list[bytes]:
    return [body for *_, body in peer.deliveries()]


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_backlog_goes_to_the_next_in_the_same_tick(bench: Bench, peer: Peer, kind: str) -> None:
    single_active(peer, kind)
    first, second = joined(bench, "a"), joined(bench, "b")
    first.sink.full = True
    peer.publish(1, "q", *[b"x"] * 5)
    bench.disk()
    assert bodies(first) == bodies(second) == []
    first.client.lost()
    bench.end_tick()
    assert len(bodies(second)) == 5


def test_what_a_taken_over_one_gives_back_goes_to_the_new_one(bench: Bench, peer: Peer) -> None:
    """RabbitMQ 4.0.5 delivers to nobody then, until something else happens to the queue."""
    single_active(peer, "quorum")
    low = joined(bench, "low")
    peer.publish(1, "q", b"0", b"1")
    bench.disk()
    assert bodies(low) == [b"0", b"1"]
    high = joined(bench, "high", 5)
    low.send(1, spec.BasicNack(1, False, True))
    assert bodies(low) == bodies(high) == []
    low.send(1, spec.BasicNack(2, False, True))
    assert (bodies(low), bodies(high)) == ([], [b"0", b"1"])


def test_active_one_goes_on_at_once_when_the_higher_leaves(bench: Bench, peer: Peer) -> None:
    """RabbitMQ 4.0.5 waits until the active one has settled all that it has."""
    single_active(peer, "quorum")
    low = joined(bench, "low")
    peer.publish(1, "q", b"0")
    bench.disk()
    assert bodies(low) == [b"0"]
    high = joined(bench, "high", 5)
    peer.publish(1, "q", b"1")
    bench.disk()
    assert bodies(low) == bodies(high) == []
    high.ask(1, make(spec.BasicCancel, consumer_tag="high"), spec.BasicCancelOk)
    assert bodies(low) == [b"1"]


def test_no_ack_consumer_is_taken_over_at_once(bench: Bench, peer: Peer) -> None:
    single_active(peer, "quorum")
    low = Peer(bench)
    low.send(1, make(spec.BasicConsume, queue="q", consumer_tag="low", no_ack=True))
    peer.publish(1, "q", b"0")
    bench.disk()
    assert low.take()[-1].body == b"0"
    high = joined(bench, "high", 5)
    peer.publish(1, "q", b"1")
    bench.disk()
    assert (bodies(low), bodies(high)) == ([], [b"1"])


def test_all_that_were_taken_over_from_come_back_in_turn() -> None:
    choice = SingleActive(preemptive=True)
    stubs = {name: Stub(priority) for name, priority in {"a": 0, "b": 0, "c": 1, "d": 2}.items()}

    def active() -> str:
        turn = choice.next(1)
        assert turn is not None
        return next(name for name, stub in stubs.items() if stub is cast(Any, turn[0]))

    order = []
    for stub in stubs.values():
        choice.add(cast(Any, stub))
        order.append(active())
    for name in ("d", "c", "a"):
        choice.remove(cast(Any, stubs[name]))
        order.append(active())
    assert "".join(order) == "aacd" + "cab"


def test_auto_delete_goes_with_the_last_one(bench: Bench, peer: Peer) -> None:
    peer.declare("q", auto_delete=True, arguments={"x-single-active-consumer": True})
    for number, tag in enumerate("ab", start=1):
        peer.send(number, make(spec.BasicConsume, queue="q", consumer_tag=tag))
    peer.send(1, make(spec.BasicCancel, consumer_tag="a"))
    queue = bench.broker.vhosts["/"].queues["q"]
    assert [taker.tag for taker in queue.takers] == ["b"]
    peer.send(2, make(spec.BasicCancel, consumer_tag="b"))
    assert "q" not in bench.broker.vhosts["/"].queues
