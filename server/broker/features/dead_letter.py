"""Messages that leave a queue without having been consumed: dropped, or handed to an exchange.

Promises, for a queue with a dead-letter exchange:

- A message that is rejected, expires, or is dropped at a limit is published to that exchange, in
  the order in which such messages leave the queue, with RabbitMQ's headers (deaths.py).
- The copies are on the disk before the messages are settled: a crash, or a full disk, may leave
  both, and never neither. Where no copy has to be durable, the messages are settled at once.
- A message that would go round for ever by itself is dropped, and so is one for which there is no
  exchange or no queue, or that a queue rejects (rabbit_dead_letter). It is counted. With
  `x-dead-letter-strategy=at-least-once` only a cycle is dropped: all others stay in their queue,
  and are handed over when that is possible (rabbit_fifo_dlx_worker). The queues that have taken
  such a message do not get it again, unless the broker is started anew meanwhile.
- However many messages leave, nobody waits for them but who publishes to a queue that drops them:
  they are handed over by a job for each queue, which pauses while the disk is behind.

A message that waits here is out: neither ready, nor settled. A message that cannot be read stays
in its queue, unacknowledged until the next start; the log says so. Knows no channel.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from functools import partial
from typing import NamedTuple, Protocol

from qlog.routing.exchange import Exchange
from qlog.server.amqp.envelope import Envelope
from qlog.server.broker.features.deaths import Copy, Death, copy_of
from qlog.server.broker.features.deduplication import REPEATED
from qlog.server.broker.jobs import Jobs, Steps
from qlog.server.broker.outcome import Outcome
from qlog.server.broker.post import PostOffice
from qlog.server.broker.queues.backlog import Backlog, Taken
from qlog.server.broker.queues.mail import Mail
from qlog.server.broker.queues.targets import Keeper, Routes, Targets
from qlog.server.broker.queues.type import QueueType
from qlog.server.broker.stats import Stats
from qlog.server.broker.timers import Timers
from qlog.storage.errors import CorruptLog, OutOfDescriptors
from qlog.storage.store import Store

logger = logging.getLogger("qlog.broker")

# A job reads and publishes so many messages between two looks at the clock: about a millisecond if
# all are different.
LETTERS_AT_ONCE = 32
# While the disk is behind, or file descriptors have run out, all queues wait for so long.
PAUSE_S = 0.02
# A queue with more dead letters than this is behind: who publishes to it waits until half are left.
BEHIND_COUNT = 2048
# What no queue takes is offered again after so long. (RabbitMQ: 180 s.)
RETRY_S = 5.0


class Exchanges(Protocol):
    """What dead letters need of their vhost."""

    name: str
    routes: Routes

    @property
    def queues(self) -> Mapping[str, QueueType]: ...

    def find_exchange(self, name: str) -> Exchange | None:
        """The exchange of that name, None if there is none."""

    def route(self, exchange: str, keys: Sequence[str], envelope: Envelope) -> tuple[Targets, bool]:
        """The queues of a message, and whether exchange and keys alone decided it."""


class Services(Protocol):
    """What dead letters need of what the parts of a broker share."""

    store: Store[Envelope]
    post: PostOffice
    jobs: Jobs
    timers: Timers
    stats: Stats
    now_s: Callable[[], float]
    now_ms: Callable[[], int]


class Letters:
    """Messages of one backlog that are out, from `qseq` on, and why they leave.

    They are not settled before the log is durable up to `after_lsn`. `at_once`: so many are read
    together. `served`: who has taken the first of them already, queues and keepers.
    """

    __slots__ = ("after_lsn", "at_once", "backlog", "count", "qseq", "reason", "served")

    def __init__(
        self, backlog: Backlog, qseq: int, count: int, reason: str, after_lsn: int
    ) -> None:
        self.backlog = backlog
        self.qseq = qseq
        self.count = count
        self.reason = reason
        self.after_lsn = after_lsn
        self.at_once = LETTERS_AT_ONCE
        self.served: set[QueueType | Keeper] = set()

    def add(self, backlog: Backlog, qseq: int, count: int, reason: str, after_lsn: int) -> bool:
        """Add messages that are the next ones, and leave for the same reason; else False."""
        if (backlog, qseq, reason) != (self.backlog, self.qseq + self.count, self.reason):
            return False
        self.count += count
        self.after_lsn = max(self.after_lsn, after_lsn)
        return True


class Leaving:
    """All that waits to be handed over from one queue: `count` messages; `done` were.

    `eased`: somebody waits until they are fewer.
    """

    __slots__ = ("count", "done", "eased", "letters")

    def __init__(self) -> None:
        self.letters: deque[Letters] = deque()
        self.count = 0
        self.done = 0
        self.eased: Outcome[None] | None = None

    def add(self, backlog: Backlog, qseq: int, count: int, reason: str, after_lsn: int) -> None:
        """More messages."""
        letters = self.letters
        if not letters or not letters[-1].add(backlog, qseq, count, reason, after_lsn):
            letters.append(Letters(backlog, qseq, count, reason, after_lsn))
        self.count += count

    def take(self, count: int) -> None:
        """So many of the first letters' messages are gone."""
        first = self.letters[0]
        first.qseq += count
        first.count -= count
        self.count -= count
        self.done += count
        if not first.count:
            self.letters.popleft()
        if self.count <= BEHIND_COUNT // 2:
            self.ease()

    def ease(self) -> None:
        """Nobody has to wait any more."""
        eased, self.eased = self.eased, None
        if eased is not None:
            eased.set(None)


