"""How far a lane is on the disk: for a queue that hands out only what is durable.

Promises that `bound` never passes a message that a crash could take back, and that the queue is
woken when the bound moves. Costs one entry for each look at a lane that has grown, until the disk
has got that far. Knows no consumer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from qlog.server.amqp.envelope import Envelope
from qlog.server.broker.outcome import Outcome
from qlog.storage.lanes.lane import Lane
from qlog.storage.store import Store


class Progress(Protocol):
    """Who knows when the log gets further: see durability.py."""

    def await_confirms(self, confirms: Arrivals) -> None:
        """Call `confirm_through` when the log gets further, until that returns True."""


def _nobody() -> None:
    """Nobody is told."""


class Arrivals:
    """See the head of this file. `arrived` is called when more of the lane is durable.

    All that the lane has at first is durable.
    """

    __slots__ = (
        "_arrived",
        "_awaited",
        "_bound",
        "_lane",
        "_marks",
        "_progress",
        "_seen",
        "_store",
    )

    def __init__(
        self,
        lane: Lane[Envelope],
        store: Store[Envelope],
        progress: Progress,
        arrived: Callable[[], None],
    ) -> None:
        self._lane = lane
        self._store = store
        self._progress = progress
        self._arrived = arrived
        self._bound = self._seen = lane.next_qseq
        # LSN and qseq: when the log is durable up to the one, the lane is up to the other.
        self._marks: deque[tuple[int, int]] = deque()
        self._awaited: Outcome[None] | None = None

    def close(self) -> None:
        """The queue is deleted: nobody is told any more."""
        self._arrived = _nobody

    @property
    def bound(self) -> int:
        """All messages below this qseq are on the disk."""
        lane, marks = self._lane, self._marks
        if lane.next_qseq == self._bound:
            return self._bound
        if lane.next_qseq > self._seen:
            self._seen = lane.next_qseq
            if not marks:
                self._progress.await_confirms(self)
            marks.append((self._store.lsn, self._seen))
        self._advance(self._store.durable_lsn)
        return self._bound

    def _advance(self, durable_lsn: int) -> None:
        marks = self._marks
        while marks and marks[0][0] <= durable_lsn:
            self._bound = marks.popleft()[1]

    def confirm_through(self, durable_lsn: int) -> bool:
        """The log is durable up to `durable_lsn`; True: nothing more is on its way."""
        if self._lane.dropped:
            self._marks.clear()
        self._advance(durable_lsn)
        self._arrived()
        awaited, self._awaited = self._awaited, None
        if awaited is not None:
            awaited.set(None)
        return not self._marks

    @property
    def next(self) -> Outcome[None]:
        """Done when more is durable than now. Something must be on its way."""
        assert self._marks
        if self._awaited is None:
            self._awaited = Outcome()
        return self._awaited
