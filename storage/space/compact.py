"""Compaction: what is alive in mostly dead segments goes into one new segment.

Promises that nothing observable changes, at whatever step a crash comes:

1. The new segment is written, synced, and gets its name. Nothing refers to it yet: the next start
   would remove it.
2. The ledger says which segments it replaces, and that is synced. From now on the new segment
   counts: a start that finds the index's pointers not moved yet moves them.
3. One transaction of the index, that of a checkpoint, moves the pointers.
4. Nothing alive is left in the old segments, so they go as dead segments always do (reclaim.py).

Files of spill/ are compacted, too (spilled.py), where a crash is no matter.

Records keep their LSNs, lanes and sequence numbers. Each record is verified before it is copied:
damage never gets a new checksum. A segment that cannot be read is left as it is, for `qlog
inspect`. So is a segment in which fewer messages were found than the index counts.

The work is cut into steps, so that the checkpoint thread is free for checkpoints in between.
"""

import errno
from array import array
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
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Protocol

import lmdb

from qlog.storage.bytes.batch import BATCH_HEADER_BYTES, FILE_HEADER_BYTES
from qlog.storage.bytes.datadir import Paths
from qlog.storage.bytes.disk import Disk
from qlog.storage.bytes.footer import Columns, records_bytes, run_bytes
from qlog.storage.bytes.record import unpack_record
from qlog.storage.errors import SyncFailed, is_shortage
from qlog.storage.index.index import Index, Live, Move
from qlog.storage.index.rows import IndexDoubt
from qlog.storage.settings import StoreSettings
from qlog.storage.space.sparse import SparseWriter
from qlog.storage.write.placement import Segment
from qlog.storage.write.segment import BatchFile, columns_of

_STEP_BYTES = 1 << 20  # a step goes through so many bytes, or through _STEP_RECORDS records
_STEP_RECORDS = 4000
_READ_BYTES_MAX = 1 << 20
_GAP_BYTES_MAX = 32 << 10  # reading so many dead bytes is cheaper than another call
_MOVE_RECORDS = 20_000  # so many pointers are moved in one checkpoint
_SMALL_SHARE = 8  # a segment is small if it has less than 1/8 of the usual size
_SMALL_COUNT_MIN = 8  # so many small neighbours are put together
_CROWDED_AGE_SHARE = 0.1  # when the log is crowded, this part of `compact_age_s` is old enough
_GAIN_SHARE = 64  # a compaction must gain at least 1/64 of a segment
# The bytes around a record that stands alone: its batch, and its part of the footer, due time
# aside.
_STRAY_BYTES = BATCH_HEADER_BYTES + run_bytes(1) + records_bytes(1, has_dues=False)
_UNREADABLE = frozenset({errno.EIO, errno.ENOENT})  # else the fault may not be the file's