class Addressed(NamedTuple):
    """A copy and the queues that it goes to. `cycled`: it would have gone to others, for ever."""

    copy: Copy
    targets: Targets
    cycled: bool


class Ending:
    """A queue is about to be deleted: of what leaves it, the first messages are handed over.

    These are those of `leaving` up to `until` (as `Leaving.done` counts). The others wait until
    `over` is known: they go with the queue, or go on if it stays.
    """

    __slots__ = ("deletions", "leaving", "over", "until")

    def __init__(self, leaving: Leaving | None) -> None:
        self.deletions = 0
        self.leaving = leaving
        self.until = 0 if leaving is None else leaving.done + leaving.count
        self.over: Outcome[None] = Outcome()


class Next(Enum):
    """When to hand over the next messages of a queue."""

    AT_ONCE = 0
    AFTER_PAUSE = 1
    AFTER_RETRY = 2


class DeadLetters:
    """The dead letters of one vhost; see the head of this file."""

    def __init__(self, exchanges: Exchanges, services: Services) -> None:
        self._exchanges = exchanges
        self._services = services
        self._leaving: dict[QueueType, Leaving] = {}
        self._ending: dict[QueueType, Ending] = {}
        self._paused: Outcome[None] | None = None  # known when the pause of all queues is over
        self._nowhere = Targets(())

    # -- what leaves -------------------------------------------------------------------------

    def discard(
        self,
        queue: QueueType,
        backlog: Backlog,
        qseq: int,
        count: int,
        size: int,
        reason: str,
        after_lsn: int = 0,
    ) -> None:
        """Messages that are out leave: `count` from `qseq` on, `size` octets in all.

        They are not settled before the log is durable up to `after_lsn`.
        """
        if not self._wanted(queue):
            backlog.settle(qseq, count, size, after_lsn)
            return
        leaving = self._leaving.get(queue)
        if leaving is None:
            leaving = self._leaving[queue] = Leaving()
            self._start(queue)
        leaving.add(backlog, qseq, count, reason, after_lsn)

    def behind(self, queue: QueueType) -> Outcome[None] | None:
        """If very many messages wait to be handed over: done when they are fewer.

        Those that no queue takes (at-least-once) keep nobody waiting.
        """
        leaving = self._leaving.get(queue)
        if leaving is None or leaving.count <= BEHIND_COUNT or queue.effective.keeps_dead:
            return None
        if leaving.eased is None:
            leaving.eased = Outcome()
        return leaving.eased

    def drop(self, queue: QueueType, backlog: Backlog, count_max: int, reason: str) -> int:
        """The first ready messages leave; how many there were. Raises CorruptLog."""
        if not self._wanted(queue):
            return backlog.drop(count_max)
        gone = 0
        for first, count, size in backlog.withdraw(count_max):
            self.discard(queue, backlog, first, count, size, reason)
            gone += count
        return gone

    def remove(self, queue: QueueType, backlog: Backlog, qseq: int, count: int, reason: str) -> int:
        """Those that are ready among these messages leave; how many were. Raises CorruptLog."""
        if not self._wanted(queue):
            return backlog.remove(qseq, count)
        gone = 0
        for first, length, size in backlog.withdraw_at(qseq, count):
            self.discard(queue, backlog, first, length, size, reason)
            gone += length
        return gone

    def refuse(self, queue: QueueType, mail: Mail, reason: str) -> None:
        """The queue does not take these messages: they go to its dead-letter exchange at once.

        Their publisher gets a nack, whatever becomes of the copies.
        """
        if not self._wanted(queue):
            return
        addressed = self._address(queue, reason, mail.envelopes)
        at = 0
        while at < len(addressed):
            stop = _alike(addressed, at)
            self._send(addressed[at:stop], mail.bodies[at:stop])
            at = stop

    @contextmanager
    def ending(self, queue: QueueType) -> Iterator[None]:
        """A queue is about to be deleted: what leaves it from now on goes with it.

        So the deletion comes to an end however much leaves the queue meanwhile.
        """
        ending = self._ending.setdefault(queue, Ending(self._leaving.get(queue)))
        ending.deletions += 1
        try:
            yield
        finally:
            ending.deletions -= 1
            if not ending.deletions:
                del self._ending[queue]
                ending.over.set(None)

    def finishing(self, queue: QueueType) -> Steps[None]:
        """Hand over what had left a queue when its deletion began (`ending`).

        A client that rejects a message and deletes the queue has rejected the message. This waits
        for the disk, and not for queues that take nothing (at-least-once).
        """
        ending = self._ending[queue]
        leaving = ending.leaving
        while (
            leaving is not None
            and leaving is self._leaving.get(queue)
            and leaving.done < ending.until
        ):
            next_ = self._next(queue, leaving)
            if next_ is Next.AFTER_RETRY:
                return
            yield self._pause() if next_ is Next.AFTER_PAUSE else None

    def _wanted(self, queue: QueueType) -> bool:
        """Whether anything but a drop can come of a message's leaving."""
        effective = queue.effective
        if effective.dead_letter_exchange is None or queue.deleted:
            return False
        return effective.keeps_dead or self._exchange_of(queue) is not None

    def _exchange_of(self, queue: QueueType) -> Exchange | None:
        """The dead-letter exchange of a queue, None if there is none now."""
        name = queue.effective.dead_letter_exchange
        return None if name is None else self._exchanges.find_exchange(name)

    # -- when ----------------------------------------------------------------------------------

    def _start(self, queue: QueueType) -> None:
        self._services.jobs.later(self._handing_over(queue))

    def _handing_over(self, queue: QueueType) -> Steps[None]:
        leaving = self._leaving[queue]
        try:
            while leaving.letters and not queue.deleted:
                if ending := self._ending.get(queue):
                    yield ending.over
                    continue
                next_ = self._next(queue, leaving)
                if next_ is Next.AT_ONCE:
                    yield
                elif next_ is Next.AFTER_PAUSE:
                    yield self._pause()
                else:
                    leaving.ease()  # a policy may have made it at-least-once meanwhile
                    yield self._retry()
        finally:
            del self._leaving[queue]
            leaving.ease()

    def _retry(self) -> Outcome[None]:
        """Known when what no queue takes is to be offered again."""
        services = self._services
        over: Outcome[None] = Outcome()
        services.timers.at(services.now_s() + RETRY_S, partial(over.set, None))
        return over

    def _pause(self) -> Outcome[None]:
        """Known when the disk is not behind any more, for all queues at once."""
        if self._paused is None:
            self._paused = Outcome()
            self._look_later()
        return self._paused

    def _look_later(self) -> None:
        services = self._services
        services.timers.at(services.now_s() + PAUSE_S, self._look)

    def _look(self) -> None:
        if self._services.store.congested:
            self._look_later()
            return
        paused, self._paused = self._paused, None
        assert paused is not None
        paused.set(None)

    def _next(self, queue: QueueType, leaving: Leaving) -> Next:
        """Hand over the next messages of a queue."""
        if self._services.store.congested:
            return Next.AFTER_PAUSE
        letters = leaving.letters[0]
        try:
            taken = letters.backlog.read_out(letters.qseq, min(letters.count, letters.at_once))
        except OutOfDescriptors:
            return Next.AFTER_PAUSE
        except CorruptLog as error:
            if letters.at_once > 1:  # those before the damage can be read
                letters.at_once = 1
                return Next.AT_ONCE
            logger.error("cannot dead-letter from %s error=%s", queue, error)
            done = wanted = 1
        else:
            wanted = len(taken.bodies)
            done = self._hand_over(queue, letters, taken)
        leaving.take(done)
        return Next.AT_ONCE if done == wanted else Next.AFTER_RETRY

    # -- how -----------------------------------------------------------------------------------

    def _hand_over(self, queue: QueueType, letters: Letters, taken: Taken) -> int:
        """Publish copies and settle the messages; returns how many messages are settled."""
        addressed = self._address(queue, letters.reason, taken.envelopes)
        at = 0
        while at < len(addressed):
            _, targets, cycled = addressed[at]
            if queue.effective.keeps_dead and not targets.plain and not cycled:
                stop = at + 1
                if not self._insist(letters, addressed[at], taken.bodies[at]):
                    return at
                lsn = letters.after_lsn
            else:
                stop = _alike(addressed, at)
                lsn = self._send(addressed[at:stop], taken.bodies[at:stop])
            size = sum(taken.sizes[at:stop])
            letters.backlog.settle(
                taken.first_qseq + at, stop - at, size, max(lsn, letters.after_lsn)
            )
            at = stop
        return at

    def _insist(self, letters: Letters, addressed: Addressed, body: bytes) -> bool:
        """Give a copy to those that have not taken it; whether all of them have, by now.

        What an exchange has seen before goes nowhere, and need not be offered again.
        """
        targets = addressed.targets
        mail = self._mail([addressed], [body])
        takers: list[tuple[QueueType | Keeper, Targets]] = [
            (queue, Targets((queue,))) for queue in targets.queues
        ]
        takers += [(keeper, Targets((), keepers=(keeper,))) for keeper in targets.takers]
        for taker, alone in takers:
            if taker not in letters.served:
                receipt = self._services.post.pass_on(alone, mail)
                letters.after_lsn = max(letters.after_lsn, receipt.lsn)
                if not receipt.rejected:
                    letters.served.add(taker)
        unrouted = targets.unrouted and REPEATED not in targets.keepers
        if unrouted or not letters.served.issuperset(taker for taker, _ in takers):
            targets.forget(mail.envelopes)  # it is routed again
            return False
        for keeper in targets.keepers:
            if not keeper.takes:
                letters.after_lsn = max(letters.after_lsn, keeper.add(mail, ()))
        letters.served.clear()
        self._services.stats.dead_lettered += 1
        return True

    def _send(self, addressed: Sequence[Addressed], bodies: Sequence[bytes]) -> int:
        """Publish copies for the same queues; returns the LSN that makes them durable, or 0."""
        targets, stats = addressed[0].targets, self._services.stats
        if targets.unrouted:
            stats.dead_dropped += len(bodies)
            return 0
        receipt = self._services.post.pass_on(targets, self._mail(addressed, bodies))
        stats.dead_dropped += len(receipt.rejected)
        stats.dead_lettered += len(bodies) - len(receipt.rejected)
        return receipt.lsn

    def _mail(self, addressed: Sequence[Addressed], bodies: Sequence[bytes]) -> Mail:
        return Mail(
            addressed[0].copy.traits.persistent,
            [copy.traits for copy, _, _ in addressed],
            [copy.envelope for copy, _, _ in addressed],
            bodies,
            self._services.now_ms(),
        )

    def _address(
        self, queue: QueueType, reason: str, envelopes: Sequence[Envelope]
    ) -> list[Addressed]:
        """The copies of messages that leave a queue, and where they go."""
        effective = queue.effective
        exchange = self._exchange_of(queue)
        death = Death(
            queue.name,
            reason,
            effective.dead_letter_exchange or "",
            effective.dead_letter_routing_key,
            self._services.now_ms() // 1000,
        )
        known: dict[bytes, Addressed] = {}
        result: list[Addressed] = []
        cacheable = True
        for envelope in envelopes:
            addressed = known.get(envelope.packed)
            if addressed is None:
                addressed, cacheable = self._route(copy_of(envelope, death), exchange)
                known[envelope.packed] = addressed
            elif not cacheable:
                addressed, _ = self._route(addressed.copy, exchange)
            if addressed.copy.envelope.body_size != envelope.body_size:
                copy = addressed.copy
                resized = copy.envelope._replace(body_size=envelope.body_size)
                addressed = addressed._replace(copy=copy._replace(envelope=resized))
                known[envelope.packed] = addressed  # the next one is mostly as large
            result.append(addressed)
        return result

    def _route(self, copy: Copy, exchange: Exchange | None) -> tuple[Addressed, bool]:
        """Where a copy goes, and whether an equal one goes there, too."""
        if exchange is None:
            return Addressed(copy, self._nowhere, cycled=False), True
        targets, cacheable = self._exchanges.route(exchange.name, copy.keys, copy.envelope)
        names = [queue.name for queue in targets.queues]
        left = [name for name in names if not copy.would_cycle(name)]
        cycled = len(left) < len(names)
        if cycled:
            targets = self._exchanges.routes.targets(
                tuple(left), self._exchanges.queues, targets.keepers
            )
        return Addressed(copy, targets, cycled), cacheable


def _alike(addressed: Sequence[Addressed], at: int) -> int:
    """Where those end that are like the one at `at`.

    They go to the same queues, are equally durable, and either all or none of them would go round.
    """
    first, targets, cycled = addressed[at]
    persistent = first.traits.persistent
    stop = at + 1
    while (
        stop < len(addressed)
        and addressed[stop].targets is targets
        and addressed[stop].copy.traits.persistent == persistent
        and addressed[stop].cycled == cycled
    ):
        stop += 1
    return stop
