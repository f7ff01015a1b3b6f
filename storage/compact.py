"""Compaction: what is alive in mostly dead segments goes into one new segment.

It promises that nothing observable changes, at whatever step a crash comes:

1. The new segment is written, synced, and gets its name. Nothing refers to it: an orphan, which
   the next start removes.
2. The ledger says which segments it replaces, and that is synced. From here it counts, and a start
   that finds the index's pointers not moved yet moves them.
3. One transaction of the index, that of a checkpoint, moves the pointers.
4. Nothing alive is left in the old segments, so they go as dead segments always do (reclaim.py).

Records keep their LSNs, lanes and sequence numbers. Each one is verified before it is copied: damage
is never given a new checksum. A segment that cannot be read is left as it is, for `qlog inspect`.

The work is cut into steps, so that the thread which does it is free for others in between.
"""

from array import array
from bisect import bisect_right
from collections.abc import (
    Callable,
    Collection,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import lmdb

from qlog.storage.datadir import Paths
from qlog.storage.disk import Disk
from qlog.storage.errors import SyncFailed, is_full
from qlog.storage.format import (
    BATCH_HEADER_BYTES,
    FILE_HEADER_BYTES,
    Columns,
    unpack_batch_header,
    unpack_record,
)
from qlog.storage.index import Index, IndexDoubt, Live, Move
from qlog.storage.log import Segment
from qlog.storage.segment import BatchFile
from qlog.storage.settings import StoreSettings
from qlog.storage.sparse import SparseWriter

_STEP_BYTES = 1 << 20  # gone through in a step, unless it is so many records first
_STEP_RECORDS = 4000
_READ_BYTES_MAX = 1 << 20
_RUNS_AT_ONCE = 1000  # looked up in one transaction
_GAP_BYTES_MAX = 32 << 10  # rather read so much that is dead than make another call
_SMALL_SHARE = 8  # a segment of less than this part of the usual size is small,
_SMALL_COUNT_MIN = 8  # and so many small neighbours are put together
_GAIN_SHARE = 64  # nothing is done for less than this part of a segment


def choose(
    segments: Iterable[Segment],
    live: Mapping[int, Live],
    settings: StoreSettings,
    *,
    checkpoint_lsn: int,
    now_s: float,
    excluded: Collection[int],
) -> list[Segment]:
    """Neighbours that are worth being compacted together; none when nothing is.

    Segments that are mostly dead, and when all of them together take more than twice what is
    alive, those that are half dead, too: where most is to be gained first. Also small ones, when
    there are many in a row.
    """
    sealed = sorted(
        (one for one in segments if one.sealed and one.end_lsn <= checkpoint_lsn),
        key=lambda one: one.base_lsn,
    )
    alive = {one.segment_id: _alive(live, one.segment_id) for one in sealed}
    used_bytes = sum(one.capacity for one in sealed)
    share_max = 0.5 if used_bytes > 2 * sum(alive.values()) else settings.compact_share_max

    def is_ripe(one: Segment) -> bool:
        return (
            one.segment_id not in excluded
            and one.sealed_s + settings.compact_age_s <= now_s
            and alive[one.segment_id] > 0  # else all of it goes by itself
        )

    def is_sparse(one: Segment) -> bool:
        return is_ripe(one) and alive[one.segment_id] < share_max * one.capacity

    def is_small(one: Segment) -> bool:
        return is_ripe(one) and one.capacity * _SMALL_SHARE < settings.segment_bytes_max

    best: list[Segment] = []
    best_gain = settings.segment_bytes_max // _GAIN_SHARE
    for group in _groups(sealed, alive, settings.segment_bytes_max, is_sparse):
        gain = sum(one.capacity - alive[one.segment_id] for one in group)
        if gain > best_gain:
            best, best_gain = group, gain
    if best:
        return best
    small = _groups(sealed, alive, settings.segment_bytes_max, is_small)
    return next((group for group in small if len(group) >= _SMALL_COUNT_MIN), [])


def _groups(
    segments: Iterable[Segment],
    alive: Mapping[int, int],
    bytes_max: int,
    is_wanted: Callable[[Segment], bool],
) -> Iterator[list[Segment]]:
    """Wanted segments that follow on each other, as long as what is alive fits in one."""
    group: list[Segment] = []
    size = 0
    for one in segments:
        wanted = is_wanted(one)
        if group and (not wanted or size + alive[one.segment_id] > bytes_max):
            yield group
            group = []
            size = 0
        if wanted:
            group.append(one)
            size += alive[one.segment_id]
    if group:
        yield group


def _alive(live: Mapping[int, Live], segment_id: int) -> int:
    known = live.get(segment_id)
    return 0 if known is None else known.size


@dataclass(slots=True)
class CompactionStep:
    """How a step went."""

    compaction: "Compaction"
    bytes_done: int = 0  # of the sources
    finished: bool = False  # no further step
    segment: Segment | None = None  # what came out of it, then; None when nothing did
    move: Move | None = None  # and what the index has to do
    unfit: int | None = None  # this source could not be read as it was written
    failure: BaseException | None = None


class _Unfit(Exception):
    """This segment is not what was written."""

    def __init__(self, segment_id: int) -> None:
        self.segment_id = segment_id


@dataclass(slots=True)
class _Piece:
    """Records to be kept: they stand one behind the other, and so do their LSNs and qseqs."""

    lsn: int
    lanes: "array[int]"
    firsts: list[int]
    positions: "array[int]"
    lengths: "array[int]"

    @property
    def end(self) -> int:
        return self.positions[-1] + self.lengths[-1]


class Compaction:
    """One compaction: `step` is called until it is finished, always on the index's thread."""

    def __init__(
        self,
        disk: Disk,
        paths: Paths,
        index: Index,
        uuid: bytes,
        epoch: int,
        sources: Sequence[Segment],
        segment_id: int,
    ) -> None:
        self.sources = sources
        self._disk = disk
        self._paths = paths
        self._index = index
        self._uuid = uuid
        self._epoch = epoch
        self._segment_id = segment_id
        self._writer: SparseWriter | None = None
        self._work = self._run()

    def step(self) -> CompactionStep:
        """Do a part of it. Raises nothing: the result says what went wrong.

        On a full disk it is given up, to be begun again some time.
        """
        step = CompactionStep(self)
        try:
            step.bytes_done = next(self._work)
        except StopIteration as stop:
            step.finished = True
            step.segment = stop.value
            if self._writer is not None:
                sources = frozenset(source.segment_id for source in self.sources)
                step.move = Move(self._segment_id, sources, self._writer.columns)
        except _Unfit as unfit:
            step.finished = True
            step.unfit = unfit.segment_id
            self.abandon()
        except (OSError, SyncFailed, IndexDoubt, lmdb.Error) as error:
            step.finished = True
            if not (isinstance(error, OSError) and is_full(error)):
                step.failure = error
            self.abandon()
        return step

    def abandon(self) -> None:
        """Give it up; what was written is removed."""
        self._work.close()
        if self._writer is not None:
            self._writer.abandon()
            self._writer = None

    def _run(self) -> Generator[int, None, Segment | None]:
        """Yields how many bytes of the sources were gone through since the last time."""
        for source in self.sources:
            done = 0
            with self._reading(source) as (file, columns, lsn_of):
                records = 0
                for window in _windows(_alive_pieces(columns, lsn_of, self._index)):
                    self._copy(file, window)
                    at = window[-1].end if window else done
                    records += sum(len(piece.lengths) for piece in window) or _RUNS_AT_ONCE
                    if at - done >= _STEP_BYTES or records >= _STEP_RECORDS:
                        yield at - done
                        done = at
                        records = 0
            yield source.log_end - done
        if self._writer is None:
            return None
        return self._writer.finish(self.sources[-1].end_lsn)

    @contextmanager
    def _reading(
        self, source: Segment
    ) -> Iterator[tuple[BatchFile, Columns, Callable[[int], int]]]:
        """The open file, where its records are, and the LSN of the n-th of them."""
        path = self._paths.segment(source.segment_id)
        try:
            file = BatchFile(self._disk, path, self._uuid, source.segment_id)
        except OSError as error:
            raise _Unfit(source.segment_id) from error
        try:
            try:
                columns = file.records()
                lsn_of = _lsns(file, source.base_lsn)
            except OSError as error:
                raise _Unfit(source.segment_id) from error
            if columns is None:
                raise _Unfit(source.segment_id)
            yield file, columns, lsn_of
        finally:
            file.close()

    def _copy(self, file: BatchFile, pieces: Sequence[_Piece]) -> None:
        if not pieces:
            return
        base = pieces[0].positions[0]
        try:
            data = file.read(pieces[-1].end - base, base)
        except OSError as error:
            raise _Unfit(file.file_id) from error
        writer = self._writer
        if writer is None:
            writer = self._writer = SparseWriter(
                self._disk,
                self._paths.segment(self._segment_id),
                self._uuid,
                self._epoch,
                base_lsn=self.sources[0].base_lsn,
                durable_lsn=self.sources[-1].end_lsn,
            )
        for piece in pieces:
            _verify(file, piece, data, base)
            writer.add(
                piece.lsn,
                piece.lanes,
                piece.firsts,
                piece.lengths,
                data[piece.positions[0] - base : piece.end - base],
            )


def _verify(file: BatchFile, piece: _Piece, data: bytes, base: int) -> None:
    """The records are what their footer and their own hashes say. Raises _Unfit."""
    for at, (position, length) in enumerate(zip(piece.positions, piece.lengths, strict=True)):
        record = unpack_record(data, position - base)
        if (
            record is None
            or not record.whole
            or record.length != length
            or record.targets[0::2] != tuple(piece.lanes)
            or record.targets[1::2] != tuple(first + at for first in piece.firsts)
        ):
            raise _Unfit(file.file_id)


def _alive_pieces(
    columns: Columns, lsn_of: Callable[[int], int], index: Index
) -> Iterator[_Piece | None]:
    """What is alive in a segment by the last checkpoint, in order; None now and then."""
    runs = columns.runs()
    ordinal = 0
    while some := list(islice(runs, _RUNS_AT_ONCE)):
        pieces = []
        with index.settlements() as settlements:
            for lanes, firsts, positions, lengths in some:
                count = len(positions)
                alive = 0
                for lane_id, first in zip(lanes, firsts, strict=True):
                    alive |= settlements.unsettled(lane_id, first, count)
                start = 0
                while alive:
                    skip = (alive & -alive).bit_length() - 1
                    alive >>= skip
                    many = (~alive & (alive + 1)).bit_length() - 1
                    alive >>= many
                    start += skip
                    end = start + many
                    pieces.append(
                        _Piece(
                            lsn_of(ordinal + start),
                            lanes,
                            [first + start for first in firsts],
                            positions[start:end],
                            lengths[start:end],
                        )
                    )
                    start = end
                ordinal += count
        yield from pieces
        yield None


def _lsns(file: BatchFile, base_lsn: int) -> Callable[[int], int]:
    """The LSN of the n-th record of a segment."""
    if file.header is None or not file.header.sparse:
        return base_lsn.__add__
    starts = []
    bases = []
    ordinal = 0
    position = FILE_HEADER_BYTES
    trailer = file.trailer()
    end = file.size if trailer is None else trailer.log_end
    while position < end:
        header = unpack_batch_header(file.read(BATCH_HEADER_BYTES, position))
        if header is None:
            raise _Unfit(file.file_id)
        starts.append(ordinal)
        bases.append(header.base)
        ordinal += header.count
        position += BATCH_HEADER_BYTES + header.body_bytes

    def lsn_of(ordinal: int) -> int:
        batch = bisect_right(starts, ordinal) - 1
        return bases[batch] + ordinal - starts[batch]

    return lsn_of


def _windows(pieces: Iterable[_Piece | None]) -> Iterator[list[_Piece]]:
    """Pieces that are read together; an empty list now and then."""
    window: list[_Piece] = []
    for piece in pieces:
        if piece is None:
            if not window:
                yield window
            continue
        if window and (
            piece.positions[0] - window[-1].end > _GAP_BYTES_MAX
            or piece.end - window[0].positions[0] > _READ_BYTES_MAX
        ):
            yield window
            window = []
        window.append(piece)
    if window:
        yield window
