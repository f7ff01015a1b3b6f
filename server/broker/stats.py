"""What a broker has done since its start, in messages: counted once a run, never once a message."""

from __future__ import annotations


class Stats:
    """Counters that only grow.

    Messages are counted: `published`, once each, whatever the number of queues; `unrouted`,
    published messages that no queue took; `dead_lettered`, handed to a dead-letter exchange and taken
    by a queue there, and `dead_dropped`, handed to it in vain; `delivered` to consumers; `got` by basic.get;
    `acknowledged`, also those that need no acknowledgement; `requeued`; `rejected` without requeue.
    """

    __slots__ = (
        "acknowledged",
        "dead_dropped",
        "dead_lettered",
        "delivered",
        "got",
        "published",
        "rejected",
        "requeued",
        "unrouted",
    )

    def __init__(self) -> None:
        self.published = 0
        self.unrouted = 0
        self.delivered = 0
        self.got = 0
        self.acknowledged = 0
        self.requeued = 0
        self.rejected = 0
        self.dead_lettered = 0
        self.dead_dropped = 0
