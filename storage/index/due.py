"""What is due next: from the index what a checkpoint has, from memory what is younger.

Promises that each message with a due time is given out once in a process, in the order of the
times, when its time has come, unless it is settled by then; after a restart it is given out again.
Memory has what came since the last checkpoint, and a page of rows, and no more.

A message is given out once, and not until it is settled: it may be with a consumer, or on its way
to another queue, when its time has come. It must not stand in front of all others meanwhile.
"""

from array import array
from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush
from itertools import count
from typing import Any

import lmdb

from qlog.storage.errors import CorruptLog
from qlog.storage.index.due_rows import Due
from qlog.storage.index.index import Index
from qlog.storage.index.rows import IndexDoubt
from qlog.storage.lanes.lane import Lane

_PAGE_ROWS = 256
_LOOKS_MAX = 4096  # one call passes over at most so many settled messages


class _Young:
    """Messages that came between two checkpoints."""

    def __init__(self) -> None:
        self.heap: list[Due] = []
        self.added: dict[int, list[tuple[int, array[int]]]] = {}  # lane -> (first qseq, due times)

    def add(self, lane_id: int, first: int, dues_ms: "array[int]") -> None:
        self.added.setdefault(lane_id, []).append((first, dues_ms))
        for due_ms, qseq in zip(dues_ms, count(first), strict=False):
            heappush(self.heap, Due(due_ms, lane_id, qseq))


class DueTimes:
    """See the head of this file.

    Arguments: `lanes` are all lanes of the store, by id; `on_doubt` is told when the index is
    wrong, and says what to raise.
    """

    def __init__(
        self,
        index: Index,
        lanes: Mapping[int, Lane[Any]],
        on_doubt: Callable[[Exception], CorruptLog],
    ) -> None:
        self._index = index
        self._lanes = lanes
        self._on_doubt = on_doubt
        self._position: Due | None = None  # all rows up to here were given out, or were settled
        self._rows: list[Due] | None = None  # the rows that follow, the next one last
        self._young = _Young()
        self._gathered = _Young()  # messages from before the checkpoint that is under way

    def add(
        self, lanes: Sequence[Lane[Any]], firsts: Sequence[int], dues_ms: Sequence[int]
    ) -> None:
        """Messages were appended: message i is due at `dues_ms[i]`, ms by the wall clock."""
        times = array("Q", dues_ms)
        for lane, first in zip(lanes, firsts, strict=True):
            self._young.add(lane.id, first, times)

    def gathered(self) -> None:
        """A checkpoint begins. Messages that are not durable yet will not be in it."""
        assert not self._gathered.heap and not self._gathered.added
        self._gathered, self._young = self._young, self._gathered

    def written(self, placed_upto: Mapping[int, int]) -> list[Due]:
        """The index has the messages of each lane up to a qseq: forget those in memory.

        Returns what is forgotten, whose memory is to be given back bit by bit.
        """
        old, self._gathered = self._gathered, _Young()
        young = self._young
        position = self._position
        # The index is read from the position on. Messages before the position stay in memory.
        while old.heap and position is not None and old.heap[0] <= position:
            heappush(young.heap, heappop(old.heap))
        for lane_id, added in old.added.items():
            upto = placed_upto.get(lane_id)
            if upto is None:  # the lane was deleted
                continue
            for first, dues_ms in reversed(added):
                if first + len(dues_ms) <= upto:
                    break
                skip = max(upto - first, 0)
                self._keep(lane_id, first + skip, dues_ms[skip:])
        self._rows = None
        return old.heap

    def _keep(self, lane_id: int, first: int, dues_ms: "array[int]") -> None:
        """Keep messages that the index lacks, but for those that were given out or are kept."""
        young = self._young
        young.added.setdefault(lane_id, []).insert(0, (first, dues_ms))
        for due_ms, qseq in zip(dues_ms, count(first), strict=False):
            due = Due(due_ms, lane_id, qseq)
            if self._position is None or due > self._position:
                heappush(young.heap, due)

    def take(self, until_ms: int, count_max: int) -> list[Due]:
        """The next messages whose time has come, `until_ms` included, in the order of the times.

        At most `count_max`; fewer also if very many were settled before their time. Raises
        CorruptLog when the index is wrong.
        """
        found: list[Due] = []
        for _ in range(count_max + _LOOKS_MAX):
            due = self._first()
            if due is None or due.due_ms > until_ms or len(found) >= count_max:
                break
            for heap in (self._young.heap, self._gathered.heap):
                if heap and heap[0] == due:
                    heappop(heap)
            if self._rows and self._rows[-1] == due:
                self._rows.pop()
                if not self._rows:
                    self._rows = None
            if self._position is None or due > self._position:
                self._position = due
            if self._waits(due):
                found.append(due)
        return found

    @property
    def next_ms(self) -> int | None:
        """When `take` has something to give out or to pass over; None: there is nothing.

        Raises CorruptLog when the index is wrong.
        """
        due = self._first()
        return None if due is None else due.due_ms

    def _first(self) -> Due | None:
        if self._rows is None:
            try:
                self._rows = self._index.due_after(self._position, _PAGE_ROWS)
            except (IndexDoubt, lmdb.Error) as doubt:
                raise self._on_doubt(doubt) from doubt
            self._rows.reverse()
        heaps = (self._young.heap, self._gathered.heap)
        tops = [heap[0] for heap in heaps if heap] + self._rows[-1:]
        return min(tops, default=None)

    def _waits(self, due: Due) -> bool:
        lane = self._lanes.get(due.lane_id)
        return lane is not None and bool(lane.settled.unsettled(due.qseq, 1))
