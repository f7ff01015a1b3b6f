"""When messages are due, in the index: a row for each that waits, in the order of the times.

    due        (due ms u64, lane u32, qseq u64) big-endian -> hash
    due_times  (lane u32, first qseq u64) big-endian, as the key of a block -> hash, a u64 for each
               of the block's messages: when it is due, or 0

`due` is what is read. `due_times` says which rows of `due` go when messages of a block are
settled; only blocks that have had a message with a due time have a row in it. Promises that `due`
is exact: a row is there if, and only if, its message has a pointer and is not settled.
"""

import struct
from array import array
from collections.abc import Iterable
from typing import NamedTuple

import lmdb

from qlog.storage.index.rows import IndexDoubt, close_row, open_row

DUE_KEY = struct.Struct(">QIQ")
_BLOCK_KEY = struct.Struct(">IQ")


class Due(NamedTuple):
    """A message that waits to be due. Values compare in the order of rows."""

    due_ms: int
    lane_id: int
    qseq: int


class DueRows:
    """The two databases within one transaction of the index."""

    def __init__(
        self, transaction: lmdb.Transaction, due: lmdb._Database, times: lmdb._Database
    ) -> None:
        self._transaction = transaction
        self._due = due
        self._times = times

    def after(self, position: Due | None, count_max: int) -> list[Due]:
        """The rows behind a position, or the first ones, in order."""
        found: list[Due] = []
        with self._transaction.cursor(db=self._due) as cursor:
            at = cursor.first() if position is None else cursor.set_range(DUE_KEY.pack(*position))
            while at and len(found) < count_max:
                due = _open_due(bytes(cursor.key()), cursor.value())
                if due != position:
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
        row = self._transaction.get(key, db=self._times)
        times = array("Q") if row is None else _open_times(key, row)
        before = _waiting(times, settled_before)
        changed = False
        for slot, dues_ms in new:
            end = slot + len(dues_ms)
            if len(times) < end:
                times.extend([0] * (end - len(times)))
            times[slot:end] = dues_ms
            changed = True
        now = {} if is_over else _waiting(times, settled_now)
        for slot, due_ms in before.items():
            if now.get(slot) != due_ms:
                self._transaction.delete(DUE_KEY.pack(due_ms, lane_id, base + slot), db=self._due)
        for slot, due_ms in now.items():
            if before.get(slot) != due_ms:
                due_key = DUE_KEY.pack(due_ms, lane_id, base + slot)
                self._transaction.put(due_key, close_row(due_key, b""), db=self._due)
        if is_over:
            self._transaction.delete(key, db=self._times)
            return 0 if row is None else -1
        if changed:
            self._transaction.put(key, close_row(key, times.tobytes()), db=self._times)
        return int(changed and row is None)


def _waiting(times: "array[int]", settled: int) -> dict[int, int]:
    """slot -> due time of the messages that have one and are not settled."""
    return {slot: due_ms for slot, due_ms in enumerate(times) if due_ms and not settled >> slot & 1}


def _open_due(key: bytes, row: bytes | memoryview) -> Due:
    if len(key) != DUE_KEY.size or open_row(key, row):
        raise IndexDoubt(f"the row {key.hex()} is damaged")
    return Due(*DUE_KEY.unpack(key))


def _open_times(key: bytes, row: bytes | memoryview) -> "array[int]":
    times = array("Q")
    data = open_row(key, row)
    if len(data) % times.itemsize:
        raise IndexDoubt(f"the row {key.hex()} is damaged")
    times.frombytes(data)
    return times
