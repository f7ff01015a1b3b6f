"""The classic queue: messages to consumers in order, back to their place when they come back.

Promises: each ready message goes to exactly one consumer; nothing here waits. The backlog knows
what is ready (backlog.py), and the dispatch knows whose turn it is (dispatch.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Protocol

from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.errors import access_refused
from qlog.server.amqp.properties import Traits
from qlog.server.broker.numbers import Numbers
from qlog.server.broker.outcome import Outcome
from qlog.server.broker.queues.arrivals import Progress
from qlog.server.broker.queues.backlog import TAKE_BYTES_MAX, Backlog, Taken
from qlog.server.broker.queues.cold_reads import ColdReads
from qlog.server.broker.queues.dispatch import Dispatch
from qlog.server.broker.queues.effective import SHORT_MS, Backoff, Effective
from qlog.server.broker.queues.levels import LaneIds, Levels, capped
from qlog.server.broker.queues.mail import Mail, Receipt
from qlog.server.broker.queues.pump_time import PumpTime
from qlog.server.broker.queues.single_active import SingleActive
from qlog.server.broker.queues.type import Declaration, Owner, QueueType, Taker
from qlog.server.broker.stats import Counts, QueueCounts
from qlog.storage.errors import StorageError
from qlog.storage.lanes.lane import Lane
from qlog.storage.store import Store

# So many consumers of a deleted queue are told of it in one piece. Each takes some microseconds.
CANCELLED_AT_ONCE = 64
# A sweep settles so many stretches of what was purged. Each takes some microseconds.
SWEEP_STRETCHES = 64
# A basic.get that meets so many messages that have expired and are about to leave finds nothing:
# some milliseconds.
EXPIRED_MAX = 256


class Source(Protocol):
    """What a queue delivers from: a backlog, or several as one; see backlog.py."""

    @property
    def takeable(self) -> int: ...

    @property
    def cold(self) -> bool: ...

    def take(self, count_max: int) -> Taken: ...


class Undertaker(Protocol):
    """See features/dead_letter.py."""

    def discard(
        self,
        queue: QueueType,
        backlog: Backlog,
        qseq: int,
        count: int,
        size: int,
        reason: str,
        after_lsn: int,
    ) -> None:
        """Messages that are out leave the queue."""


class Limits(Protocol):
    """See features/overflow.py."""

    def admit(self, queue: ClassicQueue, mail: Mail) -> Receipt:
        """Take messages as far as the queue's limits allow."""

    def trim(self, queue: ClassicQueue) -> None:
        """Drop what exceeds the limits."""


class Times(Protocol):
    """See features/expiry.py."""

    def offer(self, queue: ClassicQueue, lane: Lane[Envelope]) -> None:
        """Messages with a short time are about to come."""

    def rest(self, queue: ClassicQueue) -> bool:
        """No consumer can take more; whether this has to be said again when one can."""

    def came_back(self, queue: ClassicQueue) -> None:
        """Messages that were out are ready again."""

    def reconfigured(self, queue: ClassicQueue) -> None:
        """The queue has other settings."""

    def closed(self, queue: ClassicQueue) -> None:
        """The queue is deleted."""

    def living(self, queue: ClassicQueue, taken: Taken) -> Sequence[Taken]:
        """Those that have not expired; the others leave."""

    def due(self, queue: ClassicQueue, backlog: Backlog, qseq: int, count: int) -> None:
        """The own time of these messages is over."""

    def used(self, queue: ClassicQueue) -> None:
        """Somebody used the queue, or begins not to use it."""


class Once(Protocol):
    """See features/deduplication.py."""

    def publish(self, mail: Mail, admit: Callable[[Mail], Receipt]) -> Receipt:
        """Have those messages taken that are new."""

    def recalling(self) -> Generator[None, None, None]:
        """Look at the messages that are in the queue."""

    def close(self) -> None:
        """The queue is deleted, or has another one."""


class Dues(Protocol):
    """See due.py."""

    def hold(self, lane_id: int, holder: ClassicQueue) -> None:
        """The queue holds the messages of the lane."""

    def release(self, lane_id: int) -> None:
        """The lane is deleted."""

    def expect(self, due_ms: int) -> None:
        """A message was appended that is due then."""


