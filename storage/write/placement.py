"""The ordered segments, as the loop thread sees them: where the next record goes.

Records gather in the open batch, run by run. When the batch is full, or handed over, it is packed:
from then on each record has its place and its number (LSN). Before that, only the place of the
batch and its number of records are known. So the LSN behind everything that was appended is always
known, and that suffices, since a batch becomes durable as a whole.

A segment has room for its footer from the start, so that sealing one never needs space.
"""

from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Protocol

from qlog.storage.bytes.batch import BATCH_HEADER_BYTES, FILE_HEADER_BYTES
from qlog.storage.bytes.footer import TRAILER_BYTES, Columns
from qlog.storage.bytes.record import PERSISTENT, is_uniform, pack_run
from qlog.storage.lanes.run import Run


@dataclass(slots=True)
class Segment:
    """One segment. As long as it is not sealed, it has the columns of its footer."""

    segment_id: int
    base_lsn: int
    capacity: int  # the file's size
    end_lsn: int
    log_end: int = FILE_HEADER_BYTES
    columns: Columns | None = None  # None: sealed
    footer_bytes: int = TRAILER_BYTES
    sealed_s: float = 0.0  # when, on the owner's clock; 0: before the start
    earliest_ms: int = 0  # set when sealed: the times of the messages are between these two
    latest_ms: int = 0

    @property
    def sealed(self) -> bool:
        return self.columns is None

    def forget_columns(self) -> None:
        """The footer is written."""
        assert self.columns is not None
        self.earliest_ms = self.columns.earliest_ms
        self.latest_ms = self.columns.latest_ms
        self.columns = None


@dataclass(slots=True)
class PendingBatch:
    """Records on their way to disk."""

    segment: Segment
    position: int
    base_lsn: int
    count: int = 0
    size: int = 0  # of the records
    pieces: "list[Piece]" = field(default_factory=list)  # until it is packed
    parts: list[bytes] = field(default_factory=list)  # the records, once it is packed

    @property
    def end(self) -> int:
        return self.position + BATCH_HEADER_BYTES + self.size

    def pack(self) -> None:
        """Lay the records out, run by run, and tell each run where its records are."""
        columns = self.segment.columns
        assert columns is not None
        at = self.position + BATCH_HEADER_BYTES
        lsn_end = self.base_lsn + self.count
        for piece in self.pieces:
            run = piece.run
            lanes, firsts, lengths = piece.lanes, piece.firsts, run.lengths
            self.parts += pack_run(
                lanes,
                firsts,
                piece.metas,
                piece.bodies,
                lengths,
                PERSISTENT,
                run.now_ms,
                run.times_ms,
                run.dues_ms,
            )
            if run.count == 1:
                positions = array("I", (at,))
                at += lengths[0]
            elif is_uniform(lengths):
                end = at + lengths[0] * run.count
                positions = array("I", range(at, end, lengths[0]))
                at = end
            else:
                positions = array("I", accumulate(lengths, initial=at))
                at = positions.pop()
            run.positions = positions
            run.lsn_end = lsn_end
            run.batch = None
            columns.add(lanes, firsts, positions, lengths, run.sizes, run.dues_ms)
            times_ms = run.times_ms
            if times_ms is None:
                columns.note_times(run.now_ms, run.now_ms)
            else:
                columns.note_times(min(times_ms), max(times_ms))
        assert at == self.end
        self.pieces.clear()


class Target(Protocol):
    """A lane that messages go to."""

    @property
    def id(self) -> int: ...

    @property
    def next_qseq(self) -> int: ...


class Piece:
    """A run as its batch sees it. The messages are kept here, since the lanes may forget the run
    before the batch is packed.
    """

    __slots__ = ("bodies", "firsts", "lanes", "metas", "run")

    def __init__(self, run: Run[Any], lanes: Sequence[Target]) -> None:
        assert run.metas is not None and run.bodies is not None
        self.run = run
        if len(lanes) == 1:
            self.lanes, self.firsts = [lanes[0].id], [lanes[0].next_qseq]
        else:
            self.lanes = [lane.id for lane in lanes]
            self.firsts = [lane.next_qseq for lane in lanes]
        self.metas = run.metas  # the run's own lists, which grow with it
        self.bodies = run.bodies


