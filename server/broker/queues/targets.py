"""Where a message goes: the queues of a routing result, sorted by what the store must do for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qlog.server.amqp.envelope import Envelope

if TYPE_CHECKING:
    from qlog.server.broker.channels.channel import Channel
    from qlog.server.broker.queues.queue import Queue
    from qlog.storage.lanes.lane import Lane


class Targets:
    """One set of queues. The same set is the same object while bindings stay, so that a run of messages
    with different keys but the same queues is stored and delivered as one."""

    __slots__ = ("all", "durable", "queues", "replies_to", "transient")

    def __init__(self, queues: tuple[Queue, ...], replies_to: Channel | None = None) -> None:
        self.queues = queues
        self.replies_to = replies_to  # a direct reply: past all queues, to this channel
        self.durable: list[Lane[Envelope]] = [queue.lane for queue in queues if queue.durable]
        self.transient: list[Lane[Envelope]] = [queue.lane for queue in queues if not queue.durable]
        self.all = self.durable + self.transient
