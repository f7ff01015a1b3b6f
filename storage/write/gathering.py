"""Messages on their way into the log's open batch are gathered into runs, however few come at once.

A message goes to the open run of its lanes, if there is one, else to a new run. So a batch has one
run for each set of lanes, and not one for each append. Promises that within a lane the order in the
log is the order of appends: when a message goes to one of the lanes and to others, too, it begins a
new run. Messages that are only in memory are gathered in the same way, beyond a batch, too, until
most of them are settled.
"""

from collections.abc import Sequence
from typing import Generic

from qlog.storage.bytes.footer import records_bytes, run_bytes
from qlog.storage.bytes.record import Lengths, record_lengths
from qlog.storage.lanes.cache import Cache
from qlog.storage.lanes.lane import Lane
from qlog.storage.lanes.run import IN_MEMORY, NOT_PACKED, RUN_OVERHEAD_BYTES, M, Run
from qlog.storage.settings import StoreSettings
from qlog.storage.write.placement import Log, Piece

# What is settled in a run of this size is not worth a new run, whose objects take memory, too.
_TINY_BYTES = 4 * RUN_OVERHEAD_BYTES


class Gathering(Generic[M]):
    """See the head of this file."""

    def __init__(self, log: Log, cache: Cache[M], settings: StoreSettings) -> None:
        self._log = log
        self._cache = cache
        self._settings = settings
        self._memory = object()  # in place of a batch, for runs that are only in memory

    def persistent(
        self,
        lanes: Sequence[Lane[M]],
        metas: Sequence[M],
        bodies: Sequence[bytes],
        now_ms: int,
        dues_ms: Sequence[int] | None,
    ) -> int:
        """Have messages written with the next batch. Returns their size in the log, in bytes."""
        log = self._log
        count = len(bodies)
        has_dues = dues_ms is not None
        measured = record_lengths(len(lanes), metas, bodies, has_dues=has_dues)
        size = measured.record_bytes
        run_footer_bytes = run_bytes(len(lanes))
        footer_bytes = records_bytes(count, has_dues=has_dues)
        batch = log.place(count, size, footer_bytes + run_footer_bytes)
        run = _open_run(lanes, batch, has_dues)
        if run is None:
            footer_bytes += run_footer_bytes
            run = Run(batch.segment.segment_id, NOT_PACKED, len(lanes), has_dues=has_dues)
            run.batch = batch
            batch.pieces.append(Piece(run, lanes))
            self._begin(run, lanes)
        log.added(batch, count, size, footer_bytes)
        self._extend(run, lanes, metas, bodies, measured, now_ms, dues_ms)
        return size

    def transient(
        self,
        lanes: Sequence[Lane[M]],
        metas: Sequence[M],
        bodies: Sequence[bytes],
        now_ms: int,
        dues_ms: Sequence[int] | None,
    ) -> None:
        """Keep the messages in memory, until a checkpoint spills them."""
        has_dues = dues_ms is not None
        measured = record_lengths(len(lanes), metas, bodies, has_dues=has_dues)
        run = _open_run(lanes, self._memory, has_dues)
        if (
            run is None
            or not self._takes(run, len(bodies), measured.record_bytes)
            or _is_mostly_settled(run, lanes)
        ):
            run = Run(IN_MEMORY, 0, len(lanes), has_dues=has_dues)
            run.batch = self._memory
            run.origin = [(lane.id, lane.next_qseq) for lane in lanes]
            self._begin(run, lanes)
        self._extend(run, lanes, metas, bodies, measured, now_ms, dues_ms)

    def _takes(self, run: Run[M], count: int, size: int) -> bool:
        """Whether a run that is only in memory can grow so much.

        It grows no larger than a batch, since it is spilled as a whole, and not at all while a
        checkpoint has it.
        """
        return not (
            run.gathered
            or run.indexed
            or run.count + count > self._settings.batch_records_max
            or run.memory_bytes + size > self._settings.batch_bytes_max
        ) and run.has_room(count, size)

    def _begin(self, run: Run[M], lanes: Sequence[Lane[M]]) -> None:
        self._cache.add(run)
        for lane in lanes:
            lane.add(run)

    def _extend(
        self,
        run: Run[M],
        lanes: Sequence[Lane[M]],
        metas: Sequence[M],
        bodies: Sequence[bytes],
        measured: Lengths,
        now_ms: int,
        dues_ms: Sequence[int] | None,
    ) -> None:
        self._cache.grown(run, run.extend(metas, bodies, measured, now_ms, dues_ms))
        for lane in lanes:
            lane.grown(run, len(bodies), measured.body_bytes)


def _is_mostly_settled(run: Run[M], lanes: Sequence[Lane[M]]) -> bool:
    """Whether the first half of the open run, or more, is settled in all of its lanes.

    A run leaves memory as a whole: if it grew on, what is settled would stay, and be spilled.
    """
    if run.memory_bytes < _TINY_BYTES:
        return False
    count = run.count
    return all(2 * (lane.next_qseq - lane.settled.floor) <= count for lane in lanes)


def _open_run(lanes: Sequence[Lane[M]], batch: object, has_dues: bool) -> Run[M] | None:
    """The open run of the batch (or of memory) for exactly these lanes; None: there is none."""
    run = lanes[0].open_run
    if (
        run is None
        or run.batch is not batch
        or run.lane_count != len(lanes)
        or (run.dues_ms is not None) is not has_dues
    ):
        return None
    if len(lanes) > 1 and any(lane.open_run is not run for lane in lanes):
        return None
    return run
