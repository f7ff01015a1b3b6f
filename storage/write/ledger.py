"""The ledger: settlements, deliveries, attempts, definitions, and which segments must exist.

It is one file, in the frame of the log (bytes/batch.py). The body of a batch is a msgpack list:
first the log's durable LSN, then records. A record is an entry of the journal (storage/journal.py)
or a fact of this directory; it is packed and unpacked here only. A batch's `base` counts batches;
its `durable` is the number of the first batch that was not synced when it was written. Acks are
pairs of integers (gap, count), which msgpack packs as small as varints. A file begins with a
snapshot of everything that counts. When the file is full the next one takes over as a whole: it is
written, synced and renamed, and only then is the old file unlinked.

The next file's space is reserved, and writes stay within reserved space, so that acks go on when
the disk is full. Reserved space is never given back, also not when the broker is stopped: somebody
else would take it. This file does not know what lanes or definitions mean.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgpack

from qlog.storage.bytes.batch import (
    BATCH_HEADER_BYTES,
    FILE_HEADER_BYTES,
    LEDGER_MAGIC,
    pack_batch,
    pack_file_header,
)
from qlog.storage.bytes.checks import place_seed
from qlog.storage.bytes.datadir import Paths, numbered
from qlog.storage.bytes.disk import Disk
from qlog.storage.errors import is_shortage
from qlog.storage.journal import (
    Attempts,
    Defined,
    Delivered,
    LaneDeleted,
    LaneState,
    Noted,
    Restored,
    Settled,
    Time,
)

# A packed record is a list that begins with one of these.
ACK = 1  # lane, gap, count, gap, count, …: each gap counts from the end of the run before (from 0)
LANE_DELETED = 2  # lane
DELIVERED = 3  # lane, qseq: everything below was handed out once
LANE = 4  # lane, next qseq, floor, delivered, block, bits, block, bits, …: a lane in a snapshot
SEGMENTS = 5  # next id, its base LSN, id, id, …: in a snapshot, the segments that must exist
SEGMENT_DROPPED = 6  # id, end LSN: all in it is settled; the file may be gone
SNAPSHOT_END = 7  # what comes before in this file is complete
TIME = 8  # ms since 1970: when this batch was handed over; batches without a TIME follow within 1 s
SEGMENT_REPLACED = 9  # id, old id, …: what was alive in the old segments is also in this one
ATTEMPTS = 10  # lane, gap, count, attempts, …: how often they came back; gaps as in ACK, or below 0
RESTORED = 11  # lane, gap, count, …: settled messages that wait again, without attempts
DEFINED = 12  # kind, name, value: a definition; nil: it is deleted

_BLOCK_BYTES = 32  # the bits of a block of messages
_SNAPSHOT_RECORDS_A_BATCH = 1000
_ZEROS = bytes(1 << 20)


# -- facts of this directory: records that are no entries of the journal


class Segments(NamedTuple):
    """In a snapshot: the segments `ids` must exist.

    The next one is `next_id`, whose records begin at `next_lsn`; it must exist if a later one does.
    """

    next_id: int
    next_lsn: int
    ids: Sequence[int]


class SegmentDropped(NamedTuple):
    """All in the segment, which ends at `end_lsn`, is settled; the file may be gone."""

    id: int
    end_lsn: int


class SegmentReplaced(NamedTuple):
    """What was alive in the segments `old_ids` is also in this one."""

    id: int
    old_ids: Sequence[int]


class SnapshotEnd(NamedTuple):
    """What came before in this file is complete."""


class Unknown(NamedTuple):
    """A record that this qlog does not know."""

    packed: Sequence[Any]


Local = Segments | SegmentDropped | SegmentReplaced | SnapshotEnd | Unknown
Record = Noted | Local
Records = Sequence[Record]


# -- a record as it is packed


def pack_record(record: Record) -> list[Any]:
    """The list that msgpack packs."""
    return _PACKERS[type(record)](record)


def unpack_record(packed: Sequence[Any]) -> Record:
    """The record in a list that msgpack has unpacked."""
    unpack = _UNPACKERS.get(packed[0])
    return Unknown(packed) if unpack is None else unpack(packed)


def pack_body(records: Iterable[Record], durable_lsn: int) -> bytes:
    """The body of a batch."""
    body: bytes = msgpack.packb([durable_lsn, *map(pack_record, records)])
    return body


def unpack_body(body: bytes) -> tuple[int, list[Record]]:
    """(the log's durable LSN, records) of a batch."""
    durable_lsn, *packed = msgpack.unpackb(body)
    return durable_lsn, list(map(unpack_record, packed))


def _pack_ranges(kind: int, lane_id: int, ranges: Sequence[int]) -> list[Any]:
    packed: list[Any] = [kind, lane_id]
    before = 0
    for first, end in zip(ranges[0::2], ranges[1::2], strict=True):
        packed += (first - before, end - first)
        before = end
    return packed


def _unpack_ranges(packed: Sequence[Any]) -> list[int]:
    if len(packed) == 4:  # one range, as it is mostly
        _, _, first, count = packed
        return [first, first + count]
    ranges: list[int] = []
    at = 0
    for gap, count in zip(packed[2::2], packed[3::2], strict=True):
        at += gap
        ranges += (at, at + count)
        at += count
    return ranges


def _pack_attempts(entry: Attempts) -> list[Any]:
    packed: list[Any] = [ATTEMPTS, entry.lane_id]
    flat = entry.ranges
    before = 0
    for first, end, attempts in zip(flat[0::3], flat[1::3], flat[2::3], strict=True):
        packed += (first - before, end - first, attempts)
        before = end
    return packed


def _unpack_attempts(packed: Sequence[Any]) -> Attempts:
    ranges: list[int] = []
    at = 0
    for gap, count, attempts in zip(packed[2::3], packed[3::3], packed[4::3], strict=True):
        at += gap
        ranges += (at, at + count, attempts)
        at += count
    return Attempts(packed[1], ranges)


def _pack_lane(entry: LaneState) -> list[Any]:
    packed: list[Any] = [LANE, *entry[:4]]
    for block, bits in entry.bits.items():
        packed += (block, bits.to_bytes(_BLOCK_BYTES, "little"))
    return packed


def _unpack_lane(packed: Sequence[Any]) -> LaneState:
    _, lane_id, next_qseq, floor, delivered, *blocks = packed
    bits = {
        block: int.from_bytes(bitmap, "little")
        for block, bitmap in zip(blocks[0::2], blocks[1::2], strict=True)
    }
    return LaneState(lane_id, next_qseq, floor, delivered, bits)


_PACKERS: dict[type, Callable[[Any], list[Any]]] = {
    Settled: lambda one: _pack_ranges(ACK, *one),
    LaneDeleted: lambda one: [LANE_DELETED, one.lane_id],
    Delivered: lambda one: [DELIVERED, *one],
    LaneState: _pack_lane,
    Segments: lambda one: [SEGMENTS, one.next_id, one.next_lsn, *one.ids],
    SegmentDropped: lambda one: [SEGMENT_DROPPED, *one],
    SnapshotEnd: lambda one: [SNAPSHOT_END],
    Time: lambda one: [TIME, one.ms],
    SegmentReplaced: lambda one: [SEGMENT_REPLACED, one.id, *one.old_ids],
    Attempts: _pack_attempts,
    Restored: lambda one: _pack_ranges(RESTORED, *one),
    Defined: lambda one: [DEFINED, *one],
}
_UNPACKERS: dict[int, Callable[[Sequence[Any]], Record]] = {
    ACK: lambda packed: Settled(packed[1], _unpack_ranges(packed)),
    LANE_DELETED: lambda packed: LaneDeleted(packed[1]),
    DELIVERED: lambda packed: Delivered(packed[1], packed[2]),
    LANE: _unpack_lane,
    SEGMENTS: lambda packed: Segments(packed[1], packed[2], packed[3:]),
    SEGMENT_DROPPED: lambda packed: SegmentDropped(packed[1], packed[2]),
    SNAPSHOT_END: lambda packed: SnapshotEnd(),
    TIME: lambda packed: Time(packed[1]),
    SEGMENT_REPLACED: lambda packed: SegmentReplaced(packed[1], packed[2:]),
    ATTEMPTS: _unpack_attempts,
    RESTORED: lambda packed: Restored(packed[1], _unpack_ranges(packed)),
    DEFINED: lambda packed: Defined(packed[1], packed[2], packed[3]),
}


@dataclass(frozen=True, slots=True)
class LedgerPosition:
    """A place in the ledger; everything before it is in `file_id` or older."""

    file_id: int
    position: int
    number: int  # of the next batch


class LedgerWriter:
    """Appends to the ledger. Used by one thread at a time: recovery first, then the commit thread.

    All methods raise OSError and SyncFailed. After an OSError of a full disk the same call may be
    made again. The first calls must be `remove_older` and `roll`.

    Arguments: `file_id` is the file that an earlier run of the broker wrote to, 0 for none;
    `number` is that of the next batch.
    """

    def __init__(
        self,
        disk: Disk,
        paths: Paths,
        uuid: bytes,
        epoch: int,
        *,
        file_bytes: int,
        file_id: int = 0,
        number: int = 0,
    ) -> None:
        self._disk = disk
        self._paths = paths
        self._uuid = uuid
        self._epoch = epoch
        self._file_bytes = file_bytes
        self._file = -1
        self._file_id = file_id
        self._capacity = 0
        self._position = 0
        self._number = number
        self._synced_number = 0
        self._spare_bytes = 0  # the size of the file that comes next; 0: it is not ready
        # Older files are kept if they have batches from this number on; None: none is kept. The
        # owner's thread sets it.
        self.keep_from: int | None = None
        self._bases: dict[int, int] = {}  # file -> the number of its first batch

    @property
    def position(self) -> LedgerPosition:
        return LedgerPosition(self._file_id, self._position, self._number)

    @property
    def wants_roll(self) -> bool:
        """The file is nearly full."""
        return self._position > self._capacity - self._capacity // 8

    @property
    def dirty(self) -> bool:
        """Something was appended since the last sync."""
        return self._synced_number != self._number

    def append(self, records: Records, durable_lsn: int) -> None:
        """Write one batch. It survives the process; `sync` makes it survive a power loss."""
        body = pack_body(records, durable_lsn)
        self._position = self._write(self._file, self._file_id, self._position, records, body)
        self._number += 1

    def sync(self) -> None:
        self._disk.sync_data(self._file)
        self._synced_number = self._number

    def roll(
        self, snapshot: Iterable[Record], durable_lsn: int, *, gap: bool = False
    ) -> LedgerPosition:
        """Go on in a new file that begins with this snapshot. Returns the snapshot's position.

        `gap`: the snapshot has what was never written as a batch. A number is left out for that, so
        that nobody takes the new file for the continuation of the old one. Call `remove_older`
        next.
        """
        bodies = []
        records: list[Record] = [*snapshot, SnapshotEnd()]
        for start in range(0, len(records), _SNAPSHOT_RECORDS_A_BATCH):
            chunk = records[start : start + _SNAPSHOT_RECORDS_A_BATCH]
            bodies.append((chunk, pack_body(chunk, durable_lsn)))
        size = FILE_HEADER_BYTES + sum(len(body) + BATCH_HEADER_BYTES for _, body in bodies)
        self.reserve(at_least=2 * size)
        file_id = self._file_id + 1
        saved_number = self._number
        path = self._paths.ledger_file(file_id)
        file = self._disk.open(self._spare_path, write=True, create=True)
        try:
            capacity = self._room_for(size, file)
            self._spare_bytes = 0  # from here on it is not blank
            self._number = base = saved_number + gap
            header = pack_file_header(LEDGER_MAGIC, self._uuid, file_id, self._number, self._epoch)
            self._disk.write(file, [header], 0)
            position = FILE_HEADER_BYTES
            for chunk, body in bodies:
                position = self._write(file, file_id, position, chunk, body)
                self._number += 1
            self._disk.sync_data(file)
            self._disk.rename(self._spare_path, path)
            self._disk.sync_directory(path.parent)
        except BaseException:
            self._number = saved_number
            self._disk.close(file)
            raise
        if self._file >= 0:
            self._disk.close(self._file)
        self._file = file
        self._file_id = file_id
        self._capacity = capacity
        self._position = position
        self._synced_number = self._number
        self._bases[file_id] = base
        return LedgerPosition(file_id, FILE_HEADER_BYTES, base)

    def _room_for(self, size: int, file: int) -> int:
        """The size that the next file (the spare) needs: the snapshot, and as much again."""
        wanted = max(self._file_bytes, 2 * size)
        if wanted > self._spare_bytes:
            try:
                self._disk.allocate(file, wanted)
            except OSError as error:
                if not is_shortage(error):
                    raise
                self._disk.truncate(file, self._spare_bytes)  # undo what was reserved in part
                if size > self._spare_bytes // 4 * 3:
                    raise
                return self._spare_bytes
        return wanted

    def reserve(self, at_least: int | None = None) -> None:
        """Reserve the next file's space: as much as this file has, or `at_least` so much."""
        if self._spare_bytes:
            return
        wanted = max(self._file_bytes, self._capacity)
        file = self._disk.open(self._spare_path, write=True, create=True)
        try:
            left = self._disk.size(file)  # an old file or half a snapshot: it must become blank
            for at in range(0, left, len(_ZEROS)):
                part = self._disk.read(file, min(len(_ZEROS), left - at), at)
                if part != _ZEROS[: len(part)]:
                    self._disk.write(file, [_ZEROS[: len(part)]], at)
            while True:
                try:
                    self._disk.allocate(file, wanted)
                    break
                except OSError as error:
                    if at_least is None or wanted // 2 < at_least or not is_shortage(error):
                        raise
                wanted //= 2
        finally:
            self._disk.close(file)
        self._spare_bytes = wanted

    def remove_older(self) -> None:
        """Unlink the files that the current one took over from, and reserve the next file.

        If there is no space for that, an old file becomes the next one: its space is reserved. Then
        even a file that is kept for a follower goes, since acks have to go on.
        """
        ids = numbered(self._disk, self._paths.ledger, ".qack")
        older = [file_id for file_id in ids if file_id < self._file_id]
        going = [file_id for file_id in older if not self._keeps(file_id)]
        try:
            self.reserve()
        except OSError as error:
            if not is_shortage(error):
                raise
            if older:
                last = going.pop() if going else older[0]
                self._disk.rename(self._paths.ledger_file(last), self._spare_path)
        for file_id in going:
            self._disk.unlink(self._paths.ledger_file(file_id))
        if older:
            self._disk.sync_directory(self._paths.ledger)

    def _keeps(self, file_id: int) -> bool:
        """Whether somebody has not read a file to its end yet."""
        keep_from = self.keep_from
        return keep_from is not None and self._bases.get(file_id + 1, 0) > keep_from

    def close(self) -> None:
        if self._file >= 0:
            self._disk.close(self._file)
            self._file = -1

    @property
    def _spare_path(self) -> Path:
        return self._paths.ledger / "next.new"

    def _write(self, file: int, file_id: int, position: int, records: Records, body: bytes) -> int:
        seed = place_seed(self._uuid, file_id, position)
        header = pack_batch(
            seed, len(records), self._epoch, self._number, self._synced_number, body
        )
        self._disk.write(file, [header, body], position)
        return position + len(header) + len(body)
