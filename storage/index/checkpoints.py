"""When the index is brought up to date, and when segments are given up and unlinked.

This is the owner's thread; checkpoint.py writes to LMDB, on the checkpoint thread. Promises the
order of a checkpoint: what it has is synced in the log, then in the ledger, then LMDB commits. And
promises the three steps of giving a segment up (reclaim.py). Compactions pass through here, since
their moves are part of a checkpoint.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import compress
from typing import Any, Generic

from qlog.storage.catalog import Catalog
from qlog.storage.errors import Shortage
from qlog.storage.index import checkpoint
from qlog.storage.index.checkpoint import CheckpointDone, Snapshot, snapshot_records
from qlog.storage.index.due import DueTimes
from qlog.storage.index.due_rows import Due
from qlog.storage.index.index import SPILL, Index, Live
from qlog.storage.index.rows import IndexDoubt
from qlog.storage.lanes.cache import Cache
from qlog.storage.lanes.lane import Changes, Lane
from qlog.storage.lanes.reader import Reader
from qlog.storage.lanes.run import M
from qlog.storage.lmdb.catalog import CatalogFile
from qlog.storage.settings import StoreSettings
from qlog.storage.space.compact import CompactionStep
from qlog.storage.space.compactor import Compactor
from qlog.storage.space.reclaim import dead_segments, is_worth_rolling
from qlog.storage.space.retention import Retention
from qlog.storage.write.commit import CommitJob, CommitResult
from qlog.storage.write.commits import Commits
from qlog.storage.write.ledger import Records, SegmentDropped
from qlog.storage.write.placement import Segment
from qlog.storage.write.settling import Settling
from qlog.storage.write.spill import SpillWriter
from qlog.storage.write.upkeep import Unlinked, Upkeep

_NEVER_S = 60.0
_LOOK_S = 10.0  # between two looks for segments that retention lets go
_SLICE = 1000  # so many lanes, blocks and runs are one slice: some milliseconds
_RUNS_SLICE = 10_000  # so many runs are marked in one slice: a millisecond
_RUNS_LIKE_A_LANE = 20  # to look at a lane takes as long as to look at so many runs of it


class Checkpoints(Generic[M]):
    """See the head of this file.

    Arguments: `followed` says of a segment whether a follower of the journal still needs it; `live`
    are the segments' unsettled messages as the index counts them; `identity` is (uuid, epoch) of
    the directory; `on_doubt` and `on_failure` are told when the index is wrong, and when the disk
    failed; `notify` makes the owner call `tick` soon.
    """

    def __init__(
        self,
        *,
        due: DueTimes,
        retention: Retention,
        followed: Callable[[Segment], bool],
        clock_ms: Callable[[], int] | None,
        commits: Commits[M],
        settling: Settling[M],
        lanes: dict[int, Lane[M]],
        cache: Cache[M],
        index: Index,
        catalog: Catalog,
        catalog_file: CatalogFile,
        live: dict[int, Live],
        spill: SpillWriter[M],
        reader: Reader[M],
        identity: tuple[bytes, int],
        upkeep: Upkeep,
        compactor: Compactor,
        settings: StoreSettings,
        notify: Callable[[], None],
        on_doubt: Callable[[Exception], object],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self.live = live
        self.compactor = compactor
        self.wanted = False  # a checkpoint is to begin with the next commit
        self.snapshot: Snapshot[M] | None = None  # of the checkpoint that is under way
        self.wants_sync = False  # all is gathered, and waits for the ledger's sync
        self.held: Shortage | None = None  # why the snapshot is not written now
        self.condemned: set[int] = set()  # segments that were given up, and have a file
        self.lsn = commits.log.lsn  # the index has the log up to here
        self._due = due
        self._commits = commits
        self._settling = settling
        self._retention = retention
        self._followed = followed
        self._clock_ms = clock_ms
        # Segments with messages that were restored after the last checkpoint was gathered, and
        # before it was. The index still counts these messages as settled.
        self._restored: set[int] = set()
        self._restored_gathered: set[int] = set()
        self._changes: Changes[M] = settling.changes
        self._changes.restored = self._lane_restored
        self._lanes = lanes
        self._cache = cache
        self._index = index
        self._catalog = catalog
        self._catalog_file = catalog_file
        self._spill = spill
        self._reader = reader
        self._identity = identity
        self._upkeep = upkeep
        self._settings = settings
        self._notify = notify
        self._on_doubt = on_doubt
        self._on_failure = on_failure
        self._writing = False
        self._begun_s = 0.0
        self._look_s = 0.0
        self._now_s = 0.0
        self._bytes_appended = 0  # to the log, since the last checkpoint began
        self._lanes_with_runs: dict[Lane[M], None] = {}
        self._dropped: list[int] = []  # lanes that the next checkpoint removes
        self._unlinked: list[int] = []  # segments that the next checkpoint forgets
        self._unlink_again: list[int] = []  # segments to unlink after the next checkpoint
        self._dead_left = self._any_dead()  # the next checkpoint can give up segments
        self._steps: Iterator[None] | None = None  # what is being done in slices
        self._records_made = False  # of all lanes, for the ledger's next file

    # -- when

    @property
    def ledger_may_go_on(self) -> bool:
        """Whether settlements may be written to the ledger.

        They may not until the ledger has everything that the snapshot began with: what came later
        must lie behind the position that the index will remember.
        """
        return self.snapshot is None or self.snapshot.ledger is not None

    def appended(self, size: int) -> None:
        """So many bytes went to the log."""
        self._bytes_appended += size

    def lane_dropped(self, lane_id: int) -> None:
        """The next checkpoint removes the lane from the index."""
        self._dropped.append(lane_id)
        self._changes.operations += 1

    def tick(self, now_s: float) -> tuple[bool, float]:
        """Whether a checkpoint is due, and the seconds until the next one will be."""
        self._now_s = now_s
        if now_s >= self._look_s:
            self._look_s = now_s + _LOOK_S
            self.sealed()
        changes = self._changes
        if not (
            changes.dirty
            or self._catalog.changed
            or self._dropped
            or self.condemned
            or self.compactor.moves
            or self._dead_left
            or self.lsn < self._commits.durable_lsn
        ):
            return False, _NEVER_S
        settings = self._settings
        due_s = self._begun_s + settings.checkpoint_interval_s
        due = (
            now_s >= due_s
            or changes.operations >= settings.checkpoint_operations
            or self._bytes_appended >= settings.checkpoint_bytes
            or self._cache.transient_bytes > settings.cache_bytes_max
        )
        if due and self.snapshot is None and not self.wanted:
            self.begin()
            due_s = self._begun_s + settings.checkpoint_interval_s
        return self.wanted, max(due_s - now_s, 0.01)

    def begin(self) -> None:
        """Have a checkpoint begin with the next commit, unless one is under way."""
        if self.snapshot is None:
            self.wanted = True
            self._dead_left = False
            self._begun_s = self._now_s

    # -- in slices, so that no turn of the owner's loop is long, whatever is in memory

    @property
    def stepping(self) -> bool:
        """A part of a checkpoint is left for `step`."""
        return self._steps is not None

    def step(self) -> None:
        """Do one slice of what is under way, if anything is."""
        if self._steps is None:
            return
        try:
            next(self._steps)
        except StopIteration:
            self._steps = None

    def _go(self, steps: Iterator[None]) -> None:
        assert self._steps is None
        self._steps = steps
        self.step()

    # -- gathering

    def join(self, job: CommitJob) -> None:
        """Let the job begin a checkpoint, or a new file of the ledger, if that is wanted.

        Everything that lanes have settled must be in the job, or was written before.
        """
        settling = self._settling
        if self.wanted and self.snapshot is None and self._steps is None:
            if settling.wants_roll and not self._records_made:
                self._go(self._make_records())
            else:
                self._begin(job)
        if settling.overflowed:
            job.snapshot = self._ledger_snapshot()
        if job.snapshot is not None:
            settling.rolls()
        snapshot = self.snapshot
        if snapshot is not None and snapshot.ledger is None:
            job.ledger_sync = True
        # What lanes settled while they were gathered is in this job, unless the ledger has to wait
        # until the snapshot's beginning is in it.
        if (
            snapshot is not None
            and (snapshot.ledger is not None or snapshot.at_once)
            and self.wants_sync
            and job.ledger_sync
        ):
            self.wants_sync = False
            job.seals_checkpoint = True

    def _make_records(self) -> Iterator[None]:
        """Make the records of all lanes for the ledger's next file. They are remembered, so that
        only those of lanes that change have to be made again.
        """
        for at, lane in enumerate(list(self._lanes.values())):
            checkpoint.entries_of(lane)
            if at % _SLICE == _SLICE - 1:
                yield
        self._records_made = True

    def _begin(self, job: CommitJob) -> None:
        """Begin a snapshot with what is durable now.

        The lanes are gathered in slices, up to that.
        """
        self.wanted = False
        changes = self._changes
        snapshot: Snapshot[M] = Snapshot(self._commits.durable_lsn, *self._commits.durable_end)
        snapshot.transient_serial = self._cache.transient_serial
        snapshot.definitions = self._catalog.take_changed()
        self._due.gathered()
        self._restored_gathered, self._restored = self._restored, set()
        lanes = list(changes.dirty)
        changes.dirty.clear()
        changes.operations = 0
        self._bytes_appended = 0
        self.snapshot = snapshot
        self._cache.gathering_lsn = snapshot.lsn
        if self._settling.wants_roll:
            self._records_made = False
            job.snapshot = self._ledger_snapshot()
        self._go(self._gather(snapshot, lanes))
        if snapshot.gathered:  # this job's sync is enough
            snapshot.at_once = True
            self.wants_sync = False
            job.seals_checkpoint = True

    def _gather(self, snapshot: Snapshot[M], lanes: Sequence[Lane[M]]) -> Iterator[None]:
        left = _SLICE
        for lane in lanes:
            for done in checkpoint.gather(snapshot, lane):
                left -= done
                if left <= 0:
                    yield
                    left = _SLICE
            if lane.durable_upto(snapshot.lsn) < lane.next_qseq and not lane.dropped:
                self._changes.dirty[lane] = None  # what is not durable yet comes with the next one
        # Lanes that were dropped meanwhile must not come back.
        kept = [not lane.dropped for lane in snapshot.lanes]
        snapshot.lanes = list(compress(snapshot.lanes, kept))
        snapshot.updates = list(compress(snapshot.updates, kept))
        snapshot.dropped, self._dropped = self._dropped, []
        snapshot.unlinked, self._unlinked = self._unlinked, []
        snapshot.condemned = list(self.condemned)
        snapshot.moves = self.compactor.take_moves()
        snapshot.gathered = True
        self._cache.gathering_lsn = -1
        self.wants_sync = True  # of all that lanes settled meanwhile

    def _ledger_snapshot(self) -> Records:
        durable_lsn = self._commits.durable_lsn
        log = self._commits.log
        segments = log.segments.values()
        written = [segment for segment in segments if segment.base_lsn < durable_lsn]
        following = min(
            (segment.segment_id for segment in segments if segment.base_lsn >= durable_lsn),
            default=log.active.segment_id + 1,
        )
        ids = [segment.segment_id for segment in written]
        kept = [segment_id for segment_id in ids if segment_id not in self.condemned]
        made = self.compactor.made
        if made is not None:  # the index may point to it, and all its sources may be condemned
            kept.append(made.segment_id)
        replaced = {
            old: new for old, new in self.compactor.replaced.items() if old not in self.condemned
        }
        pointed_to = {id_ for id_, live in self.live.items() if live.count and id_ < SPILL}
        assert pointed_to <= set(kept), "a start would miss what the index points to"
        return [
            *snapshot_records(self._lanes.values(), kept, replaced, following, durable_lsn),
            *self._catalog.records(),
        ]

    # -- writing

    def committed(self, result: CommitResult) -> None:
        """A job is done. If it has synced the ledger, the snapshot can be written."""
        snapshot = self.snapshot
        if snapshot is None or snapshot.sealed:
            return
        if result.ledger_synced:
            if snapshot.ledger is None:
                snapshot.ledger = result.ledger_position
            if result.job.seals_checkpoint:
                snapshot.sealed = True
                self.resume()
        elif result.job.seals_checkpoint:
            self.wants_sync = True

    def resume(self) -> None:
        """Write the snapshot if all of it is synced in the ledger."""
        snapshot = self.snapshot
        if snapshot is None or not snapshot.sealed or self._writing or self.held:
            return
        self._writing = True
        uuid, epoch = self._identity
        parts = (self._index, self._catalog_file, self._spill)
        self._upkeep.submit(lambda: checkpoint.write(snapshot, *parts, uuid, epoch))

    def written(self, done: CheckpointDone[M]) -> None:
        """The index has the snapshot, or could not get it."""
        if done.failure is None and done.doubt is None and done.shortage is None:
            self._go(self._finish(done))
            return
        self._writing = False
        if done.failure is not None:
            self._on_failure(done.failure)
        elif done.doubt is not None:
            self._on_doubt(done.doubt)
        else:
            self.held = done.shortage
            self._notify()

    def _finish(self, done: CheckpointDone[M]) -> Iterator[None]:
        """Forget in memory what the index has now, lane by lane; then give segments up."""
        snapshot = done.snapshot
        self._index.forget_cached()
        self.compactor.spill_current = done.spill_current
        for at, (run, segment_id, positions) in enumerate(snapshot.spilled):
            self._cache.drop(run)
            run.segment_id = segment_id
            run.positions = positions
            run.gathered = False
            run.indexed = True
            self.compactor.spilled[segment_id] = positions[-1] + run.lengths[-1]
            if at % _SLICE == _SLICE - 1:
                yield
        for transient in snapshot.transients.values():  # no space for them: with the next one
            transient.run.gathered = False
            for update, _ in transient.owners:
                lane = self._lanes.get(update.lane_id)
                if lane is not None:
                    self._changes.dirty[lane] = None
        for at, run in enumerate(snapshot.runs):
            run.gathered = False
            run.indexed = True
            if at % _RUNS_SLICE == _RUNS_SLICE - 1:
                yield
        dues = self._due.written(
            {update.lane_id: update.placed_upto for update in snapshot.updates}
        )
        self._lanes_with_runs.update(dict.fromkeys(snapshot.lanes))
        sources = frozenset().union(*(move.sources for move in snapshot.moves))
        left = _SLICE
        for lane in list(self._lanes_with_runs):
            left -= 1 + lane.run_count // _RUNS_LIKE_A_LANE
            if sources:  # the index has moved these pointers: memory must not have the old places
                lane.forget_segments(sources)
            if not lane.forget_indexed():
                del self._lanes_with_runs[lane]
            if left <= 0:
                yield
                left = _SLICE
        if snapshot.moves:
            segment = self.compactor.moved()
            if segment is not None:
                self._commits.log.segments[segment.segment_id] = segment
        self.live.update(done.live)
        self.lsn = snapshot.lsn
        self._restored_gathered = set()
        self.snapshot = None
        self._writing = False  # not earlier: it must not be written again while it is taken over
        self._reclaim(snapshot.condemned, done.spill_current)
        yield from _freeing(snapshot, dues)

    # -- giving up segments

    def _reclaim(self, condemned: Sequence[int], spill_current: int) -> None:
        """After a checkpoint: unlink segments that were given up before, give up those dead now."""
        log = self._commits.log
        spilled = [
            segment_id
            for segment_id, live in self.live.items()
            if segment_id >= SPILL
            and not live.count
            and segment_id not in (spill_current, self.compactor.target)
        ]
        going = [segment_id for segment_id in condemned if segment_id in self.condemned]
        for segment_id in going:
            self.condemned.remove(segment_id)
            del log.segments[segment_id]
            self.compactor.replaced.pop(segment_id, None)
        for segment_id in [*going, *spilled]:
            self._reader.forget(segment_id)
            self.live.pop(segment_id, None)
            self.compactor.spilled.pop(segment_id, None)
        unlinking = [*self._unlink_again, *going, *spilled]
        self._unlink_again = []
        if unlinking:
            self._upkeep.unlink(unlinking)
        for segment_id in self._dead():
            self.condemned.add(segment_id)
            end_lsn = log.segments[segment_id].end_lsn
            self._settling.note(SegmentDropped(segment_id, end_lsn))
        if log.lsn == self.lsn and is_worth_rolling(log.active, self.live, self.lsn):
            log.roll()
            self._commits.seal_rolled()

    def unlinked(self, done: Unlinked) -> None:
        """Files were unlinked; those that are left are tried again. Raises any other error."""
        self._unlinked += done.gone
        self._unlink_again += done.left
        if done.error is not None:
            raise done.error

    def sealed(self) -> None:
        """A segment was sealed, or is not kept any more: have the next checkpoint give it up."""
        if not self._dead_left and self._any_dead():
            self._dead_left = True
            self._notify()

    def _dead(self) -> list[int]:
        segments = self._commits.log.segments
        return dead_segments(segments, self.live, self.lsn, self._excluded, self._keeps())

    @property
    def _excluded(self) -> set[int]:
        """Segments that were given up, or have restored messages that the index does not count.

        The sources of a compaction stay together until the index has all of its moves: a replay
        reads either them or what was made of them.
        """
        sources = self.compactor.moving
        return self.condemned | self._restored | self._restored_gathered | sources

    def _keeps(self) -> Callable[[Segment], bool]:
        now_ms = 0 if self._clock_ms is None else self._clock_ms()
        followed, keeps = self._followed, self._retention.keeps
        return lambda segment: followed(segment) or keeps(segment, now_ms)

    # -- restoring

    def may_restore(self, segment_id: int) -> bool:
        """Whether messages of this segment can be restored: the segment is there, and stays."""
        return (
            segment_id in self._commits.log.segments
            and segment_id not in self.condemned
            and not self.compactor.has_part(segment_id)
        )

    def _lane_restored(self, lane: Lane[M], flat: list[int], segment_ids: set[int]) -> None:
        self._restored |= segment_ids
        self._settling.restored(lane, flat)

    def stands(self, segment_id: int) -> bool:
        """Whether no compacted segment has taken the place of a segment.

        One that the index does not have yet is not among the log's segments either.
        """
        replaced_by = self.compactor.replaced.get(segment_id)
        made = self.compactor.made
        return replaced_by is None or (made is not None and made.segment_id == replaced_by)

    def _any_dead(self) -> bool:
        return bool(self._dead())

    # -- compaction

    def compact(self, now_s: float, *, may_begin: bool) -> float:
        """Let a compaction go on, or begin; seconds until the next time."""
        return self.compactor.tick(
            now_s, self.live, self.lsn, self._excluded, self._keeps(), may_begin=may_begin
        )

    def compacted(self, step: CompactionStep) -> None:
        """Take the result of a step of a compaction."""
        if isinstance(step.failure, IndexDoubt):
            self._on_doubt(step.failure)
        elif step.failure is not None:
            self._on_failure(step.failure)
        record = self.compactor.stepped(step, self._now_s)
        if record is not None:
            self._settling.note(record)
        if not step.finished:
            self._notify()


def _freeing(snapshot: Snapshot[M], dues: list[Due]) -> Iterator[None]:
    """Give back the memory of a snapshot that is written: all at once that may take 40 ms."""
    left = _SLICE
    for update in snapshot.updates:
        while update.placed:
            left -= min(len(update.placed), _SLICE)
            del update.placed[-_SLICE:]
            if left <= 0:
                yield
                left = _SLICE
    parts: tuple[list[Any], ...] = (snapshot.spilled, snapshot.runs, dues)
    for part in parts:
        while part:
            yield
            del part[-_SLICE:]
