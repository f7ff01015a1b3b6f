"""One consumer: a tag on a channel that takes messages from a queue while its credit lasts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qlog.server.amqp.deliver import DeliveryEncoder
from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.values import Table
from qlog.server.broker.channels.unacked import UnackedRun

if TYPE_CHECKING:
    from qlog.server.broker.channels.channel import Channel
    from qlog.server.broker.queues.queue import Queue
    from qlog.storage.lanes.run import Slice

# "As many as there are": no prefetch limit. One turn is bounded by bytes anyway.
UNLIMITED = 1 << 30


class Consumer:
    """Created by basic.consume.

    Arguments: `prefetch` in messages (0: no limit), `priority` from the argument `x-priority`,
    `timeout_s` how long it may hold a delivery unacknowledged.
    """

    def __init__(
        self,
        channel: Channel,
        queue: Queue,
        tag: str,
        *,
        no_ack: bool,
        exclusive: bool,
        prefetch: int,
        priority: int,
        timeout_s: float,
        arguments: Table,
    ) -> None:
        self.channel = channel
        self.queue = queue
        self.tag = tag
        self.no_ack = no_ack
        self.exclusive = exclusive
        self.prefetch = prefetch
        self.priority = priority
        self.timeout_s = timeout_s
        self.arguments = arguments
        self.unacked = 0
        self.hungry = False  # stands in its queue's ring
        self._encoder = DeliveryEncoder(channel.number, tag, channel.sink.frame_max)

    def credit(self) -> int:
        """How many messages it can take now."""
        channel = self.channel
        if channel.sink.full or channel.closed:
            return 0
        if self.no_ack:
            return UNLIMITED
        credit = self.prefetch - self.unacked if self.prefetch else UNLIMITED
        if channel.prefetch:
            credit = min(credit, channel.prefetch - channel.unacked_by_consumers)
        return credit

    def deliver(self, slice_: Slice[Envelope], redelivered: bool) -> None:
        """Send the messages; they are unacked from now on, or settled at once with no_ack."""
        channel, count = self.channel, len(slice_.bodies)
        first_tag = channel.take_tags(count)
        channel.sink.write(
            self._encoder.encode(first_tag, redelivered, slice_.metas, slice_.bodies)
        )
        if self.no_ack:
            self.queue.settle(slice_.first_qseq, count)
            return
        self.unacked += count
        channel.unacked_by_consumers += count
        channel.unacked.add(
            UnackedRun(
                first_tag, count, self.queue, slice_.first_qseq, self, channel.client.broker.now_s()
            )
        )
