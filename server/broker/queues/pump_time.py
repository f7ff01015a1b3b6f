"""How long delivering may take in one tick.

Without a limit, a backlog and many consumers that read fast would keep all other clients waiting.
When the time is up, what is left goes on in the next tick, behind the queues that had no turn yet.
Promises that a tick delivers for no longer than PUMP_S, plus one hand. Knows no queue.
"""

from __future__ import annotations

from collections.abc import Callable

# As long as a turn's jobs may take. Some thousand small messages are delivered in that time.
PUMP_S = 0.005


class PumpTime:
    """See the head of this file.

    `clock_s` is a clock in seconds. `up`: the time was up, and `renew` was not called since.
    """

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self.clock_s = clock_s
        self.up = False
        self._until_s = 0.0

    def begin(self) -> None:
        """Delivering begins."""
        self._until_s = self.clock_s() + PUMP_S

    def check(self) -> bool:
        """Look at the clock: whether the time is up."""
        if self.clock_s() >= self._until_s:
            self.up = True
        return self.up

    def renew(self) -> None:
        """A new tick begins."""
        self.up = False
