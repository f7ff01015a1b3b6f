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
from typing import Any

import lmdb

from qlog.storage.errors import CorruptLog
from qlog.storage.index.due_rows import Due, together
from qlog.storage.index.index import Index
from qlog.storage.index.rows import IndexDoubt
from qlog.storage.lanes.lane import Lane

_PAGE_ROWS = 256
_LOOKS_MAX = 4096  # one call passes over at most so many stretches of settled messages


class _Young:
    """Messages that came between two checkpoints."""

    def __init__(self) -> None:
        self.heap: list[Due] = []
        self.added: dict[int, list[tuple[int, array[int]]]] = {}  # lane -> (first qseq, due times)

    def add(self, lane_id: int, first: int, dues_ms: "array[int]") -> None:
        self.added.setdefault(lane_id, []).append((first, dues_ms))
        for due in together(lane_id, first, dues_ms):
            heappush(self.heap, due)

    def given_out(self, due: Due, end: int) -> None:
        """Messages of this time and lane were given out, up to before the qseq `end`."""
        heap = self.heap
        while heap and heap[0][:2] == due[:2] and heap[0].qseq < end:
            known = heappop(heap)
            if known.qseq + known.length > end:
                heappush(heap, known.part(end, known.qseq + known.length))


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
        self._rows: list[Due] | None = None  # what the index has behind it, the next one last
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
        for due in together(lane_id, first, dues_ms):
            left = due.behind(self._position)
            if left is not None:
                heappush(young.heap, left)

    def take(self, until_ms: int, count_max: int) -> list[Due]:
        """The next messages whose time has come, `until_ms` included, in the order of the times.

        At most `count_max`; fewer also if very many were settled before their time. Raises
        CorruptLog when the index is wrong.
        """
        found: list[Due] = []
        left = count_max
        for _ in range(count_max + _LOOKS_MAX):
            if not left:
                break
            due = self._first()
            if due is None or due.due_ms > until_ms:
                break
            first, end = self._unsettled(due, left)
            self._given_out(due, end)
            if first < end:
                found.append(due.part(first, end))
                left -= end - first
        return found

    def _unsettled(self, due: Due, count_max: int) -> tuple[int, int]:
        """The first stretch of these messages that is not settled; empty at their end."""
        end = due.qseq + due.length
        lane = self._lanes.get(due.lane_id)
        return (end, end) if lane is None else lane.settled.stretch(due.qseq, end, count_max)

    def _given_out(self, due: Due, end: int) -> None:
        """These messages, up to before the qseq `end`, were given out, or are settled.

        While a checkpoint is taken over, memory and the index may both have them.
        """
        self._young.given_out(due, end)
        self._gathered.given_out(due, end)
        rows = self._rows
        while rows and rows[-1][:2] == due[:2] and rows[-1].qseq < end:
            known = rows.pop()
            if known.qseq + known.length > end:
                rows.append(known.part(end, known.qseq + known.length))
            elif not rows:
                self._rows = None  # the index may have more
        last = due.part(end - 1, end)
        if self._position is None or last > self._position:
            self._position = last

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
