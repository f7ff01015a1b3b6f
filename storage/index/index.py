"""Where the messages are, in LMDB: derived from log and ledger, and deletable at any time.

    blocks      (lane u32, first qseq u64) big-endian -> hash u64, 0 u64, up to 254 pointers of 16
                bytes (segment u32, position u32, length u32, body size u32): 4080 bytes, which fill
                one overflow page
    acked       the same key -> hash, 32 bytes of bits: what is settled in a block that is not below
                the floor, and not settled as a whole
    lanes       lane -> hash, [next qseq, placed upto, floor, delivered, alive, alive bytes,
                spilled, ranges of blocks above the floor that are settled, attempts: first qseq,
                end, number, …, blocks that have due times]
    due, due_times   see due_rows.py
    segments    segment -> hash, [pointers to unsettled messages, their bytes]
    checkpoint  -> hash, up to where log and ledger are in here

The key is part of every hash. A checkpoint is one transaction; a message that came and went between
two checkpoints leaves no trace here. The environment must not be used across a fork; read
transactions are short, and only one thread writes.
"""

import struct
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import Any

import lmdb
import msgpack
from msgspec import Struct
from xxhash import xxh3_64_intdigest

from qlog.storage.bytes.batch import FORMAT_VERSION
from qlog.storage.bytes.footer import Columns
from qlog.storage.index.due_rows import Due, DueRows
from qlog.storage.index.rows import IndexDoubt, close_row, open_row
from qlog.storage.lanes.run import Pointers
from qlog.storage.lanes.settled import BLOCK, FULL, contains, unsettled
from qlog.storage.lmdb.environment import DAMAGE, open_environment
from qlog.storage.lmdb.headroom import Headroom
from qlog.storage.write.ledger import LedgerPosition

SPILL = 1 << 31  # segment ids from here on are files of spill/

