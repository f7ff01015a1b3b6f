"""Files of spill/ that are mostly dead: what is alive in them goes to a new file.

Promises that transient messages which were paged out take about twice their size on disk, and some
files more, whatever was around them. The file that is written to is left alone. The work is that of a compaction of the log
(compact.py), without what is for crashes: nothing in spill/ outlives the process, so nothing is
synced and the ledger knows nothing of it.
"""

from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from struct import unpack_from
from typing import Any

from qlog.storage.bytes.batch import FILE_HEADER_BYTES
from qlog.storage.bytes.datadir import Paths
from qlog.storage.bytes.disk import Disk
from qlog.storage.bytes.record import (
    DUE,
    MESSAGE,
    RECORD_HEADER,
    RECORD_HEADER_BYTES,
    TARGET_BYTES,
    fixed_bytes,
)
from qlog.storage.identity import Identity
from qlog.storage.index.index import SPILL, Index, Live
from qlog.storage.space.compact import Compaction, Piece, Unfit
from qlog.storage.write.placement import Segment
from qlog.storage.write.segment import BatchFile
from qlog.storage.write.spill import SpillCopy, SpillWriter

_PIECE_RECORDS = 1000  # so many records are one piece at most
_WINDOW_BYTES = 16 << 10  # headers are looked for in windows of this size: bodies may be large
_GAIN_SHARE = 64  # a compaction must gain at least 1/64 of a file
_SMALL_SHARE = 8  # a file is small if it has less than 1/8 of the usual size
_SMALL_COUNT_MIN = 8  # so many small files are put together


def choose_spilled(
    sizes: Mapping[int, int], live: Mapping[int, Live], bytes_max: int
) -> list[Segment]:
    """Files of spill/ that are worth being compacted together; empty when none are.

    Those of which less than half is alive, if that gains enough; else many small ones. What is
    alive in them fits in one file of `bytes_max`. `sizes`: the bytes of each file that is not
    written to any more, by its id; `live`: what is alive in each. A file in which nothing is alive
    is given up without this.
    """
    alive = {id_: live[id_].size for id_ in sorted(sizes) if id_ in live and live[id_].count}
    sparse = _fitting([id_ for id_ in alive if 2 * alive[id_] < sizes[id_]], alive, bytes_max)
    if sum(sizes[id_] - alive[id_] for id_ in sparse) <= bytes_max // _GAIN_SHARE:
        small = [id_ for id_ in alive if sizes[id_] * _SMALL_SHARE < bytes_max]
        sparse = _fitting(small, alive, bytes_max) if len(small) >= _SMALL_COUNT_MIN else []
    return [Segment(id_, 0, sizes[id_], 0, sizes[id_]) for id_ in sparse]


def _fitting(ids: list[int], alive: Mapping[int, int], bytes_max: int) -> list[int]:
    """The first of these files whose messages fit in one."""
    fitting = []
    left = bytes_max
    for id_ in ids:
        left -= alive[id_]
        if left < 0:
            break
        fitting.append(id_)
    return fitting


class SpillCompaction(Compaction):
    """One compaction of files of spill/. See `Compaction`."""

    def __init__(
        self,
        disk: Disk,
        paths: Paths,
        index: Index,
        identity: Identity,
        sources: list[Segment],
        spill: SpillWriter[Any],
    ) -> None:
        super().__init__(disk, paths, index, identity.uuid, identity.epoch, sources, SPILL)
        self._spill = spill

    def _path(self, segment_id: int) -> Path:
        return self._paths.spill_file(segment_id)

    def _new_writer(self) -> SpillCopy:
        writer = self._spill.copy()
        self._segment_id = writer.file_id
        return writer

    def _pieces(self, file: BatchFile, source: Segment) -> Iterator[Piece]:
        """All records of a file, as their headers say: large bodies are passed over unread."""
        if not file.header_belongs_here:
            raise Unfit(file.file_id)
        position = FILE_HEADER_BYTES
        piece: Piece | None = None
        expected: tuple[int, ...] = ()  # the targets of a next record that continues the piece
        piece_flags = 0
        window, window_at = b"", position
        while position < source.log_end:
            at = position - window_at
            if at + RECORD_HEADER_BYTES > len(window):
                window, window_at, at = file.read(_WINDOW_BYTES, position), position, 0
            length, flags, count = _header(file, window, at)
            fixed = fixed_bytes(flags, count)
            if not fixed <= length <= source.log_end - position:
                raise Unfit(file.file_id)
            if at + fixed > len(window):
                window = file.read(max(_WINDOW_BYTES, fixed), position)
                window_at, at = position, 0
            targets = unpack_from("<" + "IQ" * count, window, at + fixed - TARGET_BYTES * count)
            if (
                piece is None
                or targets != expected
                or flags != piece_flags
                or len(piece.positions) >= _PIECE_RECORDS
            ):
                if piece is not None:
                    yield piece
                piece = Piece(0, array("I", targets[0::2]), targets[1::2], array("I"), array("I"))
                piece_flags = flags
            piece.positions.append(position)
            piece.lengths.append(length)
            expected = tuple(part + (place & 1) for place, part in enumerate(targets))
            position += length
        if piece is not None:
            yield piece


def _header(file: BatchFile, window: bytes, at: int) -> tuple[int, int, int]:
    """(length, flags, number of targets) of the record at a place. Raises Unfit."""
    if at + RECORD_HEADER_BYTES > len(window):
        raise Unfit(file.file_id)
    length, _, kind, flags, _, count, _, _ = RECORD_HEADER.unpack_from(window, at)
    if kind != MESSAGE or flags & ~DUE or not count:
        raise Unfit(file.file_id)
    return length, flags, count
