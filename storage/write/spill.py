"""Transient messages paged out of memory: written without sync, void after a restart.

The records are those of the log. There are no batches, since nothing here is ever recovered; a
record's own hash verifies it. Used by the checkpoint thread.
"""

from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Generic

from qlog.storage.bytes.batch import FILE_HEADER_BYTES, SPILL_MAGIC, pack_file_header
from qlog.storage.bytes.datadir import Paths
from qlog.storage.bytes.disk import Disk
from qlog.storage.bytes.record import pack_run
from qlog.storage.lanes.run import M


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

    @property
    def current_id(self) -> int:
        """The file that is still written to."""
        return self.next_id - 1 if self._file >= 0 else -1

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

    def close(self) -> None:
        if self._file >= 0:
            self._disk.close(self._file)
            self._file = -1

    def _begin(self) -> None:
        file = self._disk.open(self._paths.spill_file(self.next_id), write=True, create=True)
        self.close()
        self._file = file
        header = pack_file_header(SPILL_MAGIC, self._uuid, self.next_id, 0, self._epoch)
        self.next_id += 1
        self._disk.write(file, [header], 0)
        self._position = FILE_HEADER_BYTES
