"""The quorum queue, on the same log as all other queues: it has no replicas of its own.

It is a classic queue (classic.py) but for what RabbitMQ 4.0 does otherwise in this type:

- Messages are durable, whatever they say of themselves, and consumers get them only when they are
  on the disk.
- What comes back is counted, told and limited, and delivered again in the order in which it came
  back (returns.py). Each message's count survives a crash; deliveries that a crash of the broker
  itself ends are not counted.
- Any consumer is let in, nobody is exclusive, and a prefetch for a whole channel is refused.
- With a single active consumer that one alone counts, basic.get is refused, and a consumer of
  higher priority takes over.

Which arguments and properties are refused says arguments.py.
"""

from __future__ import annotations

from collections.abc import Generator

from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.errors import not_implemented, resource_locked
from qlog.server.broker.numbers import Numbers
from qlog.server.broker.outcome import Outcome
from qlog.server.broker.queues.arrivals import Arrivals
from qlog.server.broker.queues.backlog import TAKE_BYTES_MAX, Backlog, Taken
from qlog.server.broker.queues.classic import ClassicQueue
from qlog.server.broker.queues.returns import Returns, counted, note_return
from qlog.storage.errors import CorruptLog
from qlog.storage.lanes.lane import Lane

DELIVERY_LIMIT = "delivery_limit"


class QuorumBacklog(Backlog):
    """The ready set of a quorum queue: only what is durable is taken, and returns in their order."""

    __slots__ = ("_arrivals", "_returns")

    def __init__(self, lane: Lane[Envelope], arrivals: Arrivals) -> None:
        super().__init__(lane)
        self._arrivals = arrivals
        self._returns = Returns()

    @property
    def bound(self) -> int:
        """Messages from this qseq on are not on the disk yet."""
        return self._arrivals.bound

    @property
    def takeable(self) -> int:
        """How many of those that are ready are on the disk.

        What has left the queue from behind the bound may count as one that is not there yet.
        """
        ready = self.ready
        if ready <= 0:
            return 0
        bound, end = self.bound, self.lane.next_qseq
        if bound == end:
            return ready
        return max(ready - (end - bound - self.lane.settled.between(bound, end)), 0)

    @property
    def cold(self) -> bool:
        """What is taken next has to be read from disk. There must be something."""
        found = self._returns.next(self._returned, 1)
        return super().cold if found is None else self.lane.on_disk(found[0])

    def take(self, count_max: int, bytes_max: int = TAKE_BYTES_MAX) -> Taken:
        """Take the next messages that are on the disk, as `Backlog.take`; one must be there."""
        found = self._returns.next(self._returned, count_max)
        if found is not None:
            taken = self._take_returned(*found, bytes_max)
            self._returns.advance(taken.first_qseq + len(taken.bodies))
        elif self._returned.count:
            taken = self._take_returned(*self._returned.lowest(count_max), bytes_max)
        else:
            bound = self._arrivals.bound
            start, stop = self.lane.settled.stretch(self._cursor, bound, count_max)
            assert start < stop, f"lane {self.lane.id}: nothing below {bound} is ready"
            taken = self._take_next(stop - start, bytes_max)
        if taken.redelivered:
            _tell_counts(taken)
        return taken

    def give_back(self, qseq: int, count: int, size: int) -> None:
        """Messages that are out, `size` octets in all, are ready again, behind other returns."""
        super().give_back(qseq, count, size)
        self._returns.add(qseq, count)

    def give_all_back(self, numbers: Numbers, size: int) -> None:
        """The same for messages anywhere, all at once, in the order of the queue."""
        super().give_all_back(numbers, size)
        for first, count in numbers:
            self._returns.add(first, count)

    def purge(self) -> int:
        """Every ready message leaves; see `Backlog.purge`."""
        self._returns.clear()
        return super().purge()


def _tell_counts(taken: Taken) -> None:
    """Say in the headers of messages how often they came back."""
    counts = taken.backlog.lane.attempts_of(taken.first_qseq, len(taken.bodies))
    if any(counts):
        taken.envelopes = [
            counted(envelope, count) if count else envelope
            for envelope, count in zip(taken.envelopes, counts, strict=True)
        ]


class QuorumQueue(ClassicQueue):
    """See the head of this file, and `QueueType`."""

    preemptive = True

    def _new_backlog(self, lane: Lane[Envelope]) -> Backlog:
        host = self._host
        self._arrivals = Arrivals(lane, host.store, host.durability, self._look_again)
        return QuorumBacklog(lane, self._arrivals)

    def _look_again(self) -> None:
        if not self.deleted:
            self._wake(self)

    @property
    def limit_count(self) -> int:
        """What is not on the disk yet does not count, if consumers may take it as soon as it is."""
        if not self.takers:
            return super().limit_count
        return sum(backlog.takeable for backlog in self.backlogs)

    @property
    def limit_bytes(self) -> int:
        """The octets of what counts. Raises CorruptLog."""
        if not self.takers:
            return super().limit_bytes
        lane, bound = self.lane, self._arrivals.bound
        return super().limit_bytes - lane.bytes_of(bound, lane.next_qseq - bound)

    # -- takers ------------------------------------------------------------------------------

    @property
    def taker_count(self) -> int:
        """How many consumers queue.declare-ok tells of: the single active one alone."""
        count = len(self.takers)
        return min(count, 1) if self.declared.arguments.single_active else count

    def admit(self, *, exclusive: bool, shares_prefetch: bool) -> None:
        """Anybody may consume, but for a channel with a prefetch for all of its consumers (540)."""
        if shares_prefetch:
            raise not_implemented(f"{self} does not support global qos")

    # -- messages ----------------------------------------------------------------------------

    def get(self) -> Taken | None:
        """Take one message for basic.get. Raises 405 with a single active consumer."""
        if self.declared.arguments.single_active:
            raise resource_locked(
                f"cannot obtain access to locked {self}. basic.get operations are not supported by "
                "quorum queues with single active consumer"
            )
        return super().get()

    def arriving(self) -> Outcome[None] | None:
        """Done when more is on the disk, if nothing of what is ready is there yet; else None."""
        if self.ready <= 0 or self.backlogs[0].takeable or self.declared.arguments.single_active:
            return None
        return self._arrivals.next

    def requeue(self, backlog: Backlog, qseq: int, count: int, size: int) -> None:
        """Messages that are out come back, are counted, and leave if that is too often."""
        numbers = Numbers()
        numbers.add(qseq, count)
        self.requeue_all(backlog, numbers, size)

    def requeue_all(self, backlog: Backlog, numbers: Numbers, size: int) -> None:
        """The same for messages anywhere, all at once; if they are very many, in a moment."""
        self._host.in_slices(self._coming_back(backlog, numbers, size))

    def _coming_back(
        self, backlog: Backlog, numbers: Numbers, size: int
    ) -> Generator[None, None, None]:
        limit = self.effective.delivery_limit
        for first, count in numbers:
            if self.deleted:
                return
            for low, length in note_return(backlog.lane, first, count, limit):
                try:
                    gone = backlog.lane.bytes_of(low, length)
                except CorruptLog:
                    continue  # it comes back: who is to get it next reports the damage
                numbers.discard(low, length)
                size -= gone
                self._dead_letters.discard(self, backlog, low, length, gone, DELIVERY_LIMIT, 0)
            yield
        backlog.give_all_back(numbers, size)
        self._came_back()
