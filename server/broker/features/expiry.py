"""Time: messages that expire (`x-message-ttl`, `expiration`), and queues that do (`x-expires`).

Promises for messages:

- A message expires when the smaller of two times is over: the queue's, as it is now, and its own,
  both since it came to the queue. It leaves for the reason `expired`, wherever it stands in the
  queue, within some milliseconds (RabbitMQ: when it gets to the head of the queue).
- No consumer and no basic.get gets an expired message: who takes messages asks `living`.
- A message that is out does not expire. It keeps its time, and if that is over when it comes back,
  it leaves then.
- A time of 0, or a short one, is enough for consumers that wait: what comes is offered to them
  before the time counts.
- However many messages expire at once, they leave in slices. The messages of a queue stand in the
  order in which they came, so the queue's own time needs no list of them: the last one whose time
  is over is searched for. Times of their own are kept by the store (due.py).

Times are of the wall clock. If that is set back or forth, a message expires too early or too late
by no more than the step.

Promises for queues: one that had no consumer, no basic.get and no declare for `expires_ms` is
deleted as by queue.delete. After a start the time begins anew.

Where this differs from what RabbitMQ does: a message-ttl of a policy applies to what waits already.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Protocol

from qlog.server.amqp.envelope import Envelope
from qlog.server.broker.features.dead_letter import DeadLetters
from qlog.server.broker.jobs import Jobs, Steps
from qlog.server.broker.numbers import Numbers
from qlog.server.broker.outcome import Outcome
from qlog.server.broker.queues.backlog import Backlog, Taken
from qlog.server.broker.queues.type import QueueType
from qlog.server.broker.timers import Timer, Timers
from qlog.storage.errors import CorruptLog, OutOfDescriptors
from qlog.storage.lanes.lane import Lane

logger = logging.getLogger("qlog.broker")

EXPIRED = "expired"
# So many places are cleared in one piece: some tenths of a millisecond.
PLACES_AT_ONCE = 256
# A message that came in this tick, and waits to be offered, is not expired before it is so late.
OFFER_MS = 100
# When the first message of a queue cannot be read now.
RETRY_S = 1.0
# When it is damaged. No consumer gets it either; the log says so once an hour.
DAMAGED_S = 3600.0
_NEVER = 1 << 64  # above all qseqs
# Numbers of messages that were out when their time came are looked through when they are so many
# more than there are messages out.
_STALE = 1024


class Services(Protocol):
    """What this file needs of what the parts of a broker share."""

    jobs: Jobs
    timers: Timers
    now_s: Callable[[], float]
    now_ms: Callable[[], int]


class Timed(QueueType, Protocol):
    """What this file needs of a queue beside what all need."""

    backlogs: list[Backlog]


class _Watch:
    """What is known of one queue.

    `timer`: when the first message's time of the queue is over. `job`: it is being looked for.
    `again`: somebody wanted that meanwhile.
    `offered`: messages from this qseq on were not offered to the consumers yet, by id of the lane.
    `overdue`: messages whose own time came while they were out, or before they were offered.
    `recalling`: they are gone through. `returned`: others came back meanwhile.
    """

    __slots__ = ("again", "job", "offered", "overdue", "recalling", "returned", "timer")

    def __init__(self) -> None:
        self.timer: Timer | None = None
        self.job = False
        self.again = False
        self.recalling = False
        self.returned = False
        self.offered: dict[int, int] = {}
        self.overdue: dict[Backlog, Numbers] = {}


class _Lease:
    """How long a queue may be unused."""

    __slots__ = ("timer", "used_s")

    def __init__(self) -> None:
        self.used_s = 0.0
        self.timer: Timer | None = None


class Expiry:
    """The times of the queues of one vhost.

    `delete` deletes a queue, soon, if it is still unused then: what it is given says so.
    """

    def __init__(
        self,
        dead_letters: DeadLetters,
        services: Services,
        delete: Callable[[QueueType, Callable[[], bool]], Outcome[bool]],
    ) -> None:
        self._dead_letters = dead_letters
        self._services = services
        self._delete = delete
        self._watches: dict[QueueType, _Watch] = {}
        self._leases: dict[QueueType, _Lease] = {}

    # -- what the queue tells ----------------------------------------------------------------

    def offer(self, queue: Timed, lane: Lane[Envelope]) -> None:
        """Messages with a short time are about to come; `rest` is to follow."""
        self._watch(queue).offered.setdefault(lane.id, lane.next_qseq)

    def rest(self, queue: Timed) -> bool:
        """No consumer can take more: what is left has been offered, if it may be taken now.

        Returns whether some of it may not (see `Backlog.bound`): this is to be called again.
        """
        watch = self._watch(queue)
        if watch.offered:
            ends = ((backlog.lane, backlog.bound) for backlog in queue.backlogs)
            watch.offered = {
                lane.id: bound
                for lane, bound in ends
                if bound < lane.next_qseq and lane.id in watch.offered
            }
            self._recall(queue, watch)
        if queue.effective.message_ttl_ms is not None and (
            watch.timer is None or not watch.timer.waits
        ):
            self._search(queue, watch)
        return bool(watch.offered)

    def came_back(self, queue: Timed) -> None:
        """Messages that were out are ready again: the time of some may be over."""
        watch = self._watches.get(queue)
        if watch is None:
            return
        if watch.timer is not None:  # it may have waited for a younger message: `rest` looks
            watch.timer.cancel()
        self._recall(queue, watch)

    def reconfigured(self, queue: Timed) -> None:
        """The queue has other settings: `rest` is to follow."""
        watch = self._watches.get(queue)
        if watch is not None and watch.timer is not None:
            watch.timer.cancel()
        self.used(queue)

    def closed(self, queue: Timed) -> None:
        """The queue is deleted."""
        for known in (self._watches.pop(queue, None), self._leases.pop(queue, None)):
            if known is not None and known.timer is not None:
                known.timer.cancel()

    def _watch(self, queue: Timed) -> _Watch:
        watch = self._watches.get(queue)
        if watch is None:
            watch = self._watches[queue] = _Watch()
        return watch

    # -- messages that were taken ------------------------------------------------------------

    def living(self, queue: Timed, taken: Taken) -> list[Taken]:
        """Those that have not expired, in parts, in order; the others leave."""
        ttl_ms, dues_ms, now_ms = queue.effective.message_ttl_ms, taken.dues_ms, self._now_ms()
        ends = None if ttl_ms is None else [time_ms + ttl_ms for time_ms in taken.times_ms]
        if dues_ms is not None:
            own = [due_ms or _NEVER for due_ms in dues_ms]
            ends = own if ends is None else list(map(min, own, ends))
        if ends is None or min(ends) > now_ms:
            return [taken]
        watch = self._watches.get(queue)
        offered = _NEVER if watch is None else watch.offered.get(taken.backlog.lane.id, _NEVER)
        first = taken.first_qseq
        alive = [
            end > (now_ms if first + index < offered else now_ms - OFFER_MS)
            for index, end in enumerate(ends)
        ]
        parts = []
        start = 0
        while start < len(alive):
            stop = start + 1
            while stop < len(alive) and alive[stop] is alive[start]:
                stop += 1
            if alive[start]:
                parts.append(taken.part(start, stop))
            else:
                size = sum(taken.sizes[start:stop])
                self._dead_letters.discard(
                    queue, taken.backlog, first + start, stop - start, size, EXPIRED
                )
            start = stop
        return parts

    # -- times of their own ------------------------------------------------------------------

    def due(self, queue: Timed, backlog: Backlog, qseq: int, count: int) -> None:
        """The own time of these messages is over: they leave now, or when they come back.

        Raises CorruptLog.
        """
        watch = self._watches.get(queue)
        if watch is not None and qseq + count > watch.offered.get(backlog.lane.id, _NEVER):
            self._note(queue, watch, backlog, qseq, count)
            return
        if self._dead_letters.remove(queue, backlog, qseq, count, EXPIRED) < count:
            self._note(queue, self._watch(queue), backlog, qseq, count)

    def _note(self, queue: Timed, watch: _Watch, backlog: Backlog, qseq: int, count: int) -> None:
        """Note those that are not settled."""
        overdue = watch.overdue.setdefault(backlog, Numbers())
        unsettled, end = backlog.lane.settled.stretch, qseq + count
        start, stop = unsettled(qseq, end, count)
        while start < stop:
            overdue.discard(start, stop - start)
            overdue.add(start, stop - start)
            start, stop = unsettled(stop, end, count)
        if overdue.count > backlog.out + _STALE and not watch.recalling:
            self._recall(queue, watch)

    def _recall(self, queue: Timed, watch: _Watch) -> None:
        """Have those leave whose time came when they could not leave."""
        watch.returned = True
        if watch.overdue and not watch.recalling:
            watch.recalling = True
            self._services.jobs.start(self._recalling(queue, watch))

    def _recalling(self, queue: Timed, watch: _Watch) -> Steps[None]:
        before, watch.overdue = watch.overdue, {}
        watch.returned = False
        try:
            for backlog, overdue in before.items():
                for qseq, count in overdue:
                    if queue.deleted:
                        return
                    # Those that are still out are noted again.
                    self.due(queue, backlog, qseq, count)
                    yield
        except CorruptLog as error:
            logger.error("cannot take expired messages from %s error=%s", queue, error)
        finally:
            watch.recalling = False
            if watch.returned and not queue.deleted:
                # Some that were found out, and noted again, are back: nobody else looks for them.
                self._recall(queue, watch)

    # -- the queue's time --------------------------------------------------------------------

    def _search(self, queue: Timed, watch: _Watch) -> None:
        if watch.job:
            watch.again = True
            return
        watch.job, watch.again = True, False
        jobs = self._services.jobs
        if any(backlog.ready and backlog.cold for backlog in queue.backlogs):
            jobs.later(self._searching(queue, watch))  # after a start they are many queues at once
        else:
            jobs.start_in_turn(self._searching(queue, watch))

    def _searching(self, queue: Timed, watch: _Watch) -> Steps[None]:
        """Have those leave whose time is over, and come again when the next one's is."""
        again_s: float | None = None
        try:
            for backlog in list(queue.backlogs):  # a priority may be used for the first time
                wait_s = yield from self._clear(queue, watch, backlog)
                if wait_s is not None:
                    again_s = wait_s if again_s is None else min(again_s, wait_s)
        except OutOfDescriptors:
            again_s = RETRY_S
        except CorruptLog as error:
            logger.error("cannot find expired messages of %s error=%s", queue, error)
            again_s = DAMAGED_S
        finally:
            watch.job = False
            if watch.again:
                again_s = 0.0
            if again_s is not None and not queue.deleted:
                at_s = self._services.now_s() + again_s
                watch.timer = self._services.timers.at(at_s, partial(self._search, queue, watch))

    def _clear(self, queue: Timed, watch: _Watch, backlog: Backlog) -> Steps[float | None]:
        """The same for one backlog. Returns in how many seconds to come again; None: no need."""
        while True:
            ttl_ms = queue.effective.message_ttl_ms
            head = None if ttl_ms is None or queue.deleted else backlog.peek(0, 1)
            if head is None or ttl_ms is None:
                return None
            first = head.first_qseq
            offered = watch.offered.get(backlog.lane.id, _NEVER)
            if first >= offered:
                return None  # `rest` is to follow
            until_ms = self._now_ms() - ttl_ms
            if head.times_ms[0] > until_ms:
                return (head.times_ms[0] - until_ms) / 1000
            end = min(backlog.lane.next_qseq, offered)
            stop = yield from _end_of_expired(backlog, first + 1, end, until_ms)
            while first < stop and not queue.deleted:
                count = min(stop - first, PLACES_AT_ONCE)
                self._dead_letters.remove(queue, backlog, first, count, EXPIRED)
                first += count
                yield

    def _now_ms(self) -> int:
        return self._services.now_ms()

    # -- queues that nobody uses -------------------------------------------------------------

    def used(self, queue: QueueType) -> None:
        """Somebody used the queue, or begins not to use it."""
        if queue.effective.expires_ms is None:
            return
        lease = self._leases.get(queue)
        if lease is None:
            lease = self._leases[queue] = _Lease()
        lease.used_s = self._services.now_s()
        # A timer that is there looks at `used_s`; but the time may be shorter than it was.
        due_s = lease.used_s + queue.effective.expires_ms / 1000
        if lease.timer is None or not lease.timer.waits or lease.timer.due_s > due_s:
            self._arm(queue, lease, due_s)

    def _arm(self, queue: QueueType, lease: _Lease, due_s: float) -> None:
        if lease.timer is not None:
            lease.timer.cancel()
        lease.timer = self._services.timers.at(due_s, partial(self._look, queue, lease))

    def _look(self, queue: QueueType, lease: _Lease) -> None:
        due_s = self._due_s(queue, lease)
        if due_s is None:
            return  # who leaves calls `used`
        now_s = self._services.now_s()
        if due_s > now_s:
            self._arm(queue, lease, due_s)
            return

        def unused() -> bool:  # who uses it meanwhile calls `used`
            due_s = self._due_s(queue, lease)
            return due_s is not None and due_s <= now_s

        def deleted(outcome: Outcome[bool]) -> None:
            if outcome.result():
                logger.info("%s expired", queue)

        self._delete(queue, unused).then(deleted)

    def _due_s(self, queue: QueueType, lease: _Lease) -> float | None:
        """When the queue expires if nobody uses it until then; None: it is used, or never does."""
        expires_ms = queue.effective.expires_ms
        if expires_ms is None or queue.takers:
            return None
        return lease.used_s + expires_ms / 1000


def _end_of_expired(backlog: Backlog, low: int, end: int, until_ms: int) -> Steps[int]:
    """The place behind the last message below `end` that came until `until_ms`, or `low`.

    All that are ready in front of that place came before it. The steps get longer and then shorter:
    few messages are read. Raises CorruptLog and OutOfDescriptors.
    """

    def behind(place: int) -> int:
        """The place behind the first ready message from `place` on if it came so early; else 0.

        What is not there says nothing of those before it.
        """
        found = backlog.peek(place, 1)
        if found is None or found.first_qseq >= end or found.times_ms[0] > until_ms:
            return 0
        return found.first_qseq + 1

    high, step = end, 1
    while low < high:
        probe = min(low + step, end) - 1
        yield
        stop = behind(probe)
        if not stop:
            high = probe
            break
        low = stop
        step *= 2
    while low < high:
        probe = (low + high) // 2
        yield
        stop = behind(probe)
        if stop:
            low = stop
        else:
            high = probe
    return low
