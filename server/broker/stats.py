"""What a broker has done since its start, in messages: counted once a run, never once a message.

A queue, a channel and an exchange have counters of their own; those of a queue are counted for its
type as well, and the sum of the types is what the broker did. What follows from other numbers is
not counted: how many messages came to a queue is known from its lanes, and how many a channel
published or had confirmed from its confirms.
"""

from __future__ import annotations


class Counts:
    """Deliveries and acknowledgements; counters that only grow.

    `deliver` and `get` need an acknowledgement, `deliver_no_ack` and `get_no_ack` need none;
    `redeliver` counts among them those that somebody had before; `get_empty` is how often basic.get
    found nothing.
    """

    __slots__ = (
        "ack",
        "deliver",
        "deliver_no_ack",
        "get",
        "get_empty",
        "get_no_ack",
        "redeliver",
    )

    def __init__(self) -> None:
        self.deliver = 0
        self.deliver_no_ack = 0
        self.get = 0
        self.get_no_ack = 0
        self.get_empty = 0
        self.ack = 0
        self.redeliver = 0


class QueueCounts(Counts):
    """Those of one queue; `of_type` are those of all queues of its type.

    `published_before` is how many messages its lanes had been given before it began to count;
    `passed_on` how many went past the lanes.
    """

    __slots__ = ("of_type", "passed_on", "published_before")

    def __init__(self, of_type: Counts) -> None:
        super().__init__()
        self.of_type = of_type
        self.passed_on = 0
        self.published_before = 0


class ExchangeCounts:
    """Messages that came to an exchange (`published_in`), and that it gave to queues, in all."""

    __slots__ = ("published_in", "published_out")

    def __init__(self) -> None:
        self.published_in = 0
        self.published_out = 0


class Traffic:
    """Octets, and reads and sends, of one connection; `send_pend`: octets that wait to be sent."""

    __slots__ = ("recv_cnt", "recv_oct", "send_cnt", "send_oct", "send_pend")

    def __init__(self) -> None:
        self.recv_oct = 0
        self.recv_cnt = 0
        self.send_oct = 0
        self.send_cnt = 0
        self.send_pend = 0


class Stats:
    """Counters that only grow.

    Messages are counted: `published`, once each, whatever the number of queues;
    `published_confirm`, those of channels in confirm mode; `confirmed` to their publishers;
    `unrouted`, published messages that no queue took, `returned` those of them that were mandatory;
    `dead_lettered`, handed to a dead-letter exchange and taken by a queue there, and
    `dead_dropped`, handed to it in vain; `requeued`; `rejected` without requeue. `of_type` counts
    deliveries by the type of the queue. The rest counts connections, channels and queues that came
    and went.
    """

    __slots__ = (
        "channels_closed",
        "channels_opened",
        "confirmed",
        "connections_closed",
        "connections_opened",
        "dead_dropped",
        "dead_lettered",
        "of_type",
        "published",
        "published_confirm",
        "queues_created",
        "queues_declared",
        "queues_deleted",
        "rejected",
        "requeued",
        "returned",
        "unrouted",
    )

    def __init__(self) -> None:
        self.published = 0
        self.published_confirm = 0
        self.confirmed = 0
        self.unrouted = 0
        self.returned = 0
        self.requeued = 0
        self.rejected = 0
        self.dead_lettered = 0
        self.dead_dropped = 0
        self.of_type: dict[str, Counts] = {}
        self.connections_opened = 0
        self.connections_closed = 0
        self.channels_opened = 0
        self.channels_closed = 0
        self.queues_declared = 0
        self.queues_created = 0
        self.queues_deleted = 0

    def churn(self) -> dict[str, int]:
        """What came and went, by RabbitMQ's names."""
        return {
            "connection_created": self.connections_opened,
            "connection_closed": self.connections_closed,
            "channel_created": self.channels_opened,
            "channel_closed": self.channels_closed,
            "queue_declared": self.queues_declared,
            "queue_created": self.queues_created,
            "queue_deleted": self.queues_deleted,
        }

    def counts_of(self, queue_type: str) -> Counts:
        """The deliveries of all queues of a type."""
        counts = self.of_type.get(queue_type)
        if counts is None:
            counts = self.of_type[queue_type] = Counts()
        return counts

    def total(self, name: str) -> int:
        """One of the counters of `Counts`, of all types."""
        return sum(getattr(counts, name) for counts in self.of_type.values())
