"""Priority queues against plain lists, across restarts and kills, and their definitions."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgpack
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qlog.server.amqp import spec
from qlog.server.amqp.properties import Properties
from qlog.server.broker.definitions import lane_ids_of
from qlog.server.broker.queues.classic import ClassicQueue
from tests.server.broker.support import Bench, Peer, make, message

PRIORITIES = st.sampled_from([None, 0, 1, 1, 2, 3, 4, 9, 200, 255])
PLACES = st.integers(0, 50)


class One(NamedTuple):
    """A message; messages sort in the order in which they leave."""

    downwards: int  # its level, negative
    number: int
    persistent: bool


def sent(queue: str, number: int, priority: int | None, persistent: bool) -> bytes:
    """A publish whose body is its number."""
    properties = Properties(delivery_mode=2 if persistent else 1, priority=priority)
    return message(1, queue, b"%d" % number, properties=properties)


class PriorityMachine(RuleBasedStateMachine):
    """One durable queue, and one client with a consumer at times."""

    @initialize(maximum=st.sampled_from([0, 1, 3, 10, 255]))
    def start(self, maximum: int) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.bench = Bench(Path(self.directory.name) / "data")
        self.maximum = maximum
        self.published = 0
        self.ready: list[One] = []
        self.delivered: set[One] = set()
        self.levels = {0}
        self.connect()
        self.peer.declare("q", arguments={"x-max-priority": maximum})

    def teardown(self) -> None:
        if hasattr(self, "bench"):
            self.bench.close()
            self.directory.cleanup()

    def connect(self) -> None:
        self.peer = Peer(self.bench)
        self.held: dict[int, One] = {}
        self.consumes = False
        self.credit = 0  # of the consumer

    def level(self, priority: int | None) -> int:
        return min(priority or 0, max(self.maximum, 1))

    def take_first(self) -> tuple[One, bool]:
        one = self.ready.pop(0)
        again = one in self.delivered
        self.delivered.add(one)
        return one, again

    def listen(self) -> None:
        """What was delivered is what comes first, as far as the consumer's credit goes."""
        expected = []
        for _ in range(min(self.credit, len(self.ready))):
            expected.append(self.take_first())
        self.credit -= len(expected)
        got = self.peer.deliveries()
        assert [(int(body), again) for _, _, again, body in got] == [
            (one.number, again) for one, again in expected
        ]
        for (_, tag, _, _), (one, _) in zip(got, expected, strict=True):
            self.held[tag] = one

    # --- what a client does

    @rule(priorities=st.lists(PRIORITIES, min_size=1, max_size=12), persistent=st.booleans())
    def publish(self, priorities: list[int | None], persistent: bool) -> None:
        frames = []
        for priority in priorities:
            level = self.level(priority)
            self.levels.add(level)
            self.ready.append(One(-level, self.published, persistent))
            frames.append(sent("q", self.published, priority, persistent))
            self.published += 1
        self.ready.sort()
        self.peer.send(1, *frames)
        self.listen()

    @precondition(lambda self: not self.consumes)
    @rule(prefetch=st.integers(1, 6))
    def consume(self, prefetch: int) -> None:
        self.peer.ask(1, make(spec.BasicQos, prefetch_count=prefetch), spec.BasicQosOk)
        self.peer.send(1, make(spec.BasicConsume, queue="q", consumer_tag="c", nowait=True))
        self.consumes, self.credit = True, prefetch
        self.listen()

    @rule()
    def get(self) -> None:
        self.peer.send(1, make(spec.BasicGet, queue="q"))
        (said,) = self.peer.take()
        if not self.ready:
            assert isinstance(said.method, spec.BasicGetEmpty)
            return
        assert isinstance(said.method, spec.BasicGetOk) and said.body is not None
        one, again = self.take_first()
        assert (int(said.body), said.method.redelivered) == (one.number, again)
        assert said.method.message_count == len(self.ready)
        self.peer.send(1, spec.BasicAck(said.method.delivery_tag, False))

    @precondition(lambda self: self.held)
    @rule(at=PLACES, multiple=st.booleans(), requeue=st.sampled_from([None, True, False]))
    def settle(self, at: int, multiple: bool, requeue: bool | None) -> None:
        tags = sorted(self.held)
        tag = tags[at % len(tags)]
        taken = [self.held.pop(one) for one in tags if one == tag or (multiple and one < tag)]
        self.credit += len(taken)
        if requeue:
            self.ready = sorted(self.ready + taken)
        if requeue is None:
            self.peer.send(1, spec.BasicAck(tag, multiple))
        else:
            self.peer.send(1, spec.BasicNack(tag, multiple, requeue))
        self.listen()

    @rule()
    def purge(self) -> None:
        self.peer.send(1, make(spec.QueuePurge, queue="q"))
        assert self.peer.hear() == [spec.QueuePurgeOk(len(self.ready))]
        self.ready.clear()

    @rule()
    def lose_connection(self) -> None:
        self.come_back()
        self.peer.client.lost()
        self.connect()

    def come_back(self) -> None:
        self.ready = sorted([*self.ready, *self.held.values()])

    # --- what the disk and the process do

    @rule()
    def disk(self) -> None:
        self.bench.disk()

    @rule(killed=st.booleans())
    def restart(self, killed: bool) -> None:
        self.bench.disk()
        self.come_back()
        self.ready = [one for one in self.ready if one.persistent]
        if killed:
            self.bench.kill()
        else:
            self.bench.close()
        self.bench.open()
        self.connect()

    # --- what must hold

    @invariant()
    def counts_agree(self) -> None:
        if hasattr(self, "bench"):
            queue = self.bench.broker.vhosts["/"].queues["q"]
            assert (queue.ready, queue.unacked) == (len(self.ready), len(self.held))
            assert len(queue.lanes) <= len(self.levels)


