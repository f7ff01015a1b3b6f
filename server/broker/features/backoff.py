"""Backoff: what came back to a quorum queue waits before it is delivered again.

Promises what RabbitMQ 4.4 does (rabbit_fifo:should_delay), by the arguments or policies
`x-delayed-retry-type`, `-min` and `-max` (ms): a message that came back n times waits n times the
minimum, and at most the maximum, which is the minimum if it is not given. Which messages wait says
the type: `failed` are those that were rejected (basic.reject), or whose consumer is gone;
`returned` those that a client gave back otherwise (basic.nack, basic.recover); `all` both. It is
some hundredths longer, so that however many messages wait, few times are kept.

A message that waits is out, so that it counts as unacknowledged, and no purge takes it. How often it
came back is durable; that it waits is not: after a start it is ready at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import NamedTuple, Protocol

from qlog.server.broker.numbers import Numbers
from qlog.server.broker.queues.backlog import Backlog
from qlog.server.broker.queues.effective import Backoff
from qlog.server.broker.queues.returns import Returns
from qlog.server.broker.timers import Timer, Timers

# Times are rounded up to this, or to a part of the delay if that is longer.
GRAIN_S = 0.01
GRAINS = 64


class Services(Protocol):
    """What this file needs of what the parts of a broker share."""

    timers: Timers
    now_s: Callable[[], float]


class Ripe(NamedTuple):
    """Messages whose time has come, `size` octets in all, and the order in which they came back."""

    numbers: Numbers
    size: int
    order: Returns


class _Waiting:
    __slots__ = ("numbers", "order", "size", "timer")

    def __init__(self) -> None:
        self.numbers = Numbers()
        self.order = Returns()
        self.size = 0
        self.timer: Timer | None = None


class Waits:
    """What waits in one queue. `ripe` is called with messages that are to be ready again."""

    def __init__(self, services: Services, ripe: Callable[[Ripe], None]) -> None:
        self._services = services
        self._ripe = ripe
        self._waiting: dict[float, _Waiting] = {}  # by the time when it is over

    def add(
        self, backlog: Backlog, first: int, count: int, backoff: Backoff
    ) -> Iterator[tuple[int, int, int]]:
        """Messages that are out came back, and wait.

        Yields those that wait: the first, how many they are, the octets of their bodies. Raises
        CorruptLog when the index, where the sizes are, is wrong.
        """
        for attempts, group in groupby(backlog.lane.attempts_of(first, count)):
            length = sum(1 for _ in group)
            size = backlog.lane.bytes_of(first, length)
            waiting = self._at(backoff.delay_ms(attempts) / 1000)
            waiting.numbers.add(first, length)
            waiting.order.add(first, length)
            waiting.size += size
            yield first, length, size
            first += length

    def _at(self, delay_s: float) -> _Waiting:
        grain_s = max(GRAIN_S, delay_s / GRAINS)
        due_s = -(-(self._services.now_s() + delay_s) // grain_s) * grain_s
        waiting = self._waiting.get(due_s)
        if waiting is None:
            waiting = self._waiting[due_s] = _Waiting()
            waiting.timer = self._services.timers.at(due_s, lambda: self._over(due_s))
        return waiting

    def _over(self, due_s: float) -> None:
        waiting = self._waiting.pop(due_s)
        self._ripe(Ripe(waiting.numbers, waiting.size, waiting.order))

    def close(self) -> None:
        """The queue is deleted."""
        for waiting in self._waiting.values():
            if waiting.timer is not None:
                waiting.timer.cancel()
        self._waiting.clear()
