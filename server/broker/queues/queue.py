"""A queue: what is ready, who gets it next, what comes back.

The messages themselves, by dense sequence number (qseq), are the lane's (`qlog.storage`); this file
keeps a cursor to what was never delivered, the ranges that came back, and the consumers that can take
more. Within a lane delivery is in order, so whatever comes back lies before the cursor and goes first:
that is "requeued to its original place". Promises: each ready message goes to exactly one consumer;
consumers of equal priority take turns; nothing here waits.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from typing import TYPE_CHECKING

from qlog.server.amqp.envelope import Envelope
from qlog.server.broker.queues.arguments import QueueArguments
from qlog.storage.lanes.run import Slice

if TYPE_CHECKING:
    from qlog.server.broker.channels.client import Client
    from qlog.server.broker.channels.consumer import Consumer
    from qlog.server.broker.vhost import VHost
    from qlog.storage.lanes.lane import Lane

# One slice is what one join and one send carry; beyond this a larger one gains nothing.
SLICE_BYTES_MAX = 256 * 1024
# With several consumers, a backlog is dealt out in hands of this many messages; short queues by one.
HAND_MAX = 32
HAND_FROM_READY = 512


class Queue:
    """One queue of a vhost.

    Arguments: `lane` holds its messages; `owner` is the connection of an exclusive queue.
    """

    def __init__(
        self,
        vhost: VHost,
        name: str,
        lane: Lane[Envelope],
        *,
        durable: bool,
        auto_delete: bool,
        owner: Client | None,
        exclusive: bool,
        arguments: QueueArguments,
    ) -> None:
        self.vhost = vhost
        self.name = name
        self.lane = lane
        self.durable = durable
        self.auto_delete = auto_delete
        self.exclusive = exclusive
        self.owner = owner
        self.arguments = arguments
        self.consumers: list[Consumer] = []
        self.exclusive_consumer: Consumer | None = None
        self.unacked = 0
        self.deleted = False
        # Handed out by an earlier run of the broker, for all that is known: these are redeliveries.
        self._redelivered_below = lane.delivered
        self._cursor = 0
        self._returned: list[tuple[int, int]] = []  # (first qseq, count), in order, apart
        self._hungry: dict[int, deque[Consumer]] = {}  # by priority: consumers that can take more

    def __str__(self) -> str:
        return f"queue '{self.name}' in vhost '{self.vhost.name}'"

    @property
    def ready(self) -> int:
        """Messages that wait for a consumer."""
        return self.lane.alive - self.unacked

    # -- consumers ---------------------------------------------------------------------------

    def add_consumer(self, consumer: Consumer) -> None:
        """Register; the caller has checked exclusiveness."""
        self.consumers.append(consumer)
        if consumer.exclusive:
            self.exclusive_consumer = consumer
        self.feed(consumer)

    def remove_consumer(self, consumer: Consumer) -> None:
        """Forget a consumer; an auto-delete queue goes with its last one."""
        self.consumers.remove(consumer)
        if self.exclusive_consumer is consumer:
            self.exclusive_consumer = None
        if consumer.hungry:
            consumer.hungry = False
            self._hungry[consumer.priority].remove(consumer)
        if self.auto_delete and not self.consumers and not self.deleted:
            self.vhost.delete_queue(self)

    def feed(self, consumer: Consumer) -> None:
        """The consumer can take more again: let it have its turn."""
        if consumer.credit() <= 0:
            return
        if not consumer.hungry:
            consumer.hungry = True
            self._hungry.setdefault(consumer.priority, deque()).append(consumer)
        self.wake()

    def cancel_consumers(self) -> None:
        """The queue was deleted: tell those who consumed from it."""
        for consumer in list(self.consumers):
            consumer.channel.queue_deleted(consumer)

    def wake(self) -> None:
        """Something may be deliverable: have `pump` called at the end of this tick."""
        self.vhost.broker.wake(self)

    def pump(self) -> None:
        """Deliver until nothing is ready or nobody can take more."""
        while self.lane.alive > self.unacked and (consumer := self._next_hungry()) is not None:
            slice_, redelivered = self._take(self._hand(consumer), SLICE_BYTES_MAX)
            consumer.deliver(slice_, redelivered)

    def _next_hungry(self) -> Consumer | None:
        """The consumer whose turn it is: the highest priority first, in turn among equals."""
        for priority in sorted(self._hungry, reverse=True):
            ring = self._hungry[priority]
            while ring:
                if ring[0].credit() > 0:
                    ring.rotate(-1)
                    return ring[-1]
                ring.popleft().hungry = False
            del self._hungry[priority]
        return None

    def _hand(self, consumer: Consumer) -> int:
        """How many messages the consumer gets in one turn."""
        credit = consumer.credit()
        if len(self._hungry[consumer.priority]) == 1:
            return credit
        return min(credit, HAND_MAX) if self.ready > HAND_FROM_READY else 1

    # -- messages ----------------------------------------------------------------------------

    def _take(self, count_max: int, bytes_max: int) -> tuple[Slice[Envelope], bool]:
        """The next ready messages and whether they were delivered before. Counts them as unacked."""
        if self._returned:
            first, count = self._returned[0]
            slice_ = self._read(first, min(count, count_max), bytes_max)
            done = slice_.first_qseq + len(slice_.bodies)
            if done == first + count:
                del self._returned[0]
            else:
                self._returned[0] = (done, first + count - done)
            redelivered = True
        else:
            redelivered = self._cursor < self._redelivered_below
            if redelivered:
                count_max = min(count_max, self._redelivered_below - self._cursor)
            slice_ = self._read(self._cursor, count_max, bytes_max)
            if redelivered:
                slice_, redelivered = self._delivered_before(slice_)
            self._cursor = slice_.first_qseq + len(slice_.bodies)
            self.lane.note_delivered(self._cursor)
        self.unacked += len(slice_.bodies)
        return slice_, redelivered

    def _delivered_before(self, slice_: Slice[Envelope]) -> tuple[Slice[Envelope], bool]:
        """Cut off what an earlier run did not deliver; settled ones may have moved the slice on."""
        count = self._redelivered_below - slice_.first_qseq
        if count <= 0:
            return slice_, False
        slice_.keep(count)
        return slice_, True

    def _read(self, qseq: int, count_max: int, bytes_max: int) -> Slice[Envelope]:
        slice_ = self.lane.read(qseq, count_max, bytes_max)
        assert slice_ is not None, f"{self} counts {self.ready} ready, but has none from {qseq} on"
        return slice_

    def get(self) -> tuple[Slice[Envelope], bool] | None:
        """Take one message for basic.get; it counts as unacked. None: the queue is empty."""
        self.pump()
        return self._take(1, SLICE_BYTES_MAX) if self.ready else None

    def settle(self, qseq: int, count: int) -> None:
        """Delivered messages are done with: acknowledged, or discarded."""
        self.unacked -= count
        if not self.deleted:
            self.lane.settle(qseq, count)

    def requeue(self, qseq: int, count: int) -> None:
        """Delivered messages come back to their place."""
        self.unacked -= count
        if self.deleted:
            return
        returned = self._returned
        at = bisect_left(returned, (qseq, 0))
        if at < len(returned) and returned[at][0] == qseq + count:
            count += returned.pop(at)[1]  # joined with what lies behind
        if at and sum(returned[at - 1]) == qseq:
            qseq, before = returned.pop(at - 1)  # and before
            at, count = at - 1, count + before
        returned.insert(at, (qseq, count))
        self.wake()

    def purge(self) -> int:
        """Settle all that is ready; what is unacked stays. Returns how many went."""
        self.pump()
        settled = sum(self.lane.settle(first, count) for first, count in self._returned)
        self._returned.clear()
        settled += self.lane.settle(self._cursor, self.lane.next_qseq - self._cursor)
        self._cursor = self.lane.next_qseq
        return settled
