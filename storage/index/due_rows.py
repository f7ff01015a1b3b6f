"""When messages are due, in the index: rows for those that wait, in the order of the times.

    due        (due ms u64, lane u32, first qseq u64) big-endian -> hash, length u16 big-endian: so
               many messages of a block that follow one another, and are due at the same time
    due_times  (lane u32, first qseq u64) big-endian, as the key of a block -> hash, a u64 for each
               of the block's messages: when it is due, or 0

`due` is what is read. `due_times` says which rows of `due` change when messages of a block are
settled; only blocks that have had a message with a due time have a row in it. Promises that `due`
is exact: a message is in a row if, and only if, it has a pointer and is not settled.

Messages that come together, and wait for equally long, share a row: each row that is written or
removed costs the checkpoint thread a wait for the interpreter. Earlier versions wrote a row without
a length for each message; such rows count as one message, and stay until their block changes.
"""

import struct
from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import lmdb

from qlog.storage.index.rows import IndexDoubt, close_row, open_row

DUE_KEY = struct.Struct(">QIQ")
_BLOCK_KEY = struct.Struct(">IQ")
_LENGTH = struct.Struct(">H")


class Due(NamedTuple):
    """Messages that wait to be due: `length` of a lane from `qseq` on, all at the same time.

    Values compare in the order of rows.
    """

    due_ms: int
    lane_id: int
    qseq: int
    length: int = 1

    def part(self, first: int, end: int) -> "Due":
        """Those of the messages with qseqs from `first` on and before `end`."""
        return Due(self.due_ms, self.lane_id, first, end - first)

    def behind(self, position: "Due | None") -> "Due | None":
        """Those that come after the last message of `position`; None: all come before."""
        if position is None:
            return self
        if self[:2] == position[:2]:
            first, end = max(self.qseq, position.qseq + position.length), self.qseq + self.length
            return self.part(first, end) if first < end else None
        return self if self > position else None

    def each(self) -> Iterator["Due"]:
        """The messages, one by one."""
        for qseq in range(self.qseq, self.qseq + self.length):
            yield Due(self.due_ms, self.lane_id, qseq)


def together(lane_id: int, first: int, times_ms: "array[int]", settled: int = 0) -> list[Due]:
    """Messages by due times, those that follow one another and have the same time together.

    Arguments: `first` is the qseq of the first one; a time of 0 is none. `settled`: the bits of
    messages to leave out.
    """
    count = len(times_ms)
    if count and not settled and times_ms[0] and times_ms.count(times_ms[0]) == count:
        return [Due(times_ms[0], lane_id, first, count)]
    found = []
    at = 0
    while at < count:
        due_ms, start = times_ms[at], at
        at += 1
        if not due_ms or settled >> start & 1:
            continue
        while at < count and times_ms[at] == due_ms and not settled >> at & 1:
            at += 1
        found.append(Due(due_ms, lane_id, first + start, at - start))
    return found


class DueRows:
    """The two databases within one transaction of the index."""

    def __init__(
        self, transaction: lmdb.Transaction, due: lmdb._Database, times: lmdb._Database
    ) -> None:
        self._transaction = transaction
        self._due = due
        self._times = times

    def after(self, position: Due | None, rows_max: int) -> list[Due]:
        """What waits behind the last message of a position, or the first of all, in order."""
        found: list[Due] = []
        with self._transaction.cursor(db=self._due) as cursor:
            if position is None:
                at = cursor.first()
            else:
                at = cursor.set_range(DUE_KEY.pack(*position[:3]))
                # The row before may have messages behind the position, too.
                at = cursor.prev() if at else cursor.last()
                at = at or cursor.first()
            while at and len(found) < rows_max:
                due = open_due(bytes(cursor.key()), cursor.value()).behind(position)
                if due is not None:
                    found.append(due)
                at = cursor.next()
        return found

    def change(
        self,
        lane_id: int,
        base: int,
        settled_before: int,
        settled_now: int,
        new: Iterable[tuple[int, "array[int]"]],
        is_over: bool,
    ) -> int:
        """Bring the rows of a block up to date. Returns the change in the number of blocks with due
        times.

        Arguments: `base` is the first qseq of the block. The bits say which of its messages were
        settled before, and which are settled now. `new` are due times, by the slot of the first one
        in the block. `is_over`: the block itself goes.
        """
        key = _BLOCK_KEY.pack(lane_id, base)
        times_row = self._transaction.get(key, db=self._times)
        times = array("Q") if times_row is None else _open_times(key, times_row)
        before = together(lane_id, base, times, settled_before)
        changed = False
        for slot, dues_ms in new:
            end = slot + len(dues_ms)
            if len(times) < end:
                times.extend([0] * (end - len(times)))
            times[slot:end] = dues_ms
            changed = True
        now = [] if is_over else together(lane_id, base, times, settled_now)
        kept = set(before).intersection(now)
        for due in before:
            if due not in kept:
                self._remove(due)
        for due in now:
            if due not in kept:
                due_key = DUE_KEY.pack(*due[:3])
                row = close_row(due_key, _LENGTH.pack(due.length))
                self._transaction.put(due_key, row, db=self._due)
        if is_over:
            self._transaction.delete(key, db=self._times)
            return 0 if times_row is None else -1
        if changed:
            self._transaction.put(key, close_row(key, times.tobytes()), db=self._times)
        return int(changed and times_row is None)

    def _remove(self, due: Due) -> None:
        """Remove the row of these messages, or the rows, if an earlier version has written them."""
        at, end = due.qseq, due.qseq + due.length
        while at < end:
            key = DUE_KEY.pack(due.due_ms, due.lane_id, at)
            row = self._transaction.pop(key, db=self._due)
            at += 1 if row is None else open_due(key, row).length


def open_due(key: bytes, row: bytes | memoryview) -> Due:
    """The messages of a row. Raises IndexDoubt when it is damaged."""
    value = open_row(key, row)
    if len(key) != DUE_KEY.size or len(value) not in (0, _LENGTH.size):
        raise IndexDoubt(f"the row {key.hex()} is damaged")
    due_ms, lane_id, qseq = DUE_KEY.unpack(key)
    return Due(due_ms, lane_id, qseq, length_of(value))


def length_of(value: bytes) -> int:
    """How many messages a row has, by its value; rows of earlier versions have none."""
    length: int = _LENGTH.unpack(value)[0] if value else 1
    return length


def _open_times(key: bytes, row: bytes | memoryview) -> "array[int]":
    times = array("Q")
    data = open_row(key, row)
    if len(data) % times.itemsize:
        raise IndexDoubt(f"the row {key.hex()} is damaged")
    times.frombytes(data)
    return times
