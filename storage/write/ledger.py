"""The ledger: settlements, deliveries, attempts, definitions, and which segments must exist.

It is one file, in the frame of the log (bytes/batch.py). The body of a batch is a msgpack list:
first the log's durable LSN, then records. A batch's `base` counts batches; its `durable` is the
number of the first batch that was not synced when it was written. Acks are pairs of integers (gap,
count), which msgpack packs as small as varints. A file begins with a snapshot of everything that
counts. When the file is full the next one takes over as a whole: it is written, synced and
renamed, and only then is the old file unlinked.

The next file's space is reserved, and writes stay within reserved space, so that acks go on when
the disk is full. Reserved space is never given back, also not when the broker is stopped: somebody
else would take it. This file does not know what lanes or definitions mean.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from qlog.storage.bytes.batch import (
    BATCH_HEADER_BYTES,
    FILE_HEADER_BYTES,
    LEDGER_MAGIC,
    pack_batch,
    pack_file_header,
)
from qlog.storage.bytes.checks import place_seed
from qlog.storage.bytes.datadir import Paths
from qlog.storage.bytes.disk import Disk
from qlog.storage.errors import is_shortage
from qlog.storage.lanes.settled import BLOCK, Settled

# A record is a list that begins with one of these.
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

Record = list[Any]
Records = Sequence[Record]

_SNAPSHOT_RECORDS_A_BATCH = 1000
_ZEROS = bytes(1 << 20)


def ack_record(lane_id: int, ranges: Sequence[int]) -> Record:
    """`ranges` is first, end, first, end, …"""
    record: Record = [ACK, lane_id]
    before = 0
    for first, end in zip(ranges[0::2], ranges[1::2], strict=True):
        record.append(first - before)
        record.append(end - first)
        before = end
    return record


def ack_ranges(record: Record) -> Iterator[tuple[int, int]]:
    """The (first, end) of each run in an ACK or RESTORED record."""
    at = 0
    for gap, count in zip(record[2::2], record[3::2], strict=True):
        at += gap
        yield at, at + count
        at += count


def restored_record(lane_id: int, ranges: Sequence[int]) -> Record:
    """`ranges` is first, end, first, end, …"""
    return [RESTORED, *ack_record(lane_id, ranges)[1:]]


def attempts_record(lane_id: int, flat: Sequence[int]) -> Record:
    """`flat` is first, end, attempts, first, end, attempts, …"""
    record: Record = [ATTEMPTS, lane_id]
    before = 0
    for first, end, attempts in zip(flat[0::3], flat[1::3], flat[2::3], strict=True):
        record += (first - before, end - first, attempts)
        before = end
    return record


def attempts_ranges(record: Record) -> Iterator[tuple[int, int, int]]:
    """The (first, end, attempts) of each range in an ATTEMPTS record."""
    at = 0
    for gap, count, attempts in zip(record[2::3], record[3::3], record[4::3], strict=True):
        at += gap
        yield at, at + count, attempts
        at += count


def lane_records(lane_id: int, next_qseq: int, settled: Settled) -> Iterator[Record]:
    """All that is settled in a lane, and what came back to it, for a snapshot."""
    record: Record = [LANE, lane_id, next_qseq, settled.floor, settled.delivered]
    for block, bits in settled.bits.items():
        record += (block, bits.to_bytes(32, "little"))
    yield record
    if settled.full:
        yield ack_record(lane_id, [block * BLOCK for block in settled.full])
    if settled.attempts:
        yield attempts_record(lane_id, settled.attempts.flat())


def lane_bitmaps(record: Record) -> dict[int, int]:
    """block -> bits of a LANE record."""
    return {
        block: int.from_bytes(bits, "little")
        for block, bits in zip(record[5::2], record[6::2], strict=True)
    }


def unpack_body(body: bytes) -> tuple[int, list[Record]]:
    """(the log's durable LSN, records) of a batch."""
    durable_lsn, *records = msgpack.unpackb(body)
    return durable_lsn, records


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
        body = msgpack.packb([durable_lsn, *records])
        self._position = self._write(self._file, self._file_id, self._position, records, body)
        self._number += 1

    def sync(self) -> None:
        self._disk.sync_data(self._file)
        self._synced_number = self._number

    def roll(self, snapshot: Iterable[Record], durable_lsn: int) -> LedgerPosition:
        """Go on in a new file that begins with this snapshot. Returns the snapshot's position.

        Call `remove_older` next.
        """
        bodies = []
        records = [*snapshot, [SNAPSHOT_END]]
        for start in range(0, len(records), _SNAPSHOT_RECORDS_A_BATCH):
            chunk = records[start : start + _SNAPSHOT_RECORDS_A_BATCH]
            bodies.append((chunk, msgpack.packb([durable_lsn, *chunk])))
        size = FILE_HEADER_BYTES + sum(len(body) + BATCH_HEADER_BYTES for _, body in bodies)
        self.reserve(at_least=2 * size)
        file_id = self._file_id + 1
        saved_number = self._number
        path = self._paths.ledger_file(file_id)
        file = self._disk.open(self._spare_path, write=True, create=True)
        try:
            capacity = self._room_for(size, file)
            self._spare_bytes = 0  # from here on it is not blank
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
        return LedgerPosition(file_id, FILE_HEADER_BYTES, saved_number)

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

        If there is no space for that, an old file becomes the next one: its space is reserved.
        """
        names = self._disk.names(self._paths.ledger)
        current = self._paths.ledger_file(self._file_id).name
        older = [name for name in names if name.endswith(".qack") and name < current]
        try:
            self.reserve()
        except OSError as error:
            if not is_shortage(error):
                raise
            if older:
                self._disk.rename(self._paths.ledger / older[-1], self._spare_path)
        for name in older:
            if self._spare_bytes or name != older[-1]:
                self._disk.unlink(self._paths.ledger / name)
        if older:
            self._disk.sync_directory(self._paths.ledger)

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