class Backoffs(Protocol):
    """What waits before it is ready again; see features/backoff.py."""

    def add(
        self, backlog: Backlog, first: int, count: int, backoff: Backoff
    ) -> Iterator[tuple[int, int, int]]:
        """Messages that are out wait; gives those that do: first, count, octets."""

    def recall(self, backlogs: Sequence[Backlog]) -> None:
        """After a start: what waited then waits on."""

    def close(self) -> None:
        """The queue is deleted."""


class Host(Protocol):
    """What a queue needs of the vhost around it."""

    def waits(self, queue: ClassicQueue) -> Backoffs:
        """Where messages of a quorum queue wait: `ripened` is called when that is over."""

    @property
    def store(self) -> Store[Envelope]:
        """Where messages are appended."""

    def new_level(self, declared: Declaration, lane_ids: LaneIds, level: int) -> Lane[Envelope]:
        """A lane for one more level of a queue, which has these already."""

    @property
    def dead_letters(self) -> Undertaker:
        """Where messages go that leave the queue without having been consumed."""

    @property
    def overflow(self) -> Limits:
        """What happens at the queue's limits."""

    @property
    def expiry(self) -> Times:
        """The times of messages, and of the queue."""

    @property
    def dues(self) -> Dues:
        """Who tells when messages are due."""

    @property
    def durability(self) -> Progress:
        """Who tells when the log gets further."""

    def in_slices(self, steps: Generator[None, None, None]) -> Outcome[None]:
        """Work that may be long: some of it now, the rest when there is time."""

    @property
    def now_ms(self) -> Callable[[], int]:
        """The wall clock, in milliseconds."""

    @property
    def wake(self) -> Callable[[QueueType], None]:
        """Something may be deliverable: have `pump` called at the end of this tick."""

    @property
    def cold_reads(self) -> ColdReads:
        """What may be read from disk in this tick."""

    @property
    def pump_time(self) -> PumpTime:
        """How long may be delivered in this tick."""

    def unused(self, queue: QueueType) -> None:
        """The last consumer of an auto-delete queue left."""

    def once(self, declared: Declaration, lanes: Callable[[], Collection[Lane[Envelope]]]) -> Once:
        """What keeps messages from coming into a queue twice."""


