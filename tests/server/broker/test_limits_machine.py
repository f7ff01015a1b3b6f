"""A queue with everything: times, limits, dead letters, priorities, and policies that change them.

The model knows only lists. At each quiet point what is ready, what is out and what was dead-lettered
for which reason is the model's, before and after a restart or kill -9.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qlog.server.amqp import spec
from qlog.server.amqp.properties import Properties
from qlog.server.amqp.values import Table
from qlog.server.broker.queues.classic import ClassicQueue
from tests.server.broker.support import Bench, Peer, Said, make, message

LEVELS = 2
TIMES_MS = (2000, 5000)
# Sums of these, with 3 ms after each, are never one of the times.
STEPS_MS = (700, 1700, 4300)


@dataclass(frozen=True)
class Message:
    number: int
    level: int
    size: int
    persistent: bool
    born_ms: int
    own_ms: int | None

    @property
    def place(self) -> tuple[int, int]:
        return -self.level, self.number


class LimitsMachine(RuleBasedStateMachine):
    """One queue, one publisher and one consumer."""

    @initialize(priorities=st.booleans(), reject=st.booleans(), declared=st.booleans())
    def start(self, priorities: bool, reject: bool, declared: bool) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.bench = Bench(Path(self.directory.name) / "data")
        self.levels = LEVELS if priorities else 0
        self.reject = reject
        self.ttl_ms: int | None = None
        self.length_max: int | None = None
        self.bytes_max: int | None = None
        arguments: Table = {
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": "dead",
            "x-overflow": "reject-publish" if reject else "drop-head",
        }
        if priorities:
            arguments["x-max-priority"] = LEVELS
        if declared:
            arguments["x-max-length"] = 8
        self.declared_max = 8 if declared else None
        self.length_max = self.declared_max
        self.publisher = Peer(self.bench)
        self.publisher.declare("q", arguments=arguments)
        self.publisher.declare("dead")
        self.publisher.ask(1, make(spec.ConfirmSelect), spec.ConfirmSelectOk)
        self.consumer = Peer(self.bench)
        self.ready: list[Message] = []
        self.held: dict[int, Message] = {}
        self.dead: Counter[tuple[int, str]] = Counter()
        self.lasting: Counter[tuple[int, str]] = Counter()  # of these what a restart leaves
        self.known: dict[int, Message] = {}
        self.prefetch: int | None = None  # None: nobody consumes
        self.next_number = 0
        self.next_tag = 1

    def teardown(self) -> None:
        if hasattr(self, "bench"):
            self.bench.close()
            self.directory.cleanup()

    # --- the model

    def full(self) -> bool:
        sizes = sum(one.size for one in self.ready)
        return (self.length_max is not None and len(self.ready) > self.length_max) or (
            self.bytes_max is not None and sizes > self.bytes_max
        )

    def die(self, one: Message, reason: str) -> None:
        self.dead[one.number, reason] += 1
        if one.persistent:
            self.lasting[one.number, reason] += 1

    def trim(self) -> None:
        self.ready.sort(key=lambda one: one.place)
        while not self.reject and self.full():
            self.die(self.ready.pop(0), "maxlen")

    def expire(self) -> None:
        now_ms = self.bench.now_ms
        for one in list(self.ready):
            times = [time_ms for time_ms in (self.ttl_ms, one.own_ms) if time_ms is not None]
            if times and one.born_ms + min(times) <= now_ms:
                self.ready.remove(one)
                self.die(one, "expired")

    def deliver(self) -> list[Message]:
        self.ready.sort(key=lambda one: one.place)
        if self.prefetch is None:
            return []
        taken = self.ready[: self.prefetch - len(self.held)]
        for one in taken:
            self.held[self.next_tag] = one
            self.next_tag += 1
        del self.ready[: len(taken)]
        return taken

    def quiet(self) -> list[Said]:
        """All is done and on the disk; what the consumer got since the last call."""
        self.bench.settle()
        self.bench.disk()
        self.bench.settle()
        self.bench.disk()
        return self.consumer.take()

    def check_deliveries(self, expected: list[Message]) -> None:
        said = self.quiet()
        assert all(isinstance(one.method, spec.BasicDeliver) for one in said)
        assert [one.body and int(one.body) for one in said] == [one.number for one in expected]

    # --- what clients do

    @rule(
        count=st.integers(1, 6),
        level=st.integers(0, LEVELS),
        size=st.sampled_from([4, 10]),
        persistent=st.booleans(),
        own_ms=st.sampled_from([None, None, *TIMES_MS]),
    )
    def publish(
        self, count: int, level: int, size: int, persistent: bool, own_ms: int | None
    ) -> None:
        properties = Properties(
            delivery_mode=2 if persistent else 1,
            priority=level,
            expiration=None if own_ms is None else str(own_ms),
        )
        come = [
            Message(
                self.next_number + number,
                min(level, self.levels),
                size,
                persistent,
                self.bench.now_ms,
                own_ms,
            )
            for number in range(count)
        ]
        self.next_number += count
        delivered: list[Message] = []
        nacks = 0
        for one in come:
            self.known[one.number] = one
            self.ready.append(one)
            if self.reject and self.full():
                self.ready.pop()
                delivered += self.deliver()
                self.ready.append(one)
                if self.full():
                    self.ready.pop()
                    nacks += 1
        delivered += self.deliver()
        self.trim()
        self.publisher.send(
            1,
            *(
                message(1, "q", b"%0*d" % (one.size, one.number), properties=properties)
                for one in come
            ),
        )
        self.check_deliveries(delivered)
        assert self.confirmed() == (count - nacks, nacks)

    def confirmed(self) -> tuple[int, int]:
        counts = Counter[type]()
        for method in self.publisher.hear():
            assert isinstance(method, spec.BasicAck | spec.BasicNack)
            counts[type(method)] += method.delivery_tag - self.confirmed_tag
            self.confirmed_tag = method.delivery_tag
        return counts[spec.BasicAck], counts[spec.BasicNack]

    confirmed_tag = 0

    @precondition(lambda self: self.prefetch is None)
    @rule(prefetch=st.integers(1, 4))
    def consume(self, prefetch: int) -> None:
        self.prefetch = prefetch
        self.consumer.send(
            1,
            make(spec.BasicQos, prefetch_count=prefetch),
            make(spec.BasicConsume, queue="q", consumer_tag="c"),
        )
        heard = self.consumer.take()
        assert isinstance(heard[1].method, spec.BasicConsumeOk)
        bodies = [one.body and int(one.body) for one in heard[2:]]
        assert bodies == [one.number for one in self.deliver()]
        self.check_deliveries([])

    @precondition(lambda self: self.held)
    @rule(at=st.integers(0, 3), multiple=st.booleans())
    def ack(self, at: int, multiple: bool) -> None:
        tag = sorted(self.held)[at % len(self.held)]
        for other in [other for other in self.held if other == tag or (multiple and other < tag)]:
            del self.held[other]
        self.consumer.send(1, spec.BasicAck(tag, multiple))
        self.check_deliveries(self.deliver())

    @precondition(lambda self: self.held)
    @rule(at=st.integers(0, 3), multiple=st.booleans())
    def discard(self, at: int, multiple: bool) -> None:
        tag = sorted(self.held)[at % len(self.held)]
        for other in [other for other in self.held if other == tag or (multiple and other < tag)]:
            self.die(self.held.pop(other), "rejected")
        self.consumer.send(1, make(spec.BasicNack, delivery_tag=tag, multiple=multiple))
        self.check_deliveries(self.deliver())

    def come_back(self, tags: list[int]) -> None:
        """What comes back is looked at by priority, in the order of its tags."""
        by_level: dict[int, list[Message]] = {}
        for tag in tags:
            one = self.held.pop(tag)
            by_level.setdefault(one.level, []).append(one)
        for some in by_level.values():
            self.ready += some
            self.trim()
        self.expire()

    @precondition(lambda self: self.held)
    @rule(at=st.integers(0, 3))
    def requeue(self, at: int) -> None:
        tag = sorted(self.held)[at % len(self.held)]
        self.come_back([tag])
        self.consumer.send(1, make(spec.BasicReject, delivery_tag=tag, requeue=True))
        self.check_deliveries(self.deliver())

    @precondition(lambda self: self.prefetch is not None)
    @rule()
    def leave(self) -> None:
        self.prefetch = None
        self.come_back(sorted(self.held))
        self.consumer.client.lost()
        self.consumer = Peer(self.bench)
        self.next_tag = 1
        self.check_deliveries([])

    @rule()
    def purge(self) -> None:
        self.ready.clear()
        self.consumer.send(2, make(spec.QueuePurge, queue="q", nowait=True))
        self.check_deliveries([])

    # --- what others do

    @rule(step_ms=st.sampled_from(STEPS_MS))
    def pass_time(self, step_ms: int) -> None:
        self.bench.pass_ms(step_ms)
        self.bench.pass_ms(3)
        self.expire()
        self.check_deliveries([])

    @rule(
        ttl_ms=st.sampled_from([None, *TIMES_MS]),
        length_max=st.sampled_from([None, 0, 1, 4]),
        bytes_max=st.sampled_from([None, 9, 25]),
    )
    def set_policy(self, ttl_ms: int | None, length_max: int | None, bytes_max: int | None) -> None:
        given = {"message-ttl": ttl_ms, "max-length": length_max, "max-length-bytes": bytes_max}
        definition: dict[str, int | str] = {
            "dead-letter-routing-key": "dead"
        }  # one has to be there
        definition.update((key, value) for key, value in given.items() if value is not None)
        operations = self.bench.broker.operations
        operations.set_policy(
            operations.vhost("/"), "policy", "p", pattern="^q$", definition=definition
        )
        self.ttl_ms, self.bytes_max = ttl_ms, bytes_max
        lengths = [one for one in (length_max, self.declared_max) if one is not None]
        self.length_max = min(lengths, default=None)
        self.trim()
        self.expire()
        self.check_deliveries([])

    @precondition(lambda self: self.prefetch is None)
    @rule(kill=st.booleans(), checkpoint=st.booleans())
    def restart(self, kill: bool, checkpoint: bool) -> None:
        if checkpoint:
            assert self.bench.store.checkpoint()
            self.bench.disk()
        if kill:
            self.bench.kill()
            self.bench.open()
        else:
            self.bench.restart()
        self.publisher, self.consumer = Peer(self.bench), Peer(self.bench)
        self.publisher.ask(1, make(spec.ConfirmSelect), spec.ConfirmSelectOk)
        self.confirmed_tag = 0
        self.ready = [one for one in self.ready if one.persistent]
        self.dead = self.lasting.copy()
        self.check_deliveries([])

    @rule()
    def bury(self) -> None:
        """All dead letters are what the model knows, once each."""
        found: Counter[tuple[int, str]] = Counter()
        while True:
            self.publisher.send(2, make(spec.BasicGet, queue="dead", no_ack=True))
            (said,) = self.publisher.take()
            if said.body is None:
                break
            assert said.properties is not None and said.properties.headers is not None
            reason = said.properties.headers["x-first-death-reason"]
            assert isinstance(reason, str)
            found[int(said.body), reason] += 1
        assert found == self.dead
        self.dead.clear()
        self.lasting.clear()
        self.quiet()

    # --- what must hold whenever nothing is under way

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "bench"):
            return
        queues = self.bench.broker.vhosts["/"].queues
        queue = queues["q"]
        assert isinstance(queue, ClassicQueue)
        assert (queue.ready, queue.unacked) == (len(self.ready), len(self.held))
        assert queue.limit_bytes == sum(one.size for one in self.ready)
        assert queues["dead"].ready == self.dead.total()


TestLimits = LimitsMachine.TestCase
TestLimits.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)
