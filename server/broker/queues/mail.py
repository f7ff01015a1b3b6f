"""Messages on their way into a queue for which an append alone is not enough, and what became of
them.

A queue with a limit, a message with an expiration: such messages are given to each of their queues
(`QueueType.publish`), which looks at their traits. All other messages go to the store at once, for
all of their queues together (`Targets.plain`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.properties import Traits
from qlog.server.broker.outcome import Outcome


class Mail(NamedTuple):
    """Messages, as parallel sequences, all of them persistent or all of them not.

    `now_ms` is when they came (wall clock, ms). Nobody may change the sequences.
    """

    persistent: bool
    traits: Sequence[Traits]
    envelopes: Sequence[Envelope]
    bodies: Sequence[bytes]
    now_ms: int

    def part(self, start: int, stop: int) -> Mail:
        """The messages from index `start` to before `stop`."""
        if start == 0 and stop == len(self.bodies):
            return self
        return Mail(
            self.persistent,
            self.traits[start:stop],
            self.envelopes[start:stop],
            self.bodies[start:stop],
            self.now_ms,
        )

    def chosen(self, indices: Sequence[int]) -> Mail:
        """The messages with these indices, which ascend."""
        if len(indices) == len(self.bodies):
            return self
        return Mail(
            self.persistent,
            [self.traits[index] for index in indices],
            [self.envelopes[index] for index in indices],
            [self.bodies[index] for index in indices],
            self.now_ms,
        )

    def by_time(self) -> Iterator[tuple[Mail, list[int] | None]]:
        """Parts with the times at which their messages expire, None for those that have none.

        Wall clock, ms. The queue's own time does not count here.
        """
        times = [traits.expiration for traits in self.traits]
        start, count = 0, len(times)
        while start < count:
            stop = start + 1
            while stop < count and (times[stop] is None) is (times[start] is None):
                stop += 1
            part = self.part(start, stop)
            if times[start] is None:
                yield part, None
            else:
                yield part, [self.now_ms + _checked(time_ms) for time_ms in times[start:stop]]
            start = stop


class Receipt(NamedTuple):
    """What became of mail: an LSN, and who was turned away.

    `lsn`: when the log is durable up to here, all that was taken is; 0: nothing has to be durable.
    `rejected`: the indices of the messages that were not taken, ascending. `eased`: done when the
    queue has caught up with work that the messages brought; their publisher should wait for it
    before more is read from him. None: he need not wait.
    """

    lsn: int
    rejected: Sequence[int] = ()
    eased: Outcome[None] | None = None


def _checked(expiration: int | str | None) -> int:
    """The expiration of a message that has one; publishers are refused what is no number."""
    assert isinstance(expiration, int)
    return expiration