_KEY = struct.Struct(">IQ")
_NUMBER = struct.Struct(">I")
_BLOCK_HEAD = struct.Struct("<QQ")  # hash, 0: with 254 pointers one overflow page
_CHECKPOINT = b"checkpoint"
_BLOCKS_CACHED_MAX = 64
_SELECT = bytes.maketrans(b"01", b"\0\1")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Up to where log and ledger are in the index."""

    uuid: bytes
    epoch: int
    lsn: int
    segment_id: int  # where the record of that LSN is, or will be
    position: int
    ledger: LedgerPosition
    spill_next: int  # spilled segments below this id are void after a restart


@dataclass(slots=True)
class LaneRow:
    next_qseq: int
    placed_upto: int  # each unsettled message of the log below this qseq has a pointer here
    floor: int
    delivered: int
    alive: int = 0  # unsettled messages with a pointer to the log
    alive_bytes: int = 0  # the sum of their bodies' sizes
    spilled: int = 0  # unsettled messages with a pointer to spill/
    full: list[int] = field(default_factory=list)  # ranges of settled blocks above the floor
    attempts: list[int] = field(default_factory=list)  # first, end, number, … of what came back
    due_blocks: int = 0  # blocks that have, or had, messages with due times


class Placed(Struct, gc=False):
    """Consecutive messages of a lane, and where they are.

    A checkpoint of thousands of lanes has a hundred thousand of them, and they form no cycles: the
    collector does not count them, nor look at them.
    """

    first: int
    segment_id: int
    positions: "array[int]"
    lengths: "array[int]"
    sizes: "array[int]"  # of the bodies
    dues_ms: "array[int] | None" = None  # due times; None: they have none

    def part(self, low: int, high: int) -> "Placed":
        """The messages from index `low` on and before index `high`."""
        return Placed(
            self.first + low,
            self.segment_id,
            self.positions[low:high],
            self.lengths[low:high],
            self.sizes[low:high],
            None if self.dues_ms is None else self.dues_ms[low:high],
        )


class LaneUpdate(Struct, gc=False):
    """What became of a lane since the last checkpoint."""

    lane_id: int
    next_qseq: int
    placed_upto: int
    floor: int
    delivered: int
    bitmaps: dict[int, int] = {}  # block -> bits, of those that changed
    full: list[int] = []  # ranges of blocks that are settled
    attempts: list[int] = []  # first, end, number, … of what came back
    placed: list[Placed] = []


@dataclass(frozen=True, slots=True)
class Move:
    """Messages that a compaction copied: pointers to `sources` become pointers to the segment."""

    segment_id: int
    sources: frozenset[int]
    columns: Columns = field(default_factory=Columns)  # a part of what the segment has


@dataclass(slots=True)
class Live:
    """The unsettled messages of a segment, counted by pointers."""

    count: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """The index's file, in pages. Pages that no database has are free, or LMDB's own."""

    page_bytes: int
    pages: int
    used: dict[str, int]  # by database
    map_bytes: int


class Index:
    """An open index. All methods raise IndexDoubt on damage, lmdb.Error when the disk fails.

    `reserve_bytes` of the disk are kept for writing when it is full.
    """

    def __init__(
        self,
        directory: Path,
        *,
        map_bytes: int,
        reserve_bytes: int = 0,
        read_only: bool = False,
        lock: bool = True,
    ) -> None:
        """`lock=False`: read without a lock file, see `open_environment`."""
        if not read_only:
            directory.mkdir(mode=0o750, exist_ok=True)
        try:
            self._env = open_environment(
                directory, map_bytes=map_bytes, dbs_max=8, read_only=read_only, lock=lock
            )
            create = not read_only
            self._blocks = self._env.open_db(b"blocks", create=create)
            self._acked = self._env.open_db(b"acked", create=create)
            self._lanes = self._env.open_db(b"lanes", create=create)
            self._segments = self._env.open_db(b"segments", create=create)
            self._checkpoint = self._env.open_db(b"checkpoint", create=create)
            self._due = self._env.open_db(b"due", create=create)
            self._due_times = self._env.open_db(b"due_times", create=create)
        except lmdb.Error as error:
            raise IndexDoubt(str(error)) from error
        self._headroom = Headroom(self._env, directory, reserve_bytes)
        self._cached: dict[tuple[int, int], array[int]] = {}

    def close(self) -> None:
        self._env.close()

    @contextmanager
    def _transaction(self, *, write: bool = False) -> Iterator["lmdb.Transaction[bytes]"]:
        """A transaction, in which errors that mean damage become IndexDoubt.

        LMDB is used only so.
        """
        try:
            with self._env.begin(write=write) as transaction:
                yield transaction
        except DAMAGE as error:
            raise IndexDoubt(str(error)) from error

    # -- reading

    def checkpoint(self) -> Checkpoint | None:
        """The last checkpoint; None in an index that was never finished."""
        with self._transaction() as transaction:
            row = transaction.get(_CHECKPOINT, db=self._checkpoint)
        if row is None:
            return None
        return unpack_checkpoint(open_row(_CHECKPOINT, row))

    def lanes(self) -> dict[int, LaneRow]:
        with self._transaction() as transaction:
            return {
                _open_number(key): LaneRow(*msgpack.unpackb(open_row(key, row)))
                for key, row in transaction.cursor(db=self._lanes)
            }

    def bitmaps(self) -> Iterator[tuple[int, int, int]]:
        """(lane, block, bits) of all partly settled blocks."""
        found = []
        with self._transaction() as transaction:
            for key, row in transaction.cursor(db=self._acked):
                lane_id, base = _open_key(key)
                bits = int.from_bytes(open_row(key, row), "little")
                found.append((lane_id, base // BLOCK, bits))
        yield from found

    def live(self) -> dict[int, Live]:
        """Segments with their unsettled messages."""
        with self._transaction() as transaction:
            return {
                _open_number(key): Live(*msgpack.unpackb(open_row(key, row)))
                for key, row in transaction.cursor(db=self._segments)
            }

    def live_of(self, segment_id: int) -> Live:
        """The unsettled messages of one segment."""
        key = _NUMBER.pack(segment_id)
        with self._transaction() as transaction:
            row = transaction.get(key, db=self._segments)
        return Live() if row is None else Live(*msgpack.unpackb(open_row(key, row)))

    def pointers(self, lane_id: int, qseq: int, count_max: int) -> Pointers:
        """The pointers from `qseq` on that lie in one block and one segment; at least one."""
        block, slot = divmod(qseq, BLOCK)
        columns = self._cached.get((lane_id, block))
        if columns is None:
            key = _KEY.pack(lane_id, block * BLOCK)
            with self._transaction() as transaction:
                row = transaction.get(key, db=self._blocks)
            columns = _open_block(key, row)
            if len(self._cached) >= _BLOCKS_CACHED_MAX:
                self._cached.clear()
            self._cached[lane_id, block] = columns
        segments = columns[4 * slot : 4 * (slot + count_max) : 4]
        if not segments or not segments[0]:
            raise IndexDoubt(f"no pointer to message {qseq} of lane {lane_id}")
        segment_id = segments[0]
        count = len(segments)
        if segments.count(segment_id) < count:
            count = next(at for at, other in enumerate(segments) if other != segment_id)
        end = 4 * (slot + count)
        return Pointers(
            segment_id,
            columns[4 * slot + 1 : end : 4],
            columns[4 * slot + 2 : end : 4],
            columns[4 * slot + 3 : end : 4],
        )

    def segments_of(self, lane_id: int, block: int) -> Sequence[int]:
        """The segment of each message of a block, 0 for a message without a pointer.

        Empty if there is no such block.
        """
        key = _KEY.pack(lane_id, block * BLOCK)
        with self._transaction() as transaction:
            row = transaction.get(key, db=self._blocks)
        return () if row is None else _open_block(key, row)[0::4]

    def all_pointers(self) -> Iterator[tuple[int, int, int, int, int]]:
        """(lane, qseq, segment, position, length) of everything in the index, settled or not."""
        with self._transaction() as transaction:
            for key, row in transaction.cursor(db=self._blocks):
                lane_id, base = _open_key(key)
                columns = _open_block(bytes(key), row)
                for slot in range(len(columns) // 4):
                    segment_id, position, length, _ = columns[4 * slot : 4 * slot + 4]
                    if segment_id:
                        yield lane_id, base + slot, segment_id, position, length

    def placed_from(self, lane_id: int, qseq: int) -> list[tuple[int, int]]:
        """The stretches (first, end) at or after `qseq` that have pointers, in order."""
        found: list[tuple[int, int]] = []
        with self._transaction() as transaction, transaction.cursor(db=self._blocks) as cursor:
            for key, row in _range(cursor, lane_id, qseq // BLOCK, None):
                base = _open_key(key)[1]
                segments = _open_block(key, row)[0::4]
                for at in range(max(qseq - base, 0), len(segments)):
                    if segments[at]:
                        if found and found[-1][1] == base + at:
                            found[-1] = (found[-1][0], base + at + 1)
                        else:
                            found.append((base + at, base + at + 1))
        return found

    @contextmanager
    def settlements(self) -> Iterator["Settlements"]:
        """What is settled by the last checkpoint, for many questions at once."""
        with self._transaction() as transaction:
            yield Settlements(transaction, self._lanes, self._acked)

    def due_after(self, position: Due | None, rows_max: int) -> list[Due]:
        """What waits to be due behind the last message of a position, or the first, in order."""
        with self._transaction() as transaction:
            return DueRows(transaction, self._due, self._due_times).after(position, rows_max)

    def spilled(self, lane_id: int) -> list[int]:
        """The qseqs of a lane that point to spill/."""
        found = []
        with self._transaction() as transaction, transaction.cursor(db=self._blocks) as cursor:
            at = cursor.set_range(_KEY.pack(lane_id, 0))
            while at:
                owner, base = _open_key(cursor.key())
                if owner != lane_id:
                    break
                segments = _open_block(cursor.key(), cursor.value())[0::4]
                found += [base + slot for slot, segment in enumerate(segments) if segment >= SPILL]
                at = cursor.next()
        return found

    def rows(self) -> Iterator[tuple[str, bytes, bytes | None]]:
        """(database, key, value) of every row as of one moment; a damaged one has no value.

        A block's value is its pointers, without the head.
        """
        with self._transaction() as transaction:
            for name, database in self._databases().items():
                for key, row in transaction.cursor(db=database):
                    key = bytes(key)
                    value: bytes | None = None
                    with suppress(IndexDoubt):
                        opened = name == "blocks"
                        value = _open_block(key, row).tobytes() if opened else open_row(key, row)
                    yield name, key, value

    def usage(self) -> Usage:
        """How much of the file is used, and by what."""
        with self._transaction() as transaction:
            pages = {}
            for name, database in self._databases().items():
                stat = transaction.stat(database)
                pages[name] = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        info = self._env.info()
        return Usage(self._env.stat()["psize"], info["last_pgno"] + 1, pages, info["map_size"])

    def _databases(self) -> dict[str, Any]:
        return {
            "checkpoint": self._checkpoint,
            "lanes": self._lanes,
            "segments": self._segments,
            "acked": self._acked,
            "blocks": self._blocks,
            "due": self._due,
            "due_times": self._due_times,
        }

    def forget_cached(self) -> None:
        """Forget blocks that were read: a checkpoint has changed them."""
        self._cached.clear()

    # -- writing

    def apply(
        self,
        updates: Iterable[LaneUpdate],
        dropped: Iterable[int],
        checkpoint: Checkpoint | None,
        unlinked: Iterable[int] = (),
        moves: Iterable[Move] = (),
    ) -> dict[int, Live]:
        """One transaction, synced. Returns the live counts of the segments that changed.

        `unlinked`: segments that are gone. `moves` are applied after the updates. Applied twice,
        the result is the same. Without a checkpoint the index stays unfinished (a rebuild in
        steps). Raises the OSError of a full disk when even the reserve does not suffice; nothing
        was changed then.
        """
        self._headroom.grow()
        try:
            return self._apply(updates, dropped, checkpoint, unlinked, moves)
        except lmdb.Error as error:
            full = self._headroom.full(error)
            if full is None:
                raise
            raise full from error

    def _apply(
        self,
        updates: Iterable[LaneUpdate],
        dropped: Iterable[int],
        checkpoint: Checkpoint | None,
        unlinked: Iterable[int],
        moves: Iterable[Move],
    ) -> dict[int, Live]:
        tally = _Tally()
        with self._transaction(write=True) as transaction:
            for lane_id in dropped:
                self._drop(transaction, lane_id, tally)
            for update in updates:
                self._update(transaction, update, tally)
            for move in moves:
                self._move(transaction, move, tally)
            live = {}
            for segment_id in tally.counts.keys() | tally.sizes.keys():
                key = _NUMBER.pack(segment_id)
                row = transaction.get(key, db=self._segments)
                count, size = msgpack.unpackb(open_row(key, row)) if row is not None else (0, 0)
                count += tally.counts[segment_id]
                size += tally.sizes[segment_id]
                if count < 0 or size < 0:
                    raise IndexDoubt(f"segment {segment_id} has fewer than no messages")
                transaction.put(
                    key, close_row(key, msgpack.packb([count, size])), db=self._segments
                )
                live[segment_id] = Live(count, size)
            for segment_id in unlinked:
                transaction.delete(_NUMBER.pack(segment_id), db=self._segments)
            if checkpoint is not None:
                ledger = checkpoint.ledger
                row = msgpack.packb(
                    [
                        FORMAT_VERSION,
                        checkpoint.uuid,
                        checkpoint.epoch,
                        checkpoint.lsn,
                        checkpoint.segment_id,
                        checkpoint.position,
                        [ledger.file_id, ledger.position, ledger.number],
                        checkpoint.spill_next,
                    ]
                )
                transaction.put(_CHECKPOINT, close_row(_CHECKPOINT, row), db=self._checkpoint)
        return live

    def _drop(self, transaction: lmdb.Transaction, lane_id: int, tally: "_Tally") -> None:
        key = _NUMBER.pack(lane_id)
        row = transaction.get(key, db=self._lanes)
        if row is None:
            return
        lane = LaneRow(*msgpack.unpackb(open_row(key, row)))
        self._delete_blocks(transaction, lane_id, lane, None, tally)
        transaction.delete(key, db=self._lanes)

    def _delete_blocks(
        self,
        transaction: lmdb.Transaction,
        lane_id: int,
        lane: LaneRow,
        end_block: int | None,
        tally: "_Tally",
    ) -> "_Counts":
        """Delete the blocks from the lane's floor to before `end_block` (None: to the end).

        Returns the change in the lane's counts of unsettled messages, as numbers below 0.
        """
        floor = lane.floor
        first_block = floor // BLOCK
        due_rows = DueRows(transaction, self._due, self._due_times)
        counts = _Counts()
        keys = []
        acked = {}
        with transaction.cursor(db=self._acked) as cursor:
            for key, row in _range(cursor, lane_id, first_block, end_block):
                acked[key] = int.from_bytes(open_row(key, row), "little")
        with transaction.cursor(db=self._blocks) as cursor:
            for key, row in _range(cursor, lane_id, first_block, end_block):
                bits = acked.get(key, 0)
                block = _open_key(key)[1] // BLOCK
                if block == first_block:
                    bits |= (1 << (floor - block * BLOCK)) - 1
                counts.add(tally.add(_open_block(key, row), bits, -1))
                if lane.due_blocks:
                    lane.due_blocks += due_rows.change(lane_id, block * BLOCK, bits, FULL, (), True)
                keys.append(key)
        for key in keys:
            transaction.delete(key, db=self._blocks)
        for key in acked:
            transaction.delete(key, db=self._acked)
        return counts

    def _update(self, transaction: lmdb.Transaction, update: LaneUpdate, tally: "_Tally") -> None:
        lane_id = update.lane_id
        lane_key = _NUMBER.pack(lane_id)
        row = transaction.get(lane_key, db=self._lanes)
        lane = (
            LaneRow(0, 0, 0, 0)
            if row is None
            else LaneRow(*msgpack.unpackb(open_row(lane_key, row)))
        )
        old_floor = lane.floor
        floor = max(update.floor, old_floor)
        old_floor_block = old_floor // BLOCK
        floor_block, floor_slot = divmod(floor, BLOCK)
        counts = _Counts(lane.alive, lane.alive_bytes, lane.spilled)
        if floor_block > old_floor_block:
            counts.add(self._delete_blocks(transaction, lane_id, lane, floor_block, tally))
        pieces = _pieces(update.placed, floor)
        due_rows = DueRows(transaction, self._due, self._due_times)
        touched = {block for block in update.bitmaps if block >= floor_block} | pieces.keys()
        if floor_slot and floor > old_floor:
            touched.add(floor_block)
        for block in sorted(touched):
            key = _KEY.pack(lane_id, block * BLOCK)
            row = transaction.get(key, db=self._blocks)
            old_bits, bits = self._update_bits(transaction, key, block, lane, update)
            columns = array("I") if row is None else _open_block(key, row)
            if block == old_floor_block:
                old_bits |= (1 << (old_floor - block * BLOCK)) - 1
            if block == floor_block:
                bits |= (1 << floor_slot) - 1
            if columns:
                counts.add(tally.add(columns, old_bits, -1))
            new_dues = [
                (piece.first - block * BLOCK, piece.dues_ms)
                for piece in pieces.get(block, ())
                if piece.dues_ms is not None
            ]
            if new_dues or lane.due_blocks:
                lane.due_blocks += due_rows.change(
                    lane_id, block * BLOCK, old_bits, bits, new_dues, bits == FULL
                )
            if bits == FULL:
                if row is not None:
                    transaction.delete(key, db=self._blocks)
                continue
            if block in pieces:
                for piece in pieces[block]:
                    _write_piece(columns, block, piece)
                transaction.put(key, _close_block(key, columns), db=self._blocks)
            if columns:
                counts.add(tally.add(columns, bits, 1))
        if min(counts.alive, counts.alive_bytes, counts.spilled, lane.due_blocks) < 0:
            raise IndexDoubt(f"lane {lane_id} has fewer than no messages")
        lane_row = _lane_row(update, lane, floor, counts)
        transaction.put(lane_key, close_row(lane_key, lane_row), db=self._lanes)

    def _update_bits(
        self,
        transaction: lmdb.Transaction,
        key: bytes,
        block: int,
        lane: LaneRow,
        update: LaneUpdate,
    ) -> tuple[int, int]:
        """Write what is settled in a block; returns the bits before and after.

        Of a block that is settled as a whole the lane's row says so.
        """
        old_row = transaction.get(key, db=self._acked)
        old_bits = 0 if old_row is None else int.from_bytes(open_row(key, old_row), "little")
        if contains(lane.full, block):
            old_bits = FULL
        bits = update.bitmaps.get(block, old_bits)
        is_full = contains(update.full, block)
        if is_full:
            bits = FULL
        if is_full or not bits:
            if old_row is not None:
                transaction.delete(key, db=self._acked)
        elif bits != old_bits:
            transaction.put(key, close_row(key, bits.to_bytes(32, "little")), db=self._acked)
        return old_bits, bits

    def _move(self, transaction: lmdb.Transaction, move: Move, tally: "_Tally") -> None:
        by_lane: dict[int, list[Placed]] = {}
        for run in move.columns.runs():
            for lane_id, first in zip(run.lanes, run.firsts, strict=True):
                placed = Placed(first, move.segment_id, run.positions, run.lengths, run.sizes)
                by_lane.setdefault(lane_id, []).append(placed)
        for lane_id, runs in by_lane.items():
            row = transaction.get(_NUMBER.pack(lane_id), db=self._lanes)
            if row is None:
                continue
            floor = LaneRow(*msgpack.unpackb(open_row(_NUMBER.pack(lane_id), row))).floor
            for block, pieces in _pieces(runs, floor).items():
                key = _KEY.pack(lane_id, block * BLOCK)
                row = transaction.get(key, db=self._blocks)
                if row is None:  # all of it was settled
                    continue
                columns = _open_block(key, row)
                settled = transaction.get(key, db=self._acked)
                bits = 0 if settled is None else int.from_bytes(open_row(key, settled), "little")
                if block == floor // BLOCK:
                    bits |= (1 << (floor - block * BLOCK)) - 1
                tally.add(columns, bits, -1)
                for piece in pieces:
                    _write_moved(columns, block, piece, move.sources)
                transaction.put(key, _close_block(key, columns), db=self._blocks)
                tally.add(columns, bits, 1)


class Settlements:
    """See `Index.settlements`."""

    def __init__(
        self, transaction: lmdb.Transaction, lanes: lmdb._Database, acked: lmdb._Database
    ) -> None:
        self._transaction = transaction
        self._lanes = lanes
        self._acked = acked
        self._rows: dict[int, LaneRow | None] = {}  # None: there is no such lane

    def unsettled(self, lane_id: int, first: int, count: int) -> int:
        """Bits: which of `count` messages from qseq `first` on are not settled."""
        if lane_id not in self._rows:
            key = _NUMBER.pack(lane_id)
            row = self._transaction.get(key, db=self._lanes)
            self._rows[lane_id] = (
                None if row is None else LaneRow(*msgpack.unpackb(open_row(key, row)))
            )
        lane = self._rows[lane_id]
        if lane is None:
            return 0
        full = lane.full

        def bits_of(block: int) -> int:
            if contains(full, block):
                return FULL
            key = _KEY.pack(lane_id, block * BLOCK)
            row = self._transaction.get(key, db=self._acked)
            return 0 if row is None else int.from_bytes(open_row(key, row), "little")

        return unsettled(first, count, lane.floor, bits_of)


@dataclass(slots=True)
class _Counts:
    """Counts of unsettled messages of a lane, or changes of these counts."""

    alive: int = 0  # in the log
    alive_bytes: int = 0  # their bodies
    spilled: int = 0

    def add(self, other: "_Counts") -> None:
        self.alive += other.alive
        self.alive_bytes += other.alive_bytes
        self.spilled += other.spilled


def _lane_row(update: LaneUpdate, lane: LaneRow, floor: int, counts: _Counts) -> bytes:
    """The row of a lane after an update: the fields of LaneRow, in their order."""
    return msgpack.packb(
        [
            max(update.next_qseq, lane.next_qseq),
            update.placed_upto,
            floor,
            max(update.delivered, lane.delivered),
            counts.alive,
            counts.alive_bytes,
            counts.spilled,
            update.full,
            update.attempts,
            lane.due_blocks,
        ]
    )


class _Tally:
    """Changes of the segments' live counts."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.sizes: Counter[int] = Counter()

    def add(self, columns: "array[int]", bits: int, sign: int) -> _Counts:
        """Count a block's unsettled messages in (`sign` 1) or out (-1).

        Returns the lane's change.
        """
        segments: array[int] = columns[0::4]
        lengths: array[int] = columns[2::4]
        bodies: array[int] = columns[3::4]
        count = len(segments)
        if bits:
            unsettled = ~bits & ((1 << count) - 1)
            if not unsettled:
                return _Counts()
            select = format(unsettled, f"0{count}b")[::-1].encode().translate(_SELECT)
            segments = array("I", compress(segments, select))
            lengths = array("I", compress(lengths, select))
            bodies = array("I", compress(bodies, select))
            count = len(segments)
        one = segments[0]
        if segments.count(one) == count:
            by_segment = {one: [count, sum(lengths), sum(bodies)]}
        else:
            by_segment = {segment_id: [0, 0, 0] for segment_id in segments}
            for segment_id, length, body in zip(segments, lengths, bodies, strict=True):
                sums = by_segment[segment_id]
                sums[0] += 1
                sums[1] += length
                sums[2] += body
        result = _Counts()
        for segment_id, (many, size, body_bytes) in by_segment.items():
            if segment_id:  # 0: no message there
                self.counts[segment_id] += sign * many
                self.sizes[segment_id] += sign * size
                if segment_id >= SPILL:
                    result.spilled += sign * many
                else:
                    result.alive += sign * many
                    result.alive_bytes += sign * body_bytes
        return result


