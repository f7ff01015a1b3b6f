"""Everything that moves credit and messages, in any order, against a model that knows only lists.

At each quiet point: no message is ready while a consumer could take it, the broker's counts are the
model's, and every message is with one holder at most, in the order of its queue.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qlog.server.amqp import spec
from tests.server.broker.support import Bench, Peer, Said, make

QUEUES = ("q0", "q1")
queues = st.sampled_from(QUEUES)
places = st.tuples(st.integers(0, 1), st.integers(1, 2))  # client, channel
counts = st.integers(min_value=1, max_value=40)
prefetches = st.sampled_from([0, 1, 2, 5])


@dataclass
class Held:
    """A delivery that waits for its ack."""

    queue: str
    number: int
    consumer: str | None


@dataclass
class ModelConsumer:
    queue: str
    no_ack: bool
    prefetch: int


@dataclass
class ModelChannel:
    next_prefetch: int = 0
    prefetch: int = 0
    consumers: dict[str, ModelConsumer] = field(default_factory=dict)
    held: dict[int, Held] = field(default_factory=dict)

    def credit(self, tag: str) -> int:
        consumer = self.consumers[tag]
        mine = sum(held.consumer == tag for held in self.held.values())
        all_ = sum(held.consumer is not None for held in self.held.values())
        return min(
            consumer.prefetch - mine if consumer.prefetch and not consumer.no_ack else 1,
            self.prefetch - all_ if self.prefetch else 1,
        )


class DeliveryMachine(RuleBasedStateMachine):
    """Two clients with two channels each, and two queues."""

    @initialize()
    def start(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.bench = Bench(Path(self.directory.name) / "data")
        self.peers = [Peer(self.bench), Peer(self.bench)]
        for name in QUEUES:
            self.peers[0].declare(name)
        self.channels = {(peer, number): ModelChannel() for peer in (0, 1) for number in (1, 2)}
        self.ready: dict[str, list[int]] = {name: [] for name in QUEUES}
        self.delivered: set[int] = set()
        self.next_number = 0
        self.next_tag = 0

    def teardown(self) -> None:
        if hasattr(self, "bench"):
            self.bench.close()
            self.directory.cleanup()

    # --- helpers

    def tell(self, place: tuple[int, int], *methods: spec.Method) -> None:
        self.peers[place[0]].send(place[1], *methods)

    def requeue(self, taken: list[Held]) -> None:
        for held in taken:
            self.ready[held.queue].append(held.number)
            self.ready[held.queue].sort()  # numbers grow, so this is the original place

    def listen(self) -> None:
        """Take what was delivered into the model."""
        by_queue: dict[str, list[int]] = {name: [] for name in QUEUES}
        for index, peer in enumerate(self.peers):
            last: dict[tuple[int, str], int] = {}
            for said in peer.take():
                if isinstance(said.method, spec.BasicDeliver):
                    self.delivery(index, said, said.method, by_queue, last)
                else:
                    assert not isinstance(said.method, spec.ChannelClose | spec.ConnectionClose)
        for name, numbers in by_queue.items():
            count = len(numbers)
            assert sorted(numbers) == self.ready[name][:count], "not the first ones, or not once"
            del self.ready[name][:count]
            self.delivered.update(numbers)

    def delivery(
        self,
        index: int,
        said: Said,
        method: spec.BasicDeliver,
        by_queue: dict[str, list[int]],
        last: dict[tuple[int, str], int],
    ) -> None:
        assert said.body is not None
        number = int(said.body)
        channel = self.channels[index, said.channel]
        consumer = channel.consumers[method.consumer_tag]
        key = said.channel, method.consumer_tag
        assert last.get(key, -1) < number, "out of order"
        last[key] = number
        assert method.redelivered == (number in self.delivered)
        by_queue[consumer.queue].append(number)
        assert channel.credit(method.consumer_tag) > 0
        if not consumer.no_ack:
            assert method.delivery_tag not in channel.held
            channel.held[method.delivery_tag] = Held(consumer.queue, number, method.consumer_tag)

    def pick(self, place: tuple[int, int], at: int) -> int | None:
        held = sorted(self.channels[place].held)
        return held[at % len(held)] if held else None

    def settle(
        self, place: tuple[int, int], at: int, multiple: bool
    ) -> tuple[int, list[Held]] | None:
        tag = self.pick(place, at)
        if tag is None:
            return None
        held = self.channels[place].held
        tags = [other for other in sorted(held) if other == tag or (multiple and other < tag)]
        return tag, [held.pop(other) for other in tags]

    # --- what clients do

    @rule(queue=queues, count=counts, persistent=st.booleans(), place=places)
    def publish(self, queue: str, count: int, persistent: bool, place: tuple[int, int]) -> None:
        numbers = range(self.next_number, self.next_number + count)
        self.next_number += count
        self.ready[queue] += numbers
        bodies = [b"%d" % number for number in numbers]
        self.peers[place[0]].publish(place[1], queue, *bodies, persistent=persistent)
        self.listen()

    @rule(
        place=places,
        queue=queues,
        no_ack=st.sampled_from([False, False, False, True]),
        prefetch=prefetches,
        priority=st.integers(0, 1),
    )
    def consume(
        self, place: tuple[int, int], queue: str, no_ack: bool, prefetch: int, priority: int
    ) -> None:
        self.next_tag += 1
        tag = f"c{self.next_tag}"
        channel = self.channels[place]
        channel.next_prefetch = prefetch
        channel.consumers[tag] = ModelConsumer(queue, no_ack, prefetch)
        self.tell(
            place,
            make(spec.BasicQos, prefetch_count=prefetch),
            make(
                spec.BasicConsume,
                queue=queue,
                consumer_tag=tag,
                no_ack=no_ack,
                arguments={"x-priority": priority},
            ),
        )
        self.listen()

    @rule(place=places, at=st.integers(0, 5))
    def cancel(self, place: tuple[int, int], at: int) -> None:
        consumers = self.channels[place].consumers
        if consumers:
            tag = sorted(consumers)[at % len(consumers)]
            self.tell(place, make(spec.BasicCancel, consumer_tag=tag))
            self.listen()
            del consumers[tag]

    @rule(place=places, prefetch=prefetches)
    def share_prefetch(self, place: tuple[int, int], prefetch: int) -> None:
        self.channels[place].prefetch = prefetch
        self.tell(place, make(spec.BasicQos, prefetch_count=prefetch, global_=True))
        self.listen()

    @rule(place=places, at=st.integers(0, 50), multiple=st.booleans())
    def ack(self, place: tuple[int, int], at: int, multiple: bool) -> None:
        if settled := self.settle(place, at, multiple):
            self.tell(place, spec.BasicAck(settled[0], multiple))
            self.listen()

    @rule(place=places, at=st.integers(0, 50), count=st.integers(1, 20))
    def ack_one_by_one(self, place: tuple[int, int], at: int, count: int) -> None:
        held = self.channels[place].held
        tags = sorted(held)[at : at + count]
        for tag in tags:
            del held[tag]
        if tags:
            self.tell(place, *(spec.BasicAck(tag, False) for tag in tags))
            self.listen()

    @rule(place=places, at=st.integers(0, 50), multiple=st.booleans(), requeue=st.booleans())
    def nack(self, place: tuple[int, int], at: int, multiple: bool, requeue: bool) -> None:
        if settled := self.settle(place, at, multiple):
            if requeue:
                self.requeue(settled[1])
            self.tell(place, spec.BasicNack(settled[0], multiple, requeue))
            self.listen()

    @rule(place=places)
    def recover(self, place: tuple[int, int]) -> None:
        held = self.channels[place].held
        self.requeue(list(held.values()))
        held.clear()
        self.tell(place, spec.BasicRecover(True))
        self.listen()

    @rule(place=places, queue=queues, no_ack=st.booleans())
    def get(self, place: tuple[int, int], queue: str, no_ack: bool) -> None:
        self.listen()
        peer = self.peers[place[0]]
        self.tell(place, make(spec.BasicGet, queue=queue, no_ack=no_ack))
        (said,) = peer.take()
        if not self.ready[queue]:
            assert isinstance(said.method, spec.BasicGetEmpty)
            return
        assert isinstance(said.method, spec.BasicGetOk) and said.body is not None
        number = self.ready[queue].pop(0)
        assert int(said.body) == number
        assert said.method.redelivered == (number in self.delivered)
        assert said.method.message_count == len(self.ready[queue])
        self.delivered.add(number)
        if not no_ack:
            self.channels[place].held[said.method.delivery_tag] = Held(queue, number, None)

    @rule(queue=queues, place=places)
    def purge(self, queue: str, place: tuple[int, int]) -> None:
        self.listen()
        peer = self.peers[place[0]]
        self.tell(place, make(spec.QueuePurge, queue=queue))
        assert peer.hear() == [spec.QueuePurgeOk(len(self.ready[queue]))]
        self.ready[queue].clear()

    @rule(place=places)
    def close_channel(self, place: tuple[int, int]) -> None:
        self.requeue(list(self.channels[place].held.values()))
        self.tell(place, spec.ChannelClose(200, "", 0, 0))
        self.peers[place[0]].opened.discard(place[1])
        self.channels[place] = ModelChannel()
        self.listen()

    @rule(index=st.integers(0, 1))
    def lose_connection(self, index: int) -> None:
        for number in (1, 2):
            self.requeue(list(self.channels[index, number].held.values()))
            self.channels[index, number] = ModelChannel()
        self.peers[index].client.lost()
        self.peers[index] = Peer(self.bench)
        self.listen()

    # --- what sockets and the disk do

    @rule(index=st.integers(0, 1))
    def socket_fills(self, index: int) -> None:
        self.peers[index].sink.full = True

    @precondition(lambda self: any(peer.sink.full for peer in self.peers))
    @rule()
    def sockets_drain(self) -> None:
        for peer in self.peers:
            if peer.sink.full:
                peer.sink.full = False
                peer.client.drained()
        self.bench.end_tick()
        self.listen()

    @rule()
    def disk(self) -> None:
        self.bench.disk()
        self.listen()

    @rule()
    def checkpoint(self) -> None:
        assert self.bench.store.checkpoint()
        self.bench.disk()
        self.listen()

    # --- what must hold whenever nothing is under way

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "bench"):
            return
        held = [held for channel in self.channels.values() for held in channel.held.values()]
        for name in QUEUES:
            queue = self.bench.broker.vhosts["/"].queues[name]
            assert queue.ready == len(self.ready[name])
            assert queue.unacked == sum(one.queue == name for one in held)
        numbers = [one.number for one in held] + [n for some in self.ready.values() for n in some]
        assert len(numbers) == len(set(numbers))

    @invariant()
    def nobody_waits_for_what_is_there(self) -> None:
        if not hasattr(self, "bench"):
            return
        for (index, number), channel in self.channels.items():
            for tag, consumer in channel.consumers.items():
                if self.ready[consumer.queue] and not self.peers[index].sink.full:
                    assert channel.credit(tag) <= 0, f"{index}/{number}/{tag} starves"


TestDelivery = DeliveryMachine.TestCase
TestDelivery.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
