"""Transient messages paged out of memory: written without sync, void after a restart.

The records are those of the log. There are no batches, since nothing here is ever recovered; a
record's own hash verifies it. Used by the checkpoint thread.

Messages of all queues share a file, so one that stays would keep a file of what is gone:
`SpillCopy` writes what is left of such files to a new one (space/spilled.py).
"""

from array import array
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Generic

from qlog.storage.bytes.batch import FILE_HEADER_BYTES, SPILL_MAGIC, pack_file_header
from qlog.storage.bytes.datadir import Paths
from qlog.storage.bytes.disk import Disk
from qlog.storage.bytes.footer import Columns
from qlog.storage.bytes.record import measure, pack_run
from qlog.storage.lanes.run import M
from qlog.storage.write.placement import Segment

# A file without a message is given up, while it is still written to, if it is this part full.
_WORTH_CLOSING_SHARE = 8


class SpillWriter(Generic[M]):
    """Appends runs to files of spill/."""

    def __init__(
        self,
        disk: Disk,
        paths: Paths,
        uuid: bytes,
        epoch: int,
        *,
        next_id: int,
        file_bytes_max: int,
    ) -> None:
        self.next_id = next_id  # no file has this id or a higher one yet
        self._disk = disk
        self._paths = paths
        self._uuid = uuid
        self._epoch = epoch
        self._file_bytes_max = file_bytes_max
        self._file = -1
        self._position = 0
        self.current_id = -1  # the file that is still written to

    def append(
        self,
        lanes: Sequence[int],
        firsts: Sequence[int],
        metas: Sequence[M],
        bodies: Sequence[bytes],
        lengths: "array[int]",
        now_ms: int,
        times_ms: Sequence[int] | None,
        dues_ms: Sequence[int] | None,
    ) -> "tuple[int, array[int]]":
        """Write a run. Returns the segment id, and the records' positions. Raises OSError."""
        parts = pack_run(lanes, firsts, metas, bodies, lengths, 0, now_ms, times_ms, dues_ms)
        data = b"".join(parts)
        if self._file < 0 or self._position + len(data) > self._file_bytes_max:
            self._begin()
        self._disk.write(self._file, [data], self._position)
        positions = array("I", accumulate(lengths, initial=self._position))
        self._position = positions.pop()
        return self.current_id, positions

    def copy(self) -> "SpillCopy":
        """Begin a file of records that others have. Raises OSError."""
        file_id = self._new_id()
        header = pack_file_header(SPILL_MAGIC, self._uuid, file_id, 0, self._epoch)
        return SpillCopy(self._disk, self._paths.spill_file(file_id), file_id, header)

    def let_go_dead(self) -> None:
        """Nothing in the current file is needed: if it is large, write no more to it."""
        if self._position >= self._file_bytes_max // _WORTH_CLOSING_SHARE:
            self.close()

    def close(self) -> None:
        if self._file >= 0:
            self._disk.close(self._file)
            self._file = self.current_id = -1

    def _new_id(self) -> int:
        self.next_id += 1
        return self.next_id - 1

    def _begin(self) -> None:
        file = self._disk.open(self._paths.spill_file(self.next_id), write=True, create=True)
        self.close()
        self._file = file
        self.current_id = self._new_id()
        header = pack_file_header(SPILL_MAGIC, self._uuid, self.current_id, 0, self._epoch)
        self._disk.write(file, [header], 0)
        self._position = FILE_HEADER_BYTES


class SpillCopy:
    """A new file of spill/ with records of other files, byte by byte.

    Nothing is synced: `named` is always False, which tells who meets an error that nothing depends
    on the file yet.
    """

    def __init__(self, disk: Disk, path: Path, file_id: int, header: bytes) -> None:
        self.named = False
        self.columns = Columns()
        self.file_id = file_id
        self._disk = disk
        self._path = path
        self._file = disk.open(path, write=True, create=True)
        self._position = len(header)
        try:
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
        """Add whole records, one behind the other in `data`. Raises OSError.

        `lsn` says nothing here: records of spill/ have none.
        Record i went to each of the lanes, where its qseq is `firsts[…] + i`. Either all of the
        records have due times, or none has.
        """
        positions = array("I", accumulate(lengths, initial=self._position))
        end = positions.pop()
        sizes, dues_ms, _, _ = measure(data, lengths)
        self._disk.write(self._file, [data], self._position)
        self._position = end
        self.columns.add(lanes, firsts, positions, lengths, sizes, dues_ms)

    def finish(self, end_lsn: int) -> Segment:
        """All records are there."""
        self._disk.close(self._file)
        return Segment(self.file_id, 0, self._position, end_lsn, self._position)

    def abandon(self) -> None:
        """Remove what was written. If the disk does not allow that, the next start removes it."""
        self._disk.close(self._file)
        with suppress(OSError):
            self._disk.unlink(self._path)