class ClassicQueue:
    """See the head of this file, and `QueueType`.

    Arguments: `lanes` hold its messages, by priority (levels.py); `owner` is the connection of an
    exclusive queue.
    """

    # A consumer of higher priority takes over from a single active one.
    preemptive = False
    # Messages of different levels are appended in the order in which they came (levels.py).
    levels_in_turn = False

    def __init__(
        self,
        host: Host,
        declared: Declaration,
        effective: Effective,
        lanes: Mapping[int, Lane[Envelope]],
        owner: Owner | None,
    ) -> None:
        self.declared = declared
        self.effective = effective
        self.name = declared.name
        self.owner = owner
        self.deleted = False
        self.counts = QueueCounts(Counts())
        self._host = host
        self._store = host.store
        self._wake = host.wake
        self._dead_letters = host.dead_letters
        self._overflow = host.overflow
        self._expiry = host.expiry
        self._short = False  # messages came whose time is short
        self.idle = False
        for lane in lanes.values():
            host.dues.hold(lane.id, self)
        self._cold_reads = host.cold_reads
        self._pump_time = host.pump_time
        self._dispatch: Dispatch | SingleActive
        if declared.arguments.single_active:
            self._dispatch = SingleActive(preemptive=self.preemptive)
        else:
            self._dispatch = Dispatch()
        self._levels = Levels(
            lanes,
            self._level_of(),
            self._new_level,
            self._new_backlog,
            in_turn=self.levels_in_turn,
        )
        self.backlogs = self._levels.backlogs  # those of the highest level first
        self._sources: Sequence[Source] = self.backlogs  # in the order in which they are taken from
        self._once: Once | None = None
        for _ in self._deduplicating():
            pass  # a start waits for it
        self._see_whether_idle()

    def _new_backlog(self, lane: Lane[Envelope]) -> Backlog:
        return Backlog(lane)

    def _level_of(self) -> Callable[[Traits], int] | None:
        return capped(self.declared.arguments.level_max)

    def __str__(self) -> str:
        return str(self.declared)

    @property
    def lane(self) -> Lane[Envelope]:
        """Where messages for it are appended if it is plain."""
        return self.backlogs[-1].lane

    @property
    def lanes(self) -> Collection[Lane[Envelope]]:
        """All lanes that hold its messages."""
        return [backlog.lane for backlog in self.backlogs]

    @property
    def after_lsn(self) -> int:
        """What was handed on is on the disk elsewhere when the log is durable up to here."""
        return max(backlog.after_lsn for backlog in self.backlogs)

    @property
    def timeout_s(self) -> float:
        """How long what basic.get took may stay unacknowledged, in seconds; 0: for ever."""
        return self.effective.consumer_timeout_s

    @property
    def ready(self) -> int:
        """Messages that wait for a consumer."""
        count = 0
        for backlog in self.backlogs:
            count += backlog.ready
        return count

    @property
    def limit_count(self) -> int:
        """How many messages count for the queue's limits: what is ready."""
        return self.ready

    @property
    def limit_bytes(self) -> int:
        """The octets of their bodies."""
        return sum(backlog.ready_bytes for backlog in self.backlogs)

    @property
    def unacked(self) -> int:
        """Messages that are out."""
        return sum(backlog.out for backlog in self.backlogs)

    @property
    def ready_bytes(self) -> int:
        """The octets of what waits for a consumer."""
        return sum(backlog.ready_bytes for backlog in self.backlogs)

    @property
    def unacked_bytes(self) -> int:
        """The octets of what is out."""
        return sum(backlog.out_bytes for backlog in self.backlogs)

    @property
    def active_taker(self) -> Taker | None:
        """The single active consumer; None if there is none, or all are active."""
        return self._dispatch.active if isinstance(self._dispatch, SingleActive) else None

    @property
    def published(self) -> int:
        """How many messages came to it since it is counted."""
        came = sum(backlog.lane.next_qseq for backlog in self.backlogs)
        return came + self.counts.passed_on - self.counts.published_before

    def count_for(self, of_type: Counts) -> None:
        """Begin to count, for all queues of its type as well."""
        self.counts = QueueCounts(of_type)
        self.counts.published_before = sum(backlog.lane.next_qseq for backlog in self.backlogs)

    def reconfigure(self, effective: Effective) -> None:
        """Policies have changed: go by these settings from now on."""
        before, self.effective = self.effective, effective
        if effective.deduplicates != before.deduplicates:
            self._host.in_slices(self._deduplicating())
        self._expiry.reconfigured(self)
        self._see_whether_idle()
        self._wake(self)

    def _deduplicating(self) -> Generator[None, None, None]:
        """Begin, or cease, to keep messages from coming twice."""
        if self._once is not None:
            self._once.close()
            self._once = None
        if self.effective.deduplicates:
            self._once = self._host.once(self.declared, lambda: self.lanes)
            yield from self._once.recalling()

    def _new_level(self, lane_ids: LaneIds, level: int) -> Lane[Envelope]:
        lane = self._host.new_level(self.declared, lane_ids, level)
        self._host.dues.hold(lane.id, self)
        return lane

    def _see_whether_idle(self) -> None:
        """Somebody has come, or gone, or what is to be seen to has changed."""
        self.idle = not (
            len(self._dispatch)
            or self._short
            or self.effective.message_ttl_ms is not None
            or self.effective.limited
        )

    # -- takers ------------------------------------------------------------------------------

    @property
    def takers(self) -> Collection[Taker]:
        """Its consumers, in the order they came."""
        return self._dispatch.takers

    @property
    def taker_count(self) -> int:
        """How many consumers queue.declare-ok tells of."""
        return len(self._dispatch)

    def admit(self, *, exclusive: bool, shares_prefetch: bool, no_ack: bool, prefetch: int) -> None:
        """One more wants to consume; see `QueueType`."""
        if not self._dispatch.admit(exclusive=exclusive):
            raise access_refused(f"{self} in exclusive use")

    def add_taker(self, taker: Taker) -> None:
        """Register a consumer that `admit` lets in."""
        self._dispatch.add(taker)
        self.idle = False
        self.feed(taker)

    def remove_taker(self, taker: Taker) -> None:
        """Forget a consumer; an auto-delete queue goes with its last one."""
        self._dispatch.remove(taker)
        self._see_whether_idle()
        if self.deleted:
            return
        if not self._dispatch:
            self._expiry.used(self)
        if len(self._dispatch):
            self._wake(self)  # another one may be the active consumer now
        elif self.declared.auto_delete:
            self._host.unused(self)

    def feed(self, taker: Taker) -> None:
        """The consumer may be able to take more again: let it have its turn."""
        self._dispatch.feed(taker)
        self._wake(self)

    def pump(self) -> bool:
        """Deliver until nothing is ready or nobody can take more; see `QueueType`.

        Raises CorruptLog and OutOfDescriptors; what was taken until then is delivered.
        """
        next_turn, cold_reads, time = self._dispatch.next, self._cold_reads, self._pump_time
        ttl_ms = self.effective.message_ttl_ms
        for source in self._sources:
            while (ready := source.takeable) > 0:
                if time.up or (cold_reads.spent and source.cold):
                    return False
                turn = next_turn(ready)
                if turn is None:
                    if self._dispatch.hungry:
                        return False
                    self._trim()
                    self._rest()
                    return True
                taker, count = turn
                taken = source.take(count)
                if ttl_ms is None and taken.dues_ms is None:
                    taker.deliver(taken)
                else:
                    for part in self._expiry.living(self, taken):
                        taker.deliver(part)
                time.check()
        self._rest()
        return True

    def _rest(self) -> None:
        if self._short or self.effective.message_ttl_ms is not None:
            self._short = self._expiry.rest(self)
            self._see_whether_idle()

    def _trim(self) -> None:
        if self.effective.limited:
            self._overflow.trim(self)

    def _take(self, count_max: int) -> Taken | None:
        for source in self._sources:
            if source.takeable > 0:
                return source.take(count_max)
        return None

    def head(self, count_max: int) -> tuple[Backlog, int] | None:
        """What is first of what is ready, and would be dropped first; see `overflow.Limited`."""
        for backlog in self.backlogs:
            if backlog.ready > 0:
                return backlog, count_max
        return None

    # -- messages ----------------------------------------------------------------------------

    def pass_on(self, envelopes: Sequence[Envelope], bodies: Sequence[bytes]) -> bool:
        """Give messages straight to a taker that acknowledges nothing; see `QueueType`."""
        count = len(bodies)
        taker = self._dispatch.first(count)
        if (
            taker is None
            or not taker.no_ack
            or self.ready
            or (count > 1 and sum(map(len, bodies)) > TAKE_BYTES_MAX)  # more than one hand
            or not taker.receive(envelopes, bodies)
        ):
            return False
        self._dispatch.served(taker)
        self.counts.passed_on += count
        return True

    def publish(self, mail: Mail) -> Receipt:
        """Take messages for which an append to `lane` is not all; see `QueueType`."""
        if self._once is not None:
            return self._once.publish(mail, self._admit)
        return self._admit(mail)

    def _admit(self, mail: Mail) -> Receipt:
        if self.effective.limited:
            return self._overflow.admit(self, mail)
        return Receipt(self.append(mail))

    def append(self, mail: Mail) -> int:
        """Take messages, whatever the limits are; the LSN that makes them durable, or 0."""
        persistent = (mail.persistent or self.declared.keeps_all) and self.declared.durable
        lsn = 0
        for lane, sorted_mail in self._levels.sorted(mail):
            for part, dues_ms in sorted_mail.by_time():
                lsn = max(lsn, self._append_to(lane, part, dues_ms, persistent))
        return lsn if persistent else 0

    def _append_to(
        self, lane: Lane[Envelope], mail: Mail, dues_ms: Sequence[int] | None, persistent: bool
    ) -> int:
        """Append to one lane messages that all have a time of their own, or none of which has."""
        ttl_ms, soonest_ms = self.effective.message_ttl_ms, None
        if dues_ms is not None:
            soonest_ms = min(dues_ms)
            own_ms = soonest_ms - mail.now_ms
            ttl_ms = own_ms if ttl_ms is None else min(ttl_ms, own_ms)
        if ttl_ms is not None and ttl_ms < SHORT_MS:
            self._short = True
            self.idle = False
            self._expiry.offer(self, lane)
        lsn = self._store.append(
            [lane],
            mail.envelopes,
            mail.bodies,
            persistent=persistent,
            now_ms=mail.now_ms,
            dues_ms=dues_ms,
        )
        if soonest_ms is not None:
            self._host.dues.expect(soonest_ms)
        return lsn

    def due(self, lane_id: int, qseq: int, count: int) -> int:
        """The own time of these messages is over, wherever they are; see `due.Holder`.

        Raises CorruptLog.
        """
        for backlog in self.backlogs:
            if backlog.lane.id == lane_id:
                self._expiry.due(self, backlog, qseq, count)
                self._wake(self)  # what waits to be offered is
        return count

    def get(self) -> Taken | None:
        """Take one message for basic.get; consumers come first. None: nothing is ready.

        A single active consumer is none's hindrance, as in RabbitMQ 4.0.5.
        """
        self._expiry.used(self)
        self._pump_first()
        for _ in range(EXPIRED_MAX):
            taken = self._take(1)
            if taken is None or taken.dues_ms is None and self.effective.message_ttl_ms is None:
                return taken
            if self._expiry.living(self, taken):
                return taken
        return None

    def arriving(self) -> Outcome[None] | None:
        """None: all that is ready may be taken at once."""
        return None

    def _pump_first(self) -> None:
        """Consumers come first; those for whom this tick has no more time or reads go on later."""
        if not self.pump():
            self._wake(self)

    def requeue(
        self, backlog: Backlog, qseq: int, count: int, size: int, *, failed: bool = False
    ) -> None:
        """Messages that are out, `size` octets in all, come back to their place."""
        backlog.give_back(qseq, count, size)
        self._came_back()

    def requeue_all(self, backlog: Backlog, numbers: Numbers, size: int, *, lost: bool) -> None:
        """The same for messages anywhere, all at once."""
        backlog.give_all_back(numbers, size)
        self._came_back()

    def _came_back(self) -> None:
        if not self.deleted:
            with suppress(StorageError):  # the next pump meets the same error, and it is reported
                self._trim()
            self._expiry.came_back(self)
            self._wake(self)

    def discard(
        self, backlog: Backlog, qseq: int, count: int, size: int, after_lsn: int = 0
    ) -> None:
        """Messages that are out were rejected, and not to be requeued."""
        if self.effective.dead_letter_exchange is None:
            backlog.settle(qseq, count, size, after_lsn)
        else:
            self._dead_letters.discard(self, backlog, qseq, count, size, "rejected", after_lsn)

    def purge(self) -> int:
        """All that is ready is gone; what is out stays out. Returns how many there were.

        `sweep` is to be called until it has nothing left to do. Raises CorruptLog.
        """
        self._pump_first()
        return sum(backlog.purge() for backlog in self.backlogs)

    def sweep(self) -> bool:
        """Some of the work that a purge left, for less than a millisecond; True: all is done."""
        return all(backlog.sweep(SWEEP_STRETCHES) for backlog in self.backlogs)

    def close(self) -> None:
        """It is deleted: it has no messages any more. `cancel_takers` is to follow."""
        self.deleted = True
        self._expiry.closed(self)
        if self._once is not None:
            self._once.close()
            self._once = None
        self._levels.close()
        for backlog in self.backlogs:
            self._host.dues.release(backlog.lane.id)
            backlog.close()

    def cancel_takers(self) -> bool:
        """Tell some of those who consume from it that it is gone; True: nobody is left."""
        for taker in list(islice(self.takers, CANCELLED_AT_ONCE)):
            taker.queue_deleted()
        return not self.takers