TestPriorities = PriorityMachine.TestCase
TestPriorities.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def stored(bench: Bench) -> dict[int, int]:
    """The lanes of the only queue, by level, as the catalog has them."""
    ((_, value),) = bench.store.catalog.items("queue")
    return dict(lane_ids_of(value))


def test_levels_get_a_lane_when_they_are_first_used(bench: Bench, peer: Peer) -> None:
    queue = peer.declare("q", arguments={"x-max-priority": 255})
    assert len(queue.lanes) == 1 and list(stored(bench)) == [0]
    peer.send(1, sent("q", 0, 7, True), sent("q", 1, 200, True), sent("q", 2, 7, True))
    assert list(stored(bench)) == [0, 7, 200]
    by_level = stored(bench)
    assert [lane.id for lane in queue.lanes] == [by_level[200], by_level[7], by_level[0]]
    peer.send(1, sent("q", 3, 7, True), sent("q", 4, None, True))
    assert stored(bench) == by_level
    bench.restart()
    assert stored(bench) == by_level
    found = bench.broker.vhosts["/"].queues["q"]
    assert [lane.id for lane in found.lanes] == [by_level[200], by_level[7], by_level[0]]
    assert found.ready == 5


def test_queue_without_priorities_has_one_lane_and_no_levels(bench: Bench, peer: Peer) -> None:
    queue = peer.declare("q")
    peer.send(1, sent("q", 0, 7, True), sent("q", 1, 200, True))
    assert len(queue.lanes) == 1 and queue.effective.plain
    ((_, value),) = bench.store.catalog.items("queue")
    assert msgpack.unpackb(value).keys() == {"lane", "auto_delete", "arguments"}


def test_message_is_not_confirmed_before_its_level_is_defined(
    bench: Bench, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a kill right after the confirm would leave a message in a lane of nobody's."""
    peer.declare("q", arguments={"x-max-priority": 5})
    peer.ask(1, make(spec.ConfirmSelect), spec.ConfirmSelectOk)
    # While publishers wait, definitions are not hurried, and messages alone would go first.
    monkeypatch.setattr(bench.store, "commit", partial(bench.store.commit, 1))
    peer.send(1, sent("q", 0, 5, True))
    while not (heard := peer.hear()):
        assert bench.disk_once()
    assert heard == [spec.BasicAck(1, False)]
    bench.kill()
    bench.open()
    assert bench.broker.vhosts["/"].queues["q"].ready == 1


def test_all_levels_go_with_the_queue(bench: Bench, peer: Peer) -> None:
    queue = peer.declare("q", arguments={"x-max-priority": 9})
    peer.send(1, *(sent("q", number, number, True) for number in range(10)))
    lanes = list(queue.lanes)
    peer.ask(1, make(spec.QueueDelete, queue="q"), spec.QueueDeleteOk)
    assert len(lanes) == 10 and all(lane.dropped for lane in lanes)
    bench.restart()
    again = Peer(bench).declare("q", arguments={"x-max-priority": 9})
    assert again.ready == 0 and len(again.lanes) == 1


@pytest.mark.parametrize("options", [{"durable": False}, {"exclusive": True}])
def test_queues_that_do_not_last_have_levels_too(
    bench: Bench, peer: Peer, options: dict[str, bool]
) -> None:
    queue = peer.declare("q", arguments={"x-max-priority": 9}, **options)
    peer.send(1, *(sent("q", number, number % 3, True) for number in range(6)))
    assert isinstance(queue, ClassicQueue) and not list(bench.store.catalog.items("queue"))
    peer.send(1, make(spec.BasicConsume, queue="q", no_ack=True, nowait=True))
    assert [body for *_, body in peer.deliveries()] == [b"2", b"5", b"1", b"4", b"0", b"3"]


def test_same_messages_for_priority_queues_and_others(bench: Bench, peer: Peer) -> None:
    for name, arguments in {
        "plain": {},
        "some": {"x-max-priority": 2},
        "all": {"x-max-priority": 9},
    }.items():
        peer.declare(name, arguments=arguments)
        peer.send(1, make(spec.QueueBind, queue=name, exchange="amq.fanout", nowait=True))
    frames = []
    for number, priority in enumerate((1, 9, None, 2, 5)):
        properties = Properties(delivery_mode=2, priority=priority)
        frames.append(message(1, "", b"%d" % number, exchange="amq.fanout", properties=properties))
    peer.send(1, *frames)
    bench.disk()
    bench.restart()
    for name, expected in {"plain": "01234", "some": "13402", "all": "14302"}.items():
        again = Peer(bench)
        again.send(1, make(spec.BasicConsume, queue=name, no_ack=True, nowait=True))
        assert b"".join(body for *_, body in again.deliveries()).decode() == expected
