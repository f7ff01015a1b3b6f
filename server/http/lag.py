"""How late the loop is: a task that wakes once a second, and looks at the clock."""

from __future__ import annotations

import trio

from qlog.server.broker.operations import Histogram

INTERVAL_S = 1.0
# Turns take up to some ten milliseconds; what is above holds up heartbeats and health checks.
BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


class Lag:
    """See the head of this file. `last_s` is what was seen last."""

    def __init__(self) -> None:
        self.late_s = Histogram(BOUNDS_S)
        self.last_s = 0.0

    async def measure(self) -> None:
        """Look until cancelled."""
        while True:
            due_s = trio.current_time() + INTERVAL_S
            await trio.sleep_until(due_s)
            self.last_s = max(0.0, trio.current_time() - due_s)
            self.late_s.add(self.last_s)