def unpack_checkpoint(row: bytes) -> Checkpoint:
    """Raises IndexDoubt for another format."""
    version, *rest = msgpack.unpackb(row)
    if version != FORMAT_VERSION:
        raise IndexDoubt(f"format {version}")
    uuid, epoch, lsn, segment_id, position, ledger, spill_next = rest
    return Checkpoint(uuid, epoch, lsn, segment_id, position, LedgerPosition(*ledger), spill_next)


def _pieces(placed: Iterable[Placed], floor: int) -> dict[int, list[Placed]]:
    """The runs, cut at the floor and at the limits of blocks."""
    pieces: dict[int, list[Placed]] = {}
    for run in placed:
        end = run.first + len(run.positions)
        at = max(run.first, floor)
        while at < end:
            block = at // BLOCK
            stop = min(end, (block + 1) * BLOCK)
            piece = run.part(at - run.first, stop - run.first)
            pieces.setdefault(block, []).append(piece)
            at = stop
    return pieces


def _write_piece(columns: "array[int]", block: int, piece: Placed) -> None:
    slot = piece.first - block * BLOCK
    count = len(piece.positions)
    start = 4 * slot
    end = start + 4 * count
    if len(columns) < end:
        columns.frombytes(bytes(4 * (end - len(columns))))
    columns[start:end:4] = array("I", [piece.segment_id]) * count
    columns[start + 1 : end : 4] = piece.positions
    columns[start + 2 : end : 4] = piece.lengths
    columns[start + 3 : end : 4] = piece.sizes