class Log:
    """Assigns places. `segments` has every segment that exists, sealed or not, by id."""

    def __init__(
        self,
        *,
        lsn: int,
        segment_id: int,
        segment_bytes_max: int,
        batch_bytes_max: int,
        batch_records_max: int,
        sealed: dict[int, Segment],
    ) -> None:
        self.lsn = lsn
        self.segments = sealed
        self.pending_bytes = 0  # appended and not durable
        self.rolled: list[Segment] = []  # full segments that are to be sealed
        self._segment_bytes_max = segment_bytes_max
        self._batch_bytes_max = batch_bytes_max
        self._batch_records_max = batch_records_max
        self._closed: deque[PendingBatch] = deque()
        self.active = self._new_segment(segment_id, 0)
        self._open: PendingBatch | None = None

    @property
    def has_pending(self) -> bool:
        return self._open is not None or bool(self._closed)

    def place(self, count: int, size: int, footer_bytes: int) -> PendingBatch:
        """The batch that takes these records: they begin at its `end`.

        `count` and `size` are within a batch's limits, unless it is one large record.
        """
        batch = self._open
        if batch is not None and (
            batch.count + count > self._batch_records_max
            or batch.size + size > self._batch_bytes_max
            # The batch ends where the segment does.
            or self.active.log_end + size + self.active.footer_bytes + footer_bytes
            > self.active.capacity
        ):
            self._close_batch()
            batch = None
        if batch is None:
            active = self.active
            end = active.log_end + BATCH_HEADER_BYTES + size
            if end + active.footer_bytes + footer_bytes > active.capacity:
                self.roll(size + footer_bytes)
            batch = self._open = PendingBatch(self.active, self.active.log_end, self.lsn)
        return batch

    def added(self, batch: PendingBatch, count: int, size: int, footer_bytes: int) -> None:
        """The records are in the batch: the log's LSN moves behind them."""
        batch.count += count
        batch.size += size
        self.lsn += count
        self.pending_bytes += size
        segment = batch.segment
        segment.log_end = batch.position + BATCH_HEADER_BYTES + batch.size
        segment.end_lsn = self.lsn
        segment.footer_bytes += footer_bytes

    def take_batches(self, bytes_max: int | None) -> list[PendingBatch]:
        """What was appended and not handed over yet, in order: up to so many bytes, or all of it.

        A batch that is larger alone is taken alone.
        """
        self._close_batch()
        closed = self._closed
        batches: list[PendingBatch] = []
        size = 0
        while closed:
            size += closed[0].size
            if batches and bytes_max is not None and size > bytes_max:
                break
            batches.append(closed.popleft())
        return batches

    def put_back(self, batches: list[PendingBatch]) -> None:
        """These batches were not written: they will be the next to be taken."""
        self._closed.extendleft(reversed(batches))

    def roll(self, needed: int = 0) -> None:
        """Go on in a new segment. An empty segment stays, if the next record fits in it."""
        self._close_batch()
        old = self.active
        if old.end_lsn == old.base_lsn:  # the record is larger than a segment: enlarge this one
            old.capacity = max(old.capacity, _capacity(needed))
            return
        self.rolled.append(old)
        self.active = self._new_segment(old.segment_id + 1, needed)

    def _close_batch(self) -> None:
        if self._open is not None:
            self._open.pack()
            self._closed.append(self._open)
            self._open = None

    def _new_segment(self, segment_id: int, needed: int) -> Segment:
        capacity = max(self._segment_bytes_max, _capacity(needed))
        segment = Segment(segment_id, self.lsn, capacity, self.lsn, columns=Columns())
        self.segments[segment_id] = segment
        return segment


def _capacity(size: int) -> int:
    """The size of a segment with one batch of this size, footer included."""
    return FILE_HEADER_BYTES + BATCH_HEADER_BYTES + TRAILER_BYTES + size
