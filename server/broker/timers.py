"""What is due at some time, by the monotonic clock: a heap, driven by whoever has the loop.

Promises: a call comes at or after its time, the earlier one first, and never after `cancel`; setting
and cancelling cost O(log n). An error in a call is reported and costs nobody else.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count

logger = logging.getLogger("qlog.broker")


class Timer:
    """A call that is due some time; `cancel` forgets it, and with it all that it holds."""

    __slots__ = ("_call", "_timers", "due_s")

    def __init__(self, timers: Timers, due_s: float, call: Callable[[], None]) -> None:
        self.due_s = due_s
        self._timers = timers
        self._call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """It will not be called. Again, or too late: no effect."""
        if self._call is not None:
            self._call = None
            self._timers.cancelled()

    @property
    def waits(self) -> bool:
        """It is still to be called."""
        return self._call is not None

    def take(self) -> Callable[[], None] | None:
        """What is to be called, for the one time that it is; None: it was cancelled."""
        call, self._call = self._call, None
        return call


class Timers:
    """See the head of this file."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._numbers = count()  # of equal times the one set first comes first
        self._cancelled = 0

    @property
    def due_s(self) -> float:
        """When the next one is due; infinity: none is. Nobody is woken for one that was cancelled."""
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
        """One was cancelled: those are thrown out when they are the larger half."""
        self._cancelled += 1
        if self._cancelled > len(self._heap) // 2 + 64:
            self._heap = [entry for entry in self._heap if entry[2].waits]
            heapify(self._heap)
            self._cancelled = 0

    def run(self, now_s: float) -> bool:
        """Make the calls that are due by now, but for those set meanwhile; whether there were any."""
        ripe: list[Timer] = []
        while self._heap and self._heap[0][0] <= now_s:
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
