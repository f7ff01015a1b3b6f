"""What one channel has handed out: its delivery tags, and how many deliveries it may have out.

Consumers take tags and put their deliveries here; the channel takes what the client acknowledges.
"""

from __future__ import annotations

from collections.abc import Callable

from qlog.server.amqp.connection import ChannelCore
from qlog.server.amqp.errors import precondition_failed
from qlog.server.broker.channels.sink import Sink
from qlog.server.broker.channels.unacked import Unacked, UnackedRun
from qlog.server.broker.numbers import Numbers
from qlog.server.broker.queues.type import Taker


class Outstanding:
    """See the head of this file.

    Arguments: `number` is the channel's; `core` says whether the channel is closed, and a closed
    channel hands nothing out; `now_s` is a monotonic clock in seconds. `prefetch` is the limit for
    the whole channel (basic.qos global=true), 0 for none. `by_consumers` counts the messages that
    are out with consumers, `by_gets` those that basic.get took. `refused` are the consumers that
    the channel's limit, or a full sink, has kept from a message: they are to be fed when there is
    room. `ended`: the channel is being left, and hands nothing out, although close-ok is not sent
    yet.
    """

    __slots__ = (
        "_lapsed",
        "_next_tag",
        "by_consumers",
        "by_gets",
        "core",
        "ended",
        "now_s",
        "number",
        "prefetch",
        "refused",
        "sink",
        "unacked",
    )

    def __init__(
        self, number: int, core: ChannelCore, sink: Sink, now_s: Callable[[], float]
    ) -> None:
        self.number = number
        self.core = core
        self.sink = sink
        self.now_s = now_s
        self.unacked = Unacked()
        self.ended = False
        self.prefetch = 0
        self.by_consumers = 0
        self.by_gets = 0
        self.refused: dict[Taker, None] = {}
        self._next_tag = 1
        # Tags that were overdue and requeued: a late ack is ignored. Most channels have none.
        self._lapsed: Numbers | None = None

    @property
    def closed(self) -> bool:
        """Nothing may be sent on the channel any more, but for close-ok."""
        return self.core.closed or self.ended

    def take_tags(self, count: int) -> int:
        """Reserve delivery tags; returns the first."""
        first = self._next_tag
        self._next_tag += count
        return first

    def take_range(self, first: int, last: int) -> tuple[list[UnackedRun], int]:
        """Take the deliveries with the tags `first`…`last`, one after the other.

        Returns them, and the first tag that is unknown (`last + 1`: none).
        """
        taken, tag = self.unacked.take_range(first, last)
        while tag <= last and self._lapsed is not None and self._lapsed.discard(tag, 1):
            more, tag = self.unacked.take_range(tag + 1, last)
            taken += more
        return taken, tag

    def through(self, tag: int) -> int:
        """The last tag to take when a client acknowledges all up to `tag`; 0: all there are.

        Raises 406 if the tag is unknown.
        """
        lapsed = self._lapsed
        if not tag:
            self._lapsed = None
            return self._next_tag - 1
        if tag not in self.unacked and (lapsed is None or tag not in lapsed):
            raise precondition_failed(f"unknown delivery tag {tag}")
        if lapsed is not None:
            lapsed.discard(0, tag + 1)
        return tag

    def lapse(self, run: UnackedRun) -> list[UnackedRun]:
        """Take an overdue delivery; one late acknowledgement of each of its tags is ignored."""
        if self._lapsed is None:
            self._lapsed = Numbers()
        self._lapsed.add(run.tag, run.count)
        taken, _ = self.unacked.take_range(run.tag, run.end - 1)
        return taken
