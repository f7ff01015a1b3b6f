"""Writes a segment of records from other segments. It is sparse: LSNs are missing in it.

Records keep their bytes, LSNs, lanes and qseqs; only the batches around them are new. The file gets
its name when all of it is synced, footer included: so it is whole, or not there. Compaction writes
such segments, and so does a repair.
"""

from array import array
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path

from qlog.storage.bytes.batch import (
    BATCH_HEADER_BYTES,
    FILE_HEADER_BYTES,
    SEGMENT_MAGIC,
    SPARSE,
    pack_batch,
    pack_file_header,
)
from qlog.storage.bytes.checks import place_seed
from qlog.storage.bytes.disk import Disk
from qlog.storage.bytes.footer import Columns, pack_footer
from qlog.storage.bytes.record import measure
from qlog.storage.write.placement import Segment

_BATCH_BYTES_MAX = 1 << 20
_WRITE_BYTES = 1 << 20
_UNSYNCED_BYTES_MAX = 8 << 20  # one large sync would hold up the syncs that confirms wait for


class SparseWriter:
    """Writes one segment at `path`, whose name is its id. All methods raise OSError, SyncFailed.

    `base_lsn`: the segment stands for the log from this LSN on. `durable_lsn`: its batches attest
    that the log had been synced up to there. `reserved_bytes`: so much is reserved at first, so
    that a full disk is noticed before any work.
    """

    def __init__(
        self,
        disk: Disk,
        path: Path,
        uuid: bytes,
        epoch: int,
        *,
        base_lsn: int,
        durable_lsn: int,
        reserved_bytes: int = 0,
    ) -> None:
        self.named = False  # it may have got its name
        self.log_end = FILE_HEADER_BYTES  # with what is not written yet
        self.columns = Columns()
        self._disk = disk
        self._path = path
        self._temporary = path.with_name(path.name + ".new")
        self._uuid = uuid
        self._epoch = epoch
        self._segment_id = int(path.stem)
        self._base_lsn = base_lsn
        self._durable_lsn = durable_lsn
        self._parts: list[bytes] = []
        self._size = 0
        self._count = 0
        self._lsn = base_lsn  # of the open batch's first record
        self._batches: list[bytes] = []  # to be written at `_end`
        self._batches_bytes = 0
        self._end = FILE_HEADER_BYTES  # of what is written
        self._synced_end = 0
        self._file = disk.open(self._temporary, write=True, create=True)
        try:
            disk.truncate(self._file, 0)
            if reserved_bytes:
                disk.allocate(self._file, reserved_bytes)
            header = pack_file_header(
                SEGMENT_MAGIC, uuid, self._segment_id, base_lsn, epoch, SPARSE
            )
            disk.write(self._file, [header], 0)
        except BaseException:
            self.abandon()
            raise

    def add(
        self,
        lsn: int,
        lanes: Sequence[int],
        firsts: Sequence[int],
        lengths: "array[int]",
        data: bytes,
    ) -> None:
        """Add whole records, one behind the other in `data`, from `lsn` on. LSNs only go up.

        Record i went to each of the lanes, where its qseq is `firsts[…] + i`. Either all of the
        records have due times, or none has.
        """
        if self._count and (
            lsn != self._lsn + self._count or self._size + len(data) > _BATCH_BYTES_MAX
        ):
            self._flush()
        if not self._count:
            assert lsn >= self._lsn
            self._lsn = lsn
            self.log_end += BATCH_HEADER_BYTES
        positions = array("I", accumulate(lengths, initial=self.log_end))
        positions.pop()
        sizes, dues_ms, earliest_ms, latest_ms = measure(data, lengths)
        self.columns.add(lanes, firsts, positions, lengths, sizes, dues_ms)
        self.columns.note_times(earliest_ms, latest_ms)
        self._parts.append(data)
        self._size += len(data)
        self._count += len(lengths)
        self.log_end += len(data)

    def finish(self, end_lsn: int) -> Segment:
        """Seal the segment, and give it its name. It stands for the log up to `end_lsn`."""
        self._flush()
        self._write()
        assert self._end == self.log_end and self._lsn <= end_lsn
        footer = pack_footer(
            self.columns, self._uuid, self._segment_id, self._base_lsn, end_lsn, self.log_end
        )
        disk = self._disk
        disk.write(self._file, [footer], self.log_end)
        disk.truncate(self._file, self.log_end + len(footer))
        disk.sync_data(self._file)
        self.named = True
        disk.rename(self._temporary, self._path)
        disk.sync_directory(self._path.parent)
        disk.close(self._file)
        size = self.log_end + len(footer)
        return Segment(
            self._segment_id,
            self._base_lsn,
            size,
            end_lsn,
            self.log_end,
            earliest_ms=self.columns.earliest_ms,
            latest_ms=self.columns.latest_ms,
        )

    def abandon(self) -> None:
        """Remove what was written. If the disk does not allow that, the next start removes it."""
        self._disk.close(self._file)
        with suppress(OSError):
            self._disk.unlink(self._temporary)

    def _flush(self) -> None:
        """End the open batch."""
        if not self._count:
            return
        body = b"".join(self._parts)
        seed = place_seed(self._uuid, self._segment_id, self._end + self._batches_bytes)
        header = pack_batch(seed, self._count, self._epoch, self._lsn, self._durable_lsn, body)
        self._batches += (header, body)
        self._batches_bytes += len(header) + len(body)
        self._lsn += self._count
        self._parts = []
        self._size = 0
        self._count = 0
        if self._batches_bytes >= _WRITE_BYTES:
            self._write()

    def _write(self) -> None:
        if self._batches:
            self._disk.write(self._file, [b"".join(self._batches)], self._end)
            self._end += self._batches_bytes
            self._batches = []
            self._batches_bytes = 0
        if self._end - self._synced_end > _UNSYNCED_BYTES_MAX:
            self._disk.sync_data(self._file)
            self._synced_end = self._end