def _write_moved(columns: "array[int]", block: int, piece: Placed, sources: frozenset[int]) -> None:
    """The same as `_write_piece`, but only for pointers to one of the sources."""
    start = 4 * (piece.first - block * BLOCK)
    for slot, position, length in zip(  # a copied message has the body that it had
        range(start, len(columns), 4), piece.positions, piece.lengths, strict=False
    ):
        if columns[slot] in sources:
            columns[slot] = piece.segment_id
            columns[slot + 1] = position
            columns[slot + 2] = length


def _range(
    cursor: lmdb.Cursor, lane_id: int, first_block: int, end_block: int | None
) -> Iterator[tuple[bytes, bytes]]:
    """The rows of the blocks of a lane."""
    end = None if end_block is None else end_block * BLOCK
    at = cursor.set_range(_KEY.pack(lane_id, first_block * BLOCK))
    while at:
        key = bytes(cursor.key())
        owner, base = _open_key(key)
        if owner != lane_id or (end is not None and base >= end):
            return
        yield key, bytes(cursor.value())
        at = cursor.next()


def _open_key(key: bytes) -> tuple[int, int]:
    """(lane, first qseq) of a block."""
    if len(key) != _KEY.size:
        raise IndexDoubt(f"the key {key.hex()} is damaged")
    lane_id, base = _KEY.unpack(key)
    return lane_id, base


def _open_number(key: bytes) -> int:
    """The lane or segment that a row is about."""
    if len(key) != _NUMBER.size:
        raise IndexDoubt(f"the key {key.hex()} is damaged")
    number: int = _NUMBER.unpack(key)[0]
    return number


def _close_block(key: bytes, columns: "array[int]") -> bytes:
    """The row of a block, from its pointers."""
    pointers = columns.tobytes()
    return _BLOCK_HEAD.pack(xxh3_64_intdigest(pointers, xxh3_64_intdigest(key)), 0) + pointers


def _open_block(key: bytes, row: bytes | memoryview | None) -> "array[int]":
    """The pointers of a block: segment, position, length, body size, segment, …"""
    head = _BLOCK_HEAD.size
    if row is None or len(row) <= head or (len(row) - head) % 16:
        raise IndexDoubt(f"the block {key.hex()} is missing or damaged")
    pointers = bytes(row[head:])
    digest, zero = _BLOCK_HEAD.unpack_from(row)
    if zero or xxh3_64_intdigest(pointers, xxh3_64_intdigest(key)) != digest:
        raise IndexDoubt(f"the block {key.hex()} is damaged")
    columns = array("I")
    columns.frombytes(pointers)
    return columns
