"""The confirms of one channel: every publish gets one answer, in the order of the publishes.

An answer is an ack, or a nack for a message that a queue rejected. It waits until the log is
durable up to the publish's ticket, and until all publishes before it are answered. Answers that
are due together are sent cumulatively: neighbours with the same outcome are one basic.ack or
basic.nack with `multiple`. Promises: exactly one answer for each publish in confirm mode, and no
ack before `durable_lsn` has passed its ticket. Knows nothing of messages and queues.
"""

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from qlog.server.amqp.frames import confirm_frame
from qlog.server.broker.channels.sink import Sink
from qlog.server.broker.stats import Stats


class Publishing(Protocol):
    """The channel that the confirms are sent on."""

    @property
    def number(self) -> int: ...

    @property
    def sink(self) -> Sink: ...

    @property
    def closed(self) -> bool: ...


class Confirms:
    """See the head of this file. `selected`: the channel is in confirm mode."""

    __slots__ = (
        "_answered",
        "_before",
        "_channel",
        "_noted",
        "_stats",
        "_ticket",
        "_waiting",
        "confirmed",
        "selected",
        "sequence",
    )

    def __init__(self, channel: Publishing, stats: Stats) -> None:
        self.confirmed = 0  # publishes that got an ack
        self._before = 0  # publishes before the channel was in confirm mode
        self._stats = stats
        self.selected = False
        self.sequence = 0  # publishes counted; the first is number 1
        self._channel = channel
        self._noted = 0  # publishes up to this number are answered, or in _waiting
        self._answered = 0
        self._ticket = 0  # the log must be durable up to here for all that is noted
        # (ticket, sequence, rejected): the publishes behind the entry before, up to `sequence`.
        self._waiting: deque[tuple[int, int, bool]] = deque()

    def select(self) -> None:
        """confirm.select: publishes from here on are counted, from 1; again: no effect."""
        if not self.selected:
            self.selected = True
            self._before = self.sequence
            self.sequence = 0

    @property
    def published(self) -> int:
        """How many messages the channel has published."""
        return self._before + self.sequence

    @property
    def waiting(self) -> int:
        """How many publishes wait for their answer."""
        return self.sequence - self._answered if self.selected else 0

    def note(self, ticket: int, rejected: Sequence[int] = ()) -> int:
        """The publishes counted since the last call are durable with the ticket (an LSN).

        `rejected`: the sequence numbers, ascending, of those that get a nack. Nothing is sent yet.
        Returns the LSN that makes all durable that are counted.
        """
        if self.sequence == self._noted:
            return self._ticket
        self._stats.published_confirm += self.sequence - self._noted
        ticket = self._ticket = max(self._ticket, ticket)
        waiting = self._waiting
        for sequence in rejected:
            assert self._noted < sequence <= self.sequence
            if sequence - 1 > self._noted:
                waiting.append((ticket, sequence - 1, False))
            waiting.append((ticket, sequence, True))
            self._noted = sequence
        if self._noted < self.sequence:
            waiting.append((ticket, self.sequence, False))
            self._noted = self.sequence
        return ticket

    def confirm_through(self, durable_lsn: int) -> bool:
        """The log is durable up to `durable_lsn`: send what is due. True: no publish waits."""
        waiting = self._waiting
        frames: list[bytes] = []
        while waiting and waiting[0][0] <= durable_lsn:
            _, sequence, rejected = waiting.popleft()
            while waiting and waiting[0][0] <= durable_lsn and waiting[0][2] is rejected:
                sequence = waiting.popleft()[1]
            count = sequence - self._answered
            if not rejected:
                self.confirmed += count
                self._stats.confirmed += count
            self._answered = sequence
            frames.append(
                confirm_frame(self._channel.number, sequence, multiple=count > 1, nack=rejected)
            )
        if frames and not self._channel.closed:
            self._channel.sink.write(frames)
        return not waiting
