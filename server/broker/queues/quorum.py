"""The quorum queue, on the same log as all other queues: it has no replicas of its own.

It is a classic queue (classic.py) but for what RabbitMQ 4.0 does otherwise in this type:

- Messages are durable, whatever they say of themselves, and consumers get them only when they are
  on the disk.
- What comes back is counted, told and limited, and delivered again in the order in which it came
  back (returns.py). Each message's count survives a crash; deliveries that a crash of the broker
  itself ends are not counted.
- Any consumer is let in, nobody is exclusive, and a prefetch for a whole channel is refused.
- There are two priorities, and nobody has to ask for them (two_priorities.py).
- With a single active consumer that one alone counts, basic.get is refused, and a consumer of
  higher priority takes over.

Which arguments and properties are refused says arguments.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress

from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.errors import not_implemented, resource_locked
from qlog.server.amqp.properties import Traits
from qlog.server.broker.numbers import Numbers
from qlog.server.broker.outcome import Outcome
from qlog.server.broker.queues.arrivals import Arrivals
from qlog.server.broker.queues.backlog import (
    TAKE_BYTES_MAX,
    TAKE_COUNT_MAX,
    Backlog,
    Taken,
    Withdrawn,
)
from qlog.server.broker.queues.classic import Backoffs, ClassicQueue, Host
from qlog.server.broker.queues.effective import Effective
from qlog.server.broker.queues.mail import Mail
from qlog.server.broker.queues.returns import Returns, Turns, counted, note_return
from qlog.server.broker.queues.two_priorities import TwoPriorities
from qlog.server.broker.queues.type import Declaration, Owner
from qlog.storage.errors import CorruptLog
from qlog.storage.lanes.lane import Lane

DELIVERY_LIMIT = "delivery_limit"


class QuorumBacklog(Backlog):
    """The ready set of a quorum queue: only what is durable is taken, and returns in their order.

    They come in this order: `_returns`; `_passed`, which the cursor has passed though nobody took
    it; what is at the cursor, and above it. `_behind` has what comes before a qseq of these.
    """

    __slots__ = ("_behind", "_passed", "_returns", "_turns", "arrivals")

    def __init__(
        self, lane: Lane[Envelope], arrivals: Arrivals, turns: Turns | None = None
    ) -> None:
        super().__init__(lane)
        self.arrivals = arrivals
        self._turns = Turns() if turns is None else turns
        self._returns = Returns()
        self._passed = Returns()
        self._behind: deque[tuple[int, Returns]] = deque()  # by qseqs

    @property
    def bound(self) -> int:
        """Messages from this qseq on are not on the disk yet."""
        return self.arrivals.bound

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
        return self.lane.on_disk(self._choose(1)[1])

    def take(self, count_max: int, bytes_max: int = TAKE_BYTES_MAX) -> Taken:
        """Take the next messages that are on the disk, as `Backlog.take`; one must be there."""
        source, first, count = self._choose(min(count_max, TAKE_COUNT_MAX))
        assert count, f"lane {self.lane.id}: {self.takeable} may be taken, but none is there"
        if source is None:
            taken = self._take_next(count, bytes_max)
        else:
            taken = self._take_returned(first, count, bytes_max)
            source.advance(taken.first_qseq + len(taken.bodies))
        if taken.redelivered:
            _tell_counts(taken)
        return taken

    def _choose(self, count_max: int) -> tuple[Returns | None, int, int]:
        """The stretch that comes next: the list that has it, the first message, how many.

        The list is None for messages at the cursor.
        """
        present = self._returned
        if present.count:
            found = self._returns.next(present, count_max)
            if found is not None:
                return self._returns, *found
        return self._choose_fresh(count_max)

    def _choose_fresh(self, count_max: int) -> tuple[Returns | None, int, int]:
        """The same without what came back, which is there no more, or goes before."""
        present, end = self._returned, self.bound
        behind: Returns | None = None
        if present.count:
            found = self._passed.next(present, count_max)
            if found is not None and found[0] < end:
                return self._passed, found[0], min(found[1], end - found[0])
            while self._behind:
                before, source = self._behind[0]
                found = source.next(present, count_max)
                if found is not None:
                    behind, end = source, min(end, before)
                    break
                self._behind.popleft()
        start, stop = self.lane.settled.stretch(self._cursor, end, count_max)
        if start == stop and behind is not None:
            assert found is not None
            return behind, *found
        return None, start, stop - start

    @property
    def passed(self) -> int:
        """How many messages were taken, or left from the front, not counting what came back."""
        return self._cursor

    @property
    def turn(self) -> int | None:
        """Which turn of what came back is first here (`Turns`); None: nothing came back."""
        return self._returns.turn(self._returned) if self._returned.count else None

    def fresh(self, count_max: int) -> tuple[int, int]:
        """The first stretch that did not come back: qseq and length, which may be 0."""
        _, first, count = self._choose_fresh(count_max)
        return first, count

    def give_back(self, qseq: int, count: int, size: int) -> None:
        """Messages that are out, `size` octets in all, are ready again, behind other returns."""
        super().give_back(qseq, count, size)
        self._returns.add(qseq, count, self._turns.of(self))

    def give_all_back(self, numbers: Numbers, size: int, order: Returns | None = None) -> None:
        """The same for messages anywhere, all at once, in the order of the queue.

        `order` has them already, and may have others, which are not in the queue any more.
        """
        super().give_all_back(numbers, size)
        self._returns.join(in_order(numbers) if order is None else order, self._turns.of(self))

    def put_behind(self, numbers: Numbers, size: int, order: Returns) -> None:
        """The same, but all messages that are in the queue now are taken before these."""
        super().give_all_back(numbers, size)
        before = self.lane.next_qseq
        if not self._behind or self._behind[-1][0] != before:
            self._behind.append((before, Returns()))
        self._behind[-1][1].join(order)

    def withdraw_at(self, qseq: int, count: int) -> list[Withdrawn]:
        """Those that are ready among these messages are out; see `Backlog.withdraw_at`."""
        before = self._cursor
        withdrawn = super().withdraw_at(qseq, count)
        if self._cursor > before:
            self._passed.add(before, self._cursor - before)
        return withdrawn

    def purge(self) -> int:
        """Every ready message leaves; see `Backlog.purge`."""
        for source in (self._returns, self._passed, self._behind):
            source.clear()
        return super().purge()


def in_order(numbers: Numbers) -> Returns:
    """These messages, in the order of the queue."""
    order = Returns()
    for first, count in numbers:
        order.add(first, count)
    return order


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
    levels_in_turn = True  # two_priorities.py asks which message came before which
    _waits: Backoffs | None = None
    _pair: TwoPriorities | None = None  # once a message of high priority came

    def __init__(
        self,
        host: Host,
        declared: Declaration,
        effective: Effective,
        lanes: Mapping[int, Lane[Envelope]],
        owner: Owner | None,
    ) -> None:
        self._turns = Turns()
        super().__init__(host, declared, effective, lanes, owner)
        self._see_levels()

    def _see_whether_idle(self) -> None:
        """It never is: what came in a tick is noted, to know when it is on the disk."""

    def _level_of(self) -> Callable[[Traits], int] | None:
        return lambda traits: int(traits.is_high)

    def _see_levels(self) -> None:
        """From the first message of high priority on there are two backlogs."""
        if len(self.backlogs) > 1 and self._pair is None:
            high, low = self._quorum_backlogs
            self._pair = TwoPriorities(high, low, low.passed)
            self._sources = [self._pair]

    @property
    def _quorum_backlogs(self) -> Iterator[QuorumBacklog]:
        for backlog in self.backlogs:
            assert isinstance(backlog, QuorumBacklog)
            yield backlog

    def wait_on(self) -> None:
        """After a start: what came back and waited is out, as it was."""
        self._waits = self._host.waits(self)
        self._waits.recall(self.backlogs)

    def ripened(self, backlog: Backlog, numbers: Numbers, size: int, order: Returns) -> None:
        """Messages have waited long enough, and are ready again in this order."""
        assert isinstance(backlog, QuorumBacklog)
        backlog.give_all_back(numbers, size, order)
        self._came_back()

    def close(self) -> None:
        """It is deleted; see `ClassicQueue.close`."""
        super().close()
        for backlog in self._quorum_backlogs:
            backlog.arrivals.close()
        if self._waits is not None:
            self._waits.close()
            self._waits = None

    def _new_backlog(self, lane: Lane[Envelope]) -> Backlog:
        host = self._host
        arrivals = Arrivals(lane, host.store, host.durability, self._look_again)
        return QuorumBacklog(lane, arrivals, self._turns)

    def _append_to(
        self, lane: Lane[Envelope], mail: Mail, dues_ms: Sequence[int] | None, persistent: bool
    ) -> int:
        self._see_levels()
        if lane is not self.lane:
            assert self._pair is not None
            self._pair.comes(lane.next_qseq, self.lane.next_qseq)
        return super()._append_to(lane, mail, dues_ms, persistent)

    def head(self, count_max: int) -> tuple[Backlog, int] | None:
        """What is first of what is ready, and would be dropped first."""
        if self._pair is None:
            return super().head(count_max)
        high, low = self.backlogs
        return self._pair.head(high, low, count_max, takeable=bool(self.takers))

    def _look_again(self) -> None:
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
        coming = 0
        for backlog in self.backlogs:
            lane, bound = backlog.lane, backlog.bound
            coming += lane.bytes_of(bound, lane.next_qseq - bound)
        return super().limit_bytes - coming

    # -- takers ------------------------------------------------------------------------------

    @property
    def taker_count(self) -> int:
        """How many consumers queue.declare-ok tells of: the single active one alone."""
        count = len(self.takers)
        return min(count, 1) if self.declared.arguments.single_active else count

    def admit(self, *, exclusive: bool, shares_prefetch: bool, no_ack: bool, prefetch: int) -> None:
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
        if self.declared.arguments.single_active:
            return None
        waiting = [each for each in self._quorum_backlogs if each.ready > 0]
        if not waiting or any(each.takeable for each in waiting):
            return None
        return waiting[0].arrivals.next

    def requeue(
        self, backlog: Backlog, qseq: int, count: int, size: int, *, failed: bool = False
    ) -> None:
        """Messages that are out come back, are counted, and leave if that is too often."""
        assert isinstance(backlog, QuorumBacklog)
        numbers = Numbers()
        numbers.add(qseq, count)
        self._host.in_slices(self._coming_back(backlog, numbers, size, lost=False, failed=failed))

    def requeue_all(self, backlog: Backlog, numbers: Numbers, size: int, *, lost: bool) -> None:
        """The same for messages anywhere, all at once; if they are very many, in a moment."""
        assert isinstance(backlog, QuorumBacklog)
        self._host.in_slices(self._coming_back(backlog, numbers, size, lost=lost, failed=lost))

    def _coming_back(
        self, backlog: QuorumBacklog, numbers: Numbers, size: int, *, lost: bool, failed: bool
    ) -> Generator[None, None, None]:
        limit, backoff = self.effective.delivery_limit, self.effective.backoff
        order = Returns()
        for first, count in numbers:
            if self.deleted:
                return
            order.add(first, count)
            for low, length in note_return(backlog.lane, first, count, limit):
                try:
                    gone = backlog.lane.bytes_of(low, length)
                except CorruptLog:
                    continue  # it comes back: who is to get it next reports the damage
                numbers.discard(low, length)
                size -= gone
                self._dead_letters.discard(self, backlog, low, length, gone, DELIVERY_LIMIT, 0)
            yield
        if backoff is not None and backoff.concerns(failed=failed):
            waits = self._waits = self._waits or self._host.waits(self)
            for first, count in numbers:
                with suppress(CorruptLog):  # it comes back: who is to get it next reports it
                    for low, length, waiting in waits.add(backlog, first, count, backoff):
                        numbers.discard(low, length)
                        size -= waiting
                yield
            if self.deleted or not numbers.count:
                return
            order = in_order(numbers)
        if limit is None and not lost:
            backlog.put_behind(numbers, size, order)
        else:
            backlog.give_all_back(numbers, size, order)
        self._came_back()