def choose(
    segments: Iterable[Segment],
    live: Mapping[int, Live],
    settings: StoreSettings,
    *,
    checkpoint_lsn: int,
    now_s: float,
    excluded: Collection[int],
    keeps: Callable[[Segment], bool],
) -> list[Segment]:
    """Neighbouring segments that are worth being compacted together; empty when nothing is.

    - Segments of which less than `compact_share_max` is alive, `compact_age_s` after they were
      sealed.
    - If the log takes more than twice what is alive: segments of which less than half is alive,
      after a tenth of that time.
    - Else many small segments in a row.

    Of several groups the one with the largest gain is chosen. Not chosen are segments behind one
    that is not sealed, segments that are `excluded`, and segments that retention `keeps`.
    `segments` are all segments of the log.
    """
    in_order = sorted(segments, key=lambda one: (one.base_lsn, one.segment_id))
    sealed = list(takewhile(lambda one: one.sealed and one.end_lsn <= checkpoint_lsn, in_order))
    alive = {one.segment_id: _needed_bytes(live, one.segment_id) for one in sealed}
    counted = [one for one in sealed if one.segment_id not in excluded]
    used_bytes = sum(one.capacity for one in counted)
    alive_bytes = sum(alive[one.segment_id] for one in counted)
    share_max, age_s = settings.compact_share_max, settings.compact_age_s
    if used_bytes > 2 * alive_bytes:
        share_max, age_s = 0.5, age_s * _CROWDED_AGE_SHARE

    def is_ripe(one: Segment) -> bool:
        return (
            one.segment_id not in excluded
            and one.sealed_s + age_s <= now_s
            and alive[one.segment_id] > 0  # else reclaim gives the whole segment up
            and not keeps(one)
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
    """Groups of wanted neighbours. What is alive in a group fits in one segment."""
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


def _needed_bytes(live: Mapping[int, Live], segment_id: int) -> int:
    """The bytes that the messages that are alive would take, each with a batch of its own."""
    known = live.get(segment_id)
    return 0 if known is None else known.size + _STRAY_BYTES * known.count


@dataclass(slots=True)
class CompactionStep:
    """The result of a step."""

    compaction: "Compaction"
    bytes_done: int = 0  # of the sources
    finished: bool = False  # no further step
    segment: Segment | None = None  # the new segment, when finished; None: there is none
    moves: list[Move] = field(default_factory=list)  # the parts in which the index moves pointers
    unfit: int | None = None  # a source that could not be read as it was written
    failure: BaseException | None = None


class Unfit(Exception):
    """This segment is not what was written."""

    def __init__(self, segment_id: int) -> None:
        self.segment_id = segment_id


@dataclass(slots=True)
class Piece:
    """Records that stand one behind the other, and so do their LSNs and qseqs."""

    lsn: int
    lanes: "array[int]"
    firsts: Sequence[int]
    positions: "array[int]"
    lengths: "array[int]"

    @property
    def end(self) -> int:
        return self.positions[-1] + self.lengths[-1]


class Writer(Protocol):
    """Writes the new segment. All methods raise OSError and SyncFailed."""

    named: bool  # it may have got its name
    columns: Columns

    def add(
        self,
        lsn: int,
        lanes: Sequence[int],
        firsts: Sequence[int],
        lengths: "array[int]",
        data: bytes,
    ) -> None:
        """Add whole records, one behind the other in `data`."""

    def finish(self, end_lsn: int) -> Segment:
        """All records are there."""

    def abandon(self) -> None:
        """Remove what was written, as far as the disk allows it."""


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
        self._writer: Writer | None = None
        self._found = 0  # live pointers to the current source whose messages were found
        self._work = self._run()

    def step(self) -> CompactionStep:
        """Do a part of the work. Raises nothing: the result says what went wrong.

        Without space, or without a file descriptor, the compaction is given up; it is begun again
        later.
        """
        step = CompactionStep(self)
        try:
            step.bytes_done = next(self._work)
        except StopIteration as stop:
            step.finished = True
            step.segment = stop.value
            if self._writer is not None:
                step.moves = self._moves(self._writer)
        except Unfit as unfit:
            step.finished = True
            step.unfit = unfit.segment_id
            self.abandon()
        except _GivenUp:
            step.finished = True
            self.abandon()
        except (OSError, SyncFailed, IndexDoubt, lmdb.Error) as error:
            step.finished = True
            if not self._is_harmless(error):
                step.failure = error
            self.abandon()
        return step

    def abandon(self) -> None:
        """Give the compaction up; what was written is removed."""
        self._work.close()
        if self._writer is not None:
            self._writer.abandon()
            self._writer = None

    def _is_harmless(self, error: BaseException) -> bool:
        """Whether the error is a lack of space, even in a sync: nothing depends on the file yet."""
        if isinstance(error, SyncFailed) and error.__cause__ is not None:
            return is_shortage(error.__cause__) and not (self._writer and self._writer.named)
        return is_shortage(error)

    def _moves(self, writer: Writer) -> list[Move]:
        sources = frozenset(source.segment_id for source in self.sources)
        moves = [Move(self._segment_id, sources)]
        for run in writer.columns.runs():
            if len(moves[-1].columns.positions) >= _MOVE_RECORDS:
                moves.append(Move(self._segment_id, sources))
            moves[-1].columns.add(*run)
        return moves

    def _run(self) -> Generator[int, None, Segment | None]:
        """Yields how many bytes of the sources were gone through since the last yield."""
        for source in self.sources:
            if not self._alive(source):  # nothing is alive in it any more, and it may be gone
                yield 0
                continue
            done = 0
            records = 0
            self._found = 0
            with self._reading(source) as file:
                for window in _windows(self._alive_pieces(self._pieces(file, source))):
                    if window:
                        self._copy(file, window)
                        at = window[-1].end
                        records += sum(len(piece.lengths) for piece in window)
                    else:  # so many were looked at
                        at = done
                        records += _STEP_RECORDS
                    if at - done >= _STEP_BYTES or records >= _STEP_RECORDS:
                        yield at - done
                        done = at
                        records = 0
            if self._alive(source) > self._found:
                raise Unfit(source.segment_id)
            yield source.log_end - done
        if self._writer is None:
            return None
        return self._writer.finish(self.sources[-1].end_lsn)

    def _alive(self, source: Segment) -> int:
        """How many pointers to live messages of the source the index has now."""
        return self._index.live_of(source.segment_id).count

    @contextmanager
    def _reading(self, source: Segment) -> Iterator[BatchFile]:
        """The open file. Errors of reading are converted, to tell them from errors of writing."""
        path = self._path(source.segment_id)
        try:
            file = BatchFile(self._disk, path, self._uuid, source.segment_id)
        except OSError as error:
            raise _reading_failed(source.segment_id, error) from error
        try:
            yield file
        finally:
            file.close()

    def _alive_pieces(self, pieces: Iterable[Piece]) -> Iterator[Piece | None]:
        """The pieces that are alive by the last checkpoint; None now and then, to end a step."""
        chunk: list[Piece] = []
        records = 0
        for piece in pieces:
            chunk.append(piece)
            records += len(piece.lengths)
            if records >= _STEP_RECORDS:
                yield from self._select(chunk)
                yield None
                chunk = []
                records = 0
        yield from self._select(chunk)

    def _select(self, pieces: Iterable[Piece]) -> list[Piece]:
        selected = []
        with self._index.settlements() as settlements:
            for piece in pieces:
                count = len(piece.lengths)
                alive = 0
                for lane_id, first in zip(piece.lanes, piece.firsts, strict=True):
                    bits = settlements.unsettled(lane_id, first, count)
                    self._found += bits.bit_count()
                    alive |= bits
                start = 0
                while alive:
                    skip = (alive & -alive).bit_length() - 1
                    alive >>= skip
                    many = (~alive & (alive + 1)).bit_length() - 1
                    alive >>= many
                    start += skip
                    end = start + many
                    selected.append(
                        Piece(
                            piece.lsn + start,
                            piece.lanes,
                            [first + start for first in piece.firsts],
                            piece.positions[start:end],
                            piece.lengths[start:end],
                        )
                    )
                    start = end
        return selected

    def _copy(self, file: BatchFile, pieces: Sequence[Piece]) -> None:
        base = pieces[0].positions[0]
        try:
            data = file.read(pieces[-1].end - base, base)
        except OSError as error:
            raise _reading_failed(file.file_id, error) from error
        writer = self._writer
        if writer is None:
            writer = self._writer = self._new_writer()
        for piece in pieces:
            _verify(file, piece, data, base)
            writer.add(
                piece.lsn,
                piece.lanes,
                piece.firsts,
                piece.lengths,
                data[piece.positions[0] - base : piece.end - base],
            )

    def _path(self, segment_id: int) -> Path:
        return self._paths.segment(segment_id)

    def _pieces(self, file: BatchFile, source: Segment) -> Iterator[Piece]:
        """All records of a source, in order. Raises Unfit when it is not as it was written."""
        return _pieces(file, source)

    def _new_writer(self) -> Writer:
        return SparseWriter(
            self._disk,
            self._path(self._segment_id),
            self._uuid,
            self._epoch,
            base_lsn=self.sources[0].base_lsn,
            durable_lsn=self.sources[-1].end_lsn,
            reserved_bytes=self._needed_bytes(),
        )

    def _needed_bytes(self) -> int:
        """The bytes that the new segment takes at most."""
        ids = [source.segment_id for source in self.sources]
        live = {segment_id: self._index.live_of(segment_id) for segment_id in ids}
        return sum(_needed_bytes(live, segment_id) for segment_id in ids) + 4096


class _GivenUp(Exception):
    """The compaction cannot be done now; the files are sound."""


def _reading_failed(segment_id: int, error: OSError) -> Exception:
    return Unfit(segment_id) if error.errno in _UNREADABLE else _GivenUp()


def _pieces(file: BatchFile, source: Segment) -> Iterator[Piece]:
    """All records of a segment, in order. Raises Unfit when it is not as it was written."""
    try:
        if file.header is None or not file.header_belongs_here:
            raise Unfit(file.file_id)
        yield from _stray_pieces(file) if file.header.sparse else _dense_pieces(file, source)
    except OSError as error:
        raise _reading_failed(file.file_id, error) from error


def _dense_pieces(file: BatchFile, source: Segment) -> Iterator[Piece]:
    """The records of a segment without missing LSNs, by its footer."""
    columns = file.records()
    if columns is None:
        raise Unfit(file.file_id)
    lsn = source.base_lsn
    for lanes, firsts, positions, lengths, *_ in columns.runs():
        yield Piece(lsn, lanes, firsts, positions, lengths)
        lsn += len(positions)
    if lsn != source.end_lsn:
        raise Unfit(file.file_id)


def _stray_pieces(file: BatchFile) -> Iterator[Piece]:
    """The records of a segment with missing LSNs, by its batches, which say where LSNs go on."""
    trailer = file.trailer()
    if trailer is None:
        raise Unfit(file.file_id)
    lsn = trailer.base_lsn
    end = FILE_HEADER_BYTES
    for batch in file.batches():
        if batch.end > trailer.log_end or batch.header.base < lsn:
            raise Unfit(file.file_id)
        lsn = batch.header.base
        for lanes, firsts, positions, lengths, *_ in columns_of(batch).runs():
            yield Piece(lsn, lanes, firsts, positions, lengths)
            lsn += len(positions)
        end = batch.end
        if end == trailer.log_end:
            break
    if end != trailer.log_end or lsn > trailer.end_lsn:
        raise Unfit(file.file_id)


def _verify(file: BatchFile, piece: Piece, data: bytes, base: int) -> None:
    """Check records against the footer and their own hashes. Raises Unfit."""
    for at, (position, length) in enumerate(zip(piece.positions, piece.lengths, strict=True)):
        record = unpack_record(data, position - base)
        if (
            record is None
            or not record.whole
            or record.length != length
            or record.targets[0::2] != tuple(piece.lanes)
            or record.targets[1::2] != tuple(first + at for first in piece.firsts)
        ):
            raise Unfit(file.file_id)


def _windows(pieces: Iterable[Piece | None]) -> Iterator[list[Piece]]:
    """Lists of pieces that are read together; an empty list now and then, to end a step."""
    window: list[Piece] = []
    for piece in pieces:
        if piece is None:
            if window:
                yield window
                window = []
            else:
                yield []
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
