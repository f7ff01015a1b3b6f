"""Messages with a time of their own: told to the queue that holds them, when their time has come.

Promises that a message is told once in a process, not before its time by the wall clock, and again
after a restart if it is still there; and that however many are due at once, they are told in
slices. The store has the times (`Store.due`), in memory and in the index; this file has one timer.
It knows who holds a lane, and not what a time means: that a message expires, say.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from qlog.server.amqp.envelope import Envelope
from qlog.server.broker.jobs import Jobs, Steps
from qlog.server.broker.timers import Timer, Timers
from qlog.storage.errors import StorageError
from qlog.storage.index.due_rows import Due
from qlog.storage.store import Store

logger = logging.getLogger("qlog.broker")

# So many messages are told between two looks at the clock, or up to DUE_AT_ONCE_MAX, as long as that
# takes no longer than QUICK_S: those that are read, and handed on, together cost a third less.
DUE_AT_ONCE = 32
DUE_AT_ONCE_MAX = 128
QUICK_S = 0.0005
# The timer runs by the monotonic clock. Somebody may set the wall clock, so nobody sleeps longer.
LOOK_S = 1.0
# When the index is found wrong: consumers get no expired message anyway, so nothing is urgent.
RETRY_S = 60.0


class Holder(Protocol):
    """Who holds the messages of a lane."""

    def due(self, lane_id: int, qseq: int, count: int) -> int:
        """The time of these messages of a lane has come, wherever they are now.

        Returns how many of them it has dealt with: at least one, and fewer than `count` if that
        was work enough. The others are told again after a pause. Raises CorruptLog.
        """


class DueMessages:
    """See the head of this file.

    Arguments: `now_s` is the clock of the timers, `now_ms` the wall clock in milliseconds.
    """

    def __init__(
        self,
        store: Store[Envelope],
        timers: Timers,
        jobs: Jobs,
        now_s: Callable[[], float],
        now_ms: Callable[[], int],
    ) -> None:
        self._store = store
        self._timers = timers
        self._jobs = jobs
        self._now_s = now_s
        self._now_ms = now_ms
        self._holders: dict[int, Holder] = {}
        self._timer: Timer | None = None
        self._telling = False
        self._at_once = DUE_AT_ONCE

    def hold(self, lane_id: int, holder: Holder) -> None:
        """The messages of a lane are in these hands."""
        self._holders[lane_id] = holder

    def release(self, lane_id: int) -> None:
        """The lane is deleted."""
        self._holders.pop(lane_id, None)

    def expect(self, due_ms: int) -> None:
        """A message was appended that is due then (wall clock, ms)."""
        if not self._telling:
            self._arm(max(due_ms - self._now_ms(), 0) / 1000)

    def look(self) -> None:
        """Tell what is due by now, and when there is more, go on at its time."""
        if not self._telling:
            self._telling = True
            self._jobs.start(self._tell())

    def _arm(self, delay_s: float) -> None:
        due_s = self._now_s() + min(delay_s, LOOK_S)
        timer = self._timer
        if timer is not None and timer.waits:
            if timer.due_s <= due_s:
                return
            timer.cancel()
        self._timer = self._timers.at(due_s, self.look)

    def _tell(self) -> Steps[None]:
        next_s: float | None = RETRY_S
        try:
            while (next_ms := self._store.next_due_ms) is not None:
                now_ms = self._now_ms()
                if next_ms > now_ms:
                    break
                began_s = self._jobs.clock_s()
                for lane_id, qseq, count in _stretches(self._store.due(now_ms, self._at_once)):
                    end = qseq + count
                    while (qseq := qseq + self._tell_holder(lane_id, qseq, end - qseq)) < end:
                        yield  # nothing with a later time is told before these
                quick = self._jobs.clock_s() - began_s <= QUICK_S
                more = min(2 * self._at_once, max(DUE_AT_ONCE_MAX, DUE_AT_ONCE))
                self._at_once = more if quick else DUE_AT_ONCE
                yield
            next_s = None if next_ms is None else (next_ms - self._now_ms()) / 1000
        except StorageError as error:
            logger.error("cannot find out which messages are due error=%s", error)
        finally:
            self._telling = False
            if next_s is not None:
                self._arm(max(next_s, 0.0))

    def _tell_holder(self, lane_id: int, qseq: int, count: int) -> int:
        """Returns how many are told. An error costs them: they wait, and no consumer gets them."""
        holder = self._holders.get(lane_id)
        if holder is None:
            return count
        try:
            return holder.due(lane_id, qseq, count)
        except StorageError as error:
            logger.error(
                "cannot take messages that are due from %s qseq=%d count=%d error=%s",
                holder,
                qseq,
                count,
                error,
            )
            return count


def _stretches(dues: Sequence[Due]) -> Iterator[tuple[int, int, int]]:
    """Messages that follow one another, together: lane, first qseq, how many."""
    at = 0
    while at < len(dues):
        _, lane_id, qseq, count = dues[at]
        at += 1
        while at < len(dues) and dues[at][1:3] == (lane_id, qseq + count):
            count += dues[at].length
            at += 1
        yield lane_id, qseq, count
