"""What a broker has done since its start, in messages: counted once a run, never once a message."""

from __future__ import annotations


class Stats:
    """Counters that only grow.

    `published`: taken from publishers, once each however many queues they went to; `unrouted`: of
    these, the ones no queue took; `delivered` to consumers; `got` by basic.get; `acknowledged`,
    with those that need no acknowledgement; `requeued`; `rejected` without requeue.
    """

    __slots__ = (
        "acknowledged",
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
