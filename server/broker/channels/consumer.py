"""One consumer: a tag on a channel that takes messages from a queue while its credit lasts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from qlog.server.amqp.deliver import DeliveryEncoder
from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.errors import HardError
from qlog.server.amqp.values import Table
from qlog.server.broker.channels.facts import consumer_facts
from qlog.server.broker.channels.outstanding import Outstanding
from qlog.server.broker.channels.unacked import UnackedRun
from qlog.server.broker.features.firehose import TRACED_AT_ONCE, Firehose, Origin
from qlog.server.broker.queues.backlog import Taken
from qlog.server.broker.queues.type import QueueType
from qlog.server.broker.stats import Counts

# "As many as there are": no prefetch limit. One turn is bounded by bytes anyway.
UNLIMITED = 1 << 30


class Traced(Protocol):
    """What a consumer needs of its vhost."""

    firehose: Firehose | None


class ConsumerOwner(Protocol):
    """What a consumer needs of its channel, beside `Outstanding`."""

    @property
    def vhost(self) -> Traced:
        """Where it consumes."""

    @property
    def origin(self) -> Origin:
        """The channel as the firehose names it."""

    def starve(self) -> None:
        """One of its consumers is refused a message while the sink is full."""

    def queue_deleted(self, consumer: Consumer) -> None:
        """Its queue is gone."""

    def fail(self, error: HardError) -> None:
        """The connection ends."""

    def details(self) -> dict[str, Any]:
        """Which channel it is, as operators see it."""


class Consumer:
    """Created by basic.consume; a `Taker` for its queue.

    Arguments: `prefetch` in messages (0: no limit); `priority` from the argument `x-priority`;
    `own_timeout_s`: how long a delivery may stay unacknowledged, None for the queue's own timeout;
    `counts` are the channel's.
    `unacked` is the number of messages that the consumer holds; `last_tag` is the delivery tag of
    the first message of its last delivery, 0 if it had none.
    """

    def __init__(
        self,
        owner: ConsumerOwner,
        outstanding: Outstanding,
        counts: Counts,
        queue: QueueType,
        tag: str,
        *,
        no_ack: bool,
        exclusive: bool,
        prefetch: int,
        priority: int,
        own_timeout_s: float | None,
        arguments: Table,
    ) -> None:
        self.queue = queue
        self.tag = tag
        self.no_ack = no_ack
        self.exclusive = exclusive
        self.prefetch = prefetch
        self.priority = priority
        self.arguments = arguments
        self.unacked = 0
        self.last_tag = 0
        self.hungry = False  # stands in its queue's ring
        self._owner = owner
        self._outstanding = outstanding
        self._counts = counts
        self._own_timeout_s = own_timeout_s
        self._encoder = DeliveryEncoder(outstanding.number, tag, outstanding.sink.frame_max)

    @property
    def timeout_s(self) -> float:
        """How long it may hold a delivery unacknowledged, in seconds; 0: for ever."""
        own_s = self._own_timeout_s
        return self.queue.effective.consumer_timeout_s if own_s is None else own_s

    def credit(self) -> int:
        """How many messages it can take now.

        While the channel's limit is reached a no-ack consumer gets nothing either, although what it
        gets does not count towards the limit (rabbit_limiter, can_send).
        """
        credit = UNLIMITED
        if self.prefetch and not self.no_ack:
            credit = self.prefetch - self.unacked
            if credit <= 0:  # as it mostly is after a delivery, if it takes one at a time
                return 0
        outstanding = self._outstanding
        if outstanding.ended or outstanding.core.closed:
            return 0
        if outstanding.sink.full:
            outstanding.refused[self] = None
            self._owner.starve()
            return 0
        if outstanding.prefetch:
            left = outstanding.prefetch - outstanding.by_consumers
            if left <= 0:
                outstanding.refused[self] = None
                return 0
            if not self.no_ack:
                credit = min(credit, left)
        if self._owner.vhost.firehose is not None:
            return min(credit, TRACED_AT_ONCE)
        return credit

    def deliver(self, taken: Taken) -> None:
        """Send the messages; they are unacked from now on, or settled at once with no_ack."""
        count = len(taken.bodies)
        self._write(taken.redelivered, taken.envelopes, taken.bodies)
        if taken.redelivered:
            counts = self.queue.counts
            self._counts.redeliver += count
            counts.redeliver += count
            counts.of_type.redeliver += count
        if self.no_ack:
            self._count_no_ack(count)
            taken.backlog.settle(taken.first_qseq, count, sum(taken.sizes))
        else:
            self._hold(taken, count)
        # Last: a copy may go to the same queue, which then delivers more.
        owner = self._owner
        if owner.vhost.firehose is not None:
            owner.vhost.firehose.delivered(owner.origin, self.queue.name, taken)

    def receive(self, envelopes: Sequence[Envelope], bodies: Sequence[bytes]) -> bool:
        """Send messages that were never in the queue; see `Taker`. They are not traced."""
        if not self.no_ack or self._owner.vhost.firehose is not None or self.credit() < len(bodies):
            return False
        self._write(False, envelopes, bodies)
        self._count_no_ack(len(bodies))
        return True

    def _write(
        self, redelivered: bool, envelopes: Sequence[Envelope], bodies: Sequence[bytes]
    ) -> None:
        """Write messages, with the next tags; `last_tag` is the first of them."""
        outstanding = self._outstanding
        self.last_tag = outstanding.take_tags(len(bodies))
        outstanding.sink.write(self._encoder.encode(self.last_tag, redelivered, envelopes, bodies))

    def _count_no_ack(self, count: int) -> None:
        counts = self.queue.counts
        self._counts.deliver_no_ack += count
        counts.deliver_no_ack += count
        counts.of_type.deliver_no_ack += count

    def _hold(self, taken: Taken, count: int) -> None:
        """Messages were sent that are to be acknowledged."""
        outstanding, counts = self._outstanding, self.queue.counts
        self._counts.deliver += count
        counts.deliver += count
        counts.of_type.deliver += count
        self.unacked += count
        outstanding.by_consumers += count
        outstanding.unacked.add(
            UnackedRun(
                self.last_tag,
                count,
                self.queue,
                taken.backlog,
                taken.first_qseq,
                taken.sizes,
                0,
                self,
                outstanding.now_s(),
            )
        )

    def queue_deleted(self) -> None:
        """Its queue is gone."""
        self._owner.queue_deleted(self)

    def facts(self) -> dict[str, Any]:
        """What operators see of it."""
        return consumer_facts(self, self._owner.details())

    def fail(self, error: HardError) -> None:
        """The queue cannot read its next message: end the connection."""
        self._owner.fail(error)
