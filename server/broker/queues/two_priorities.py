"""The two priorities of a quorum queue: which message is next, of high ones and of all others.

Messages with a priority above 4 are high (`Traits.is_high`), all others are low. Promises what
RabbitMQ 4.0 does (rabbit_fifo_q), which was asked:

- What came back goes first, of whatever priority, in the order in which it came back.
- Of all else two high messages go, and then a low one, if there is one, and so on. Whatever is taken
  counts, low messages too, and what a limit drops.
- The turn of a low message is passed over if the next high message came before it: then it has not
  overtaken anybody.

Which high message came before which low one is kept in memory, for the first MARKS_MAX times that
they take turns in coming, of what is in the queue, and not across a start. Of all others it is taken
that the low ones came before. Knows no takers, and nothing of settlements.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from qlog.server.broker.queues.backlog import Backlog, Taken

# So many high messages go for each low one.
WEIGHT = 2
# A message is chosen among so many at most, so that a hand costs the same however long the backlog
# is: to look for the end of a stretch costs a step for each block of messages.
FRESH_MAX = 512
# A mark is some 150 octets.
MARKS_MAX = 4096
_UNKNOWN = 1 << 63


class Half(Protocol):
    """One of the two backlogs, as this file needs it; see `QuorumBacklog`."""

    @property
    def ready(self) -> int: ...

    @property
    def takeable(self) -> int: ...

    @property
    def cold(self) -> bool: ...

    def take(self, count_max: int) -> Taken: ...

    @property
    def turn(self) -> int | None:
        """Which turn of what came back is first here; None: nothing that came back is here."""

    def fresh(self, count_max: int) -> tuple[int, int]:
        """The first stretch that did not come back: qseq and length, which may be 0."""


class Arrival:
    """Which high messages came before which low ones, by qseqs of the two lanes."""

    __slots__ = ("_marks",)

    def __init__(self) -> None:
        # High messages from the first qseq on came when the low lane had all below the second.
        self._marks: deque[tuple[int, int]] = deque()

    def high(self, qseq: int, low_next: int, left: Callable[[], int]) -> None:
        """High messages from this qseq on are about to come; the low lane ends at `low_next`.

        `left` gives the first high message that is still there, or `qseq`; what is below it is
        forgotten.
        """
        marks = self._marks
        if marks and marks[-1][1] == low_next:
            return
        if marks:
            self._forget(left())
        if len(marks) < MARKS_MAX:
            marks.append((qseq, low_next))
        elif marks[-1][1] != _UNKNOWN:
            marks.append((qseq, _UNKNOWN))

    def _forget(self, high: int) -> None:
        """What came before the high message `high` is gone."""
        marks = self._marks
        while len(marks) > 1 and marks[1][0] <= high:
            marks.popleft()

    def before(self, low: int, high: int, count_max: int) -> int:
        """How many of the high messages from qseq `high` on came before the low message `low`.

        At most `count_max`. What is below `high` is forgotten.
        """
        self._forget(high)
        marks = self._marks
        if not marks or marks[0][0] > high:
            return 0
        for first, low_next in marks:
            if low_next > low:
                return max(first - high, 0)
            if first - high >= count_max:
                break
        return count_max


class TwoPriorities:
    """Two backlogs that are delivered from as if they were one. See the head of this file.

    `taken`: how many messages the queue has given before.
    """

    def __init__(self, high: Half, low: Half, taken: int) -> None:
        self._high = high
        self._low = low
        self._arrival = Arrival()
        self._taken = 0  # since the last turn of a low message
        self._count(taken)

    @property
    def takeable(self) -> int:
        """How many messages may be taken."""
        return max(self._high.takeable, 0) + max(self._low.takeable, 0)

    @property
    def cold(self) -> bool:
        """What is taken next has to be read from disk. There must be something."""
        return self._choose(1)[0].cold

    def take(self, count_max: int) -> Taken:
        """Take the next messages, which are all of one backlog; one must be there."""
        half, count, counts = self._choose(count_max)
        taken = half.take(count)
        if counts:
            self._count(len(taken.bodies))
        return taken

    def comes(self, qseq: int, low_next: int) -> None:
        """High messages from this qseq on are about to come; the low lane ends at `low_next`."""
        high = self._high
        self._arrival.high(qseq, low_next, lambda: high.fresh(1)[0] if high.ready > 0 else qseq)

    def _choose(self, count_max: int) -> tuple[Half, int, bool]:
        """Who is next, how many messages of it, and whether they count for the turns."""
        high, low = self._high, self._low
        came_back_high = self._came_back_high
        if came_back_high is not None:
            return high if came_back_high else low, count_max, False
        high_first, high_count = high.fresh(min(count_max, FRESH_MAX))
        if not high_count:
            return low, low.fresh(min(count_max, FRESH_MAX))[1], True
        low_first, low_count = low.fresh(1)
        if not low_count:
            return high, high_count, True
        count = self._before_low(low_first, high_first, high_count)
        if count:
            return high, min(count, high_count), True
        return low, 1, True

    @property
    def _came_back_high(self) -> bool | None:
        """Whether the first of what came back is high; None: nothing that came back is here."""
        high, low = self._high.turn, self._low.turn
        if high is None:
            return None if low is None else False
        return low is None or high < low

    def _before_low(self, low: int, high: int, count_max: int) -> int:
        """How many high messages, from `high` on, go before `low`: by turns, or as they came."""
        return max(WEIGHT - self._taken, self._arrival.before(low, high, count_max))

    def _count(self, count: int) -> None:
        self._taken = (self._taken + count) % (WEIGHT + 1)

    def head(
        self, high: Backlog, low: Backlog, count_max: int, *, takeable: bool
    ) -> tuple[Backlog, int] | None:
        """Who loses the first messages of those that are ready, and how many; they are counted.

        `takeable`: of those that may be taken, if there are any: only these count for a limit.
        """
        came_back_high = self._came_back_high
        if came_back_high is not None:
            return high if came_back_high else low, 1
        high_ready, low_ready = high.ready, low.ready
        if takeable and self.takeable:
            high_ready, low_ready = high.takeable, low.takeable
        if high_ready > 0 and low_ready > 0:
            high_first, high_count = self._high.fresh(count_max)
            low_first, _ = self._low.fresh(1)
            many = min(self._before_low(low_first, high_first, high_count), count_max)
            half, count = (high, min(many, high_ready)) if many else (low, 1)
        elif high_ready > 0:
            half, count = high, min(count_max, high_ready)
        elif low_ready > 0:
            half, count = low, min(count_max, low_ready)
        else:
            return None
        self._count(count)
        return half, count
