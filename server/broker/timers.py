"""Calls that are due at some time, by the monotonic clock: a heap that the loop asks each turn.

Promises: a call comes at or after its time, the earlier one first, and never after `cancel`;
setting and cancelling cost O(log n). However many are due at once, a turn makes AT_ONCE of them.
An error in a call is reported and costs nobody else.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count

logger = logging.getLogger("qlog.broker")

# So many calls are made in one turn: some milliseconds, if each of them deletes a queue.
AT_ONCE = 100


class Timer:
    """A call that is due at some time; `cancel` forgets the call and all that it refers to."""

    __slots__ = ("_call", "_timers", "due_s")

    def __init__(self, timers: Timers, due_s: float, call: Callable[[], None]) -> None:
        self.due_s = due_s
        self._timers = timers
        self._call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """Have the call not made. No effect when it was made or cancelled already."""
        if self._call is not None:
            self._call = None
            self._timers.cancelled()

    @property
    def waits(self) -> bool:
        """The call was neither made nor cancelled."""
        return self._call is not None

    def take(self) -> Callable[[], None] | None:
        """The call, which is forgotten here, so that it is made once; None: it was cancelled."""
        call, self._call = self._call, None
        return call


class Timers:
    """See the head of this file."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._numbers = count()  # calls due at the same time come in the order they were set
        self._cancelled = 0

    @property
    def due_s(self) -> float:
        """When the next one is due; infinity: none is.

        Nobody is woken for one that was cancelled.
        """
        heap = self._heap
        while heap and not heap[0][2].waits:
            heappop(heap)
            self._cancelled -= 1
        return heap[0][0] if heap else math.inf

    def at(self, due_s: float, call: Callable[[], None]) -> Timer:
        """Have `call` called at or after `due_s`."""
        timer = Timer(self, due_s, call)
        heappush(self._heap, (due_s, next(self._numbers), timer))
        return timer

    def cancelled(self) -> None:
        """A timer was cancelled. Cancelled ones are thrown out when they are more than half."""
        self._cancelled += 1
        if self._cancelled > len(self._heap) // 2 + 64:
            self._heap = [entry for entry in self._heap if entry[2].waits]
            heapify(self._heap)
            self._cancelled = 0

    def run(self, now_s: float) -> bool:
        """Make the calls that are due, but for those set meanwhile, and for more than AT_ONCE.

        Returns whether there were any.
        """
        if not self._heap or self._heap[0][0] > now_s:
            return False
        ripe: list[Timer] = []
        while self._heap and self._heap[0][0] <= now_s and len(ripe) < AT_ONCE:
            ripe.append(heappop(self._heap)[2])
        called = False
        for timer in ripe:
            call = timer.take()
            if call is None:
                self._cancelled = max(self._cancelled - 1, 0)
                continue
            called = True
            try:
                call()
            except Exception:
                logger.exception("internal error in a timer")
        return called
