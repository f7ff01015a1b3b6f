"""The face of storage: append, read, settle, commit, close.

What it promises: a message appended as persistent is on disk when `durable_lsn` has reached the LSN
that `append` returned; it is then read back, as it was, until it is settled, across any crash. A
settlement survives the process after `ack_flush_s` and the power after `ledger_sync_s`. Memory
does not grow with what is kept.

What it does not know: AMQP, trio, the clock (times are passed in). All methods are for one thread,
the owner's; the store's own threads report by `notify`, after which the owner calls `advance`.
A process that forks must not use the store in the child.
"""

from array import array
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Generic, Self

from qlog.storage.bytes.datadir import Identity, mark_doubt
from qlog.storage.bytes.disk import Disk, OSDisk
from qlog.storage.bytes.record import PERSISTENT, TARGET_BYTES, pack_run
from qlog.storage.errors import (
    CorruptLog,
    DirectoryUnreadable,
    SyncFailed,
    is_full,
    lacks_descriptors,
)
from qlog.storage.index import checkpoint
from qlog.storage.index.checkpoint import CheckpointDone, Snapshot, snapshot_records
from qlog.storage.index.index import SPILL, IndexDoubt, Move
from qlog.storage.lanes.lane import Lane
from qlog.storage.lanes.reader import Reader
from qlog.storage.lanes.run import IN_MEMORY, M, Run
from qlog.storage.lmdb.catalog import Catalog
from qlog.storage.settings import StoreSettings
from qlog.storage.space.compact import CompactionStep
from qlog.storage.space.compactor import Compactor
from qlog.storage.space.reclaim import dead_segments, is_worth_rolling
from qlog.storage.start import recovery
from qlog.storage.worker import ThreadWorker, Worker
from qlog.storage.write.commit import CommitJob, CommitResult, Committer
from qlog.storage.write.ledger import (
    DELIVERED,
    LANE_DELETED,
    SEGMENT_DROPPED,
    TIME,
    Record,
    Records,
    ack_record,
)
from qlog.storage.write.spill import SpillWriter
from qlog.storage.write.upkeep import Prepared, Sealed, Unlinked, Upkeep

_LANE_IDS_RESERVED = 1024  # so many ids for one commit of the catalog
_FULL_RETRY_S = 0.2
_IDLE_S = 60.0
_LEDGER_TIME_MS = 1000  # a batch of the ledger has its time, unless the last one was so near
_CLOSE_S = 60.0


class Store(Generic[M]):
    """See the head of this file."""

    def __init__(
        self,
        recovered: "recovery.Recovered[M]",
        *,
        notify: Callable[[], None],
        new_worker: Callable[[str, Callable[[], None]], Worker],
        clock_ms: Callable[[], int] | None,
    ) -> None:
        """Use `open`."""
        self.catalog: Catalog = recovered.catalog
        self.report = recovered.report
        self.settings = recovered.settings
        self.durable_lsn = recovered.log.lsn
        self.synced = 0
        self.full = False
        self.lacks_descriptors = False  # for that it is full, and not for want of space
        self.failure: BaseException | None = None
        self.catalog.on_failure = self._fail
        self._recovered = recovered
        self._paths = recovered.paths
        self._disk = recovered.disk
        self._identity: Identity = recovered.identity
        self._notify = notify
        self._clock_ms = clock_ms
        self._log = recovered.log
        self._lanes = recovered.lanes
        self._cache = recovered.cache
        self._changes = recovered.changes
        self._changes.await_acks = self._await_acks
        self._index = recovered.index
        self._live = recovered.live
        self._reader: Reader[M] = recovered.reader
        recovered.shelf.on_doubt = self._doubt
        self._spill: SpillWriter[M] = recovered.spill
        self._nursery = recovered.nursery
        self._committer = Committer(
            recovered.disk,
            recovered.paths,
            recovered.identity.uuid,
            recovered.identity.epoch,
            recovered.nursery,
            recovered.ledger,
        )
        self._lane_id_next = recovered.identity.lane_ids_reserved
        # commits
        self._committing = False
        self._durable_end = (self._log.active.segment_id, self._log.active.log_end)
        self._records: list[Record] = []  # for the ledger, beside the lanes' changes
        self._chunks: list[Records] = []  # batches for the ledger
        self._sync_requested = 0
        self._ledger_unsynced = False
        self._ledger_sync_due = False
        self._ledger_wants_roll = False
        self._ledger_overflowed = False
        self._ledger_time_ms: int | None = None  # the last in the ledger's file
        self._log_held = False
        self._ledger_held = False
        # timers, on the owner's clock
        self._now_s = 0.0
        self._acks_since_s: float | None = None
        self._acks_due = False
        self._acks_awaited = False  # tick will be called in time for them
        self._retry_s = 0.0
        self._seal_s = 0.0
        self._ledger_synced_s = 0.0
        self._checkpoint_s = 0.0
        # checkpoints
        self._checkpoint_wanted = False
        self._checkpoint_lsn = self._log.lsn
        self._checkpoint_full = False
        self._bytes_appended = 0
        self._snapshot: Snapshot[M] | None = None  # gathered, and not in the index yet
        self._snapshot_writing = False
        self._lanes_with_runs: set[Lane[M]] = set()
        self._dropped: list[int] = []
        self._condemned: set[int] = set()  # segments given up
        self._unlinked: list[int] = []
        self._unlink_again: list[int] = []  # after the next checkpoint
        self._dead_left = self._any_dead()  # segments for the next checkpoint to give up
        self._closed = False
        self._commit_worker = new_worker("qlog-commit", notify)
        self._upkeep = Upkeep(
            new_worker("qlog-checkpoint", notify),
            recovered.disk,
            recovered.paths,
            recovered.identity.uuid,
            recovered.nursery,
        )
        self._compactor = Compactor(
            recovered.disk,
            recovered.paths,
            recovered.index,
            recovered.identity,
            recovered.settings,
            self._log.segments,
            recovered.replaced,
            next_id=recovered.compacted_id_next,
            submit=self._upkeep.submit,
        )
        self._upkeep.prepare(self._log.active.segment_id, self._log.active.capacity)

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        decode: Callable[[bytes, int], M],
        notify: Callable[[], None],
        settings: StoreSettings | None = None,
        disk: Disk | None = None,
        new_worker: Callable[[str, Callable[[], None]], Worker] = ThreadWorker,
        clock_ms: Callable[[], int] | None = None,
    ) -> Self:
        """Lock, verify and recover a data directory, or make a new one.

        `decode` makes a meta of its bytes and the size of its body. `notify` is called from the
        store's threads, and from `Lane.settle` when a timer starts; the owner then calls `advance`
        and `tick`. `clock_ms`: the wall clock, for the times of settlements in the ledger, which are
        for people alone. Raises StorageError: DirectoryLocked, OtherFormat, DirectoryUnreadable,
        CorruptLog.
        """
        recovered = recovery.recover(
            directory, decode, settings or StoreSettings(), disk or OSDisk()
        )
        return cls(recovered, notify=notify, new_worker=new_worker, clock_ms=clock_ms)

    # -- lanes

    def new_lane_id(self) -> int:
        """An id that was never used in this directory. Sometimes a sync commit of the catalog.

        Raises DirectoryUnreadable when that cannot be written.
        """
        identity = self._identity
        if self._lane_id_next >= identity.lane_ids_reserved:
            self._lane_id_next = identity.lane_ids_reserved
            identity.lane_ids_reserved += _LANE_IDS_RESERVED
            try:
                identity.save(self.catalog)
            except BaseException:  # an id that was not reserved must never be given
                identity.lane_ids_reserved = self._lane_id_next
                raise
        lane_id = self._lane_id_next
        self._lane_id_next += 1
        return lane_id

    def lane(self, lane_id: int) -> Lane[M]:
        """The lane of this id, as recovered, or empty."""
        lane = self._lanes.get(lane_id)
        if lane is None:
            assert lane_id < self._identity.lane_ids_reserved
            lane = Lane(lane_id, self._recovered.shelf, self._cache, self._changes)
            self._lanes[lane_id] = lane
        return lane

    def retain(self, lane_ids: Collection[int]) -> None:
        """Drop every recovered lane but these: no definition names it any more."""
        kept = set(lane_ids)
        for lane_id in [lane_id for lane_id in self._lanes if lane_id not in kept]:
            self.drop(self._lanes[lane_id])

    def drop(self, lane: Lane[M]) -> None:
        """The queue is deleted: its messages are given up, its id is never used again."""
        assert not lane.dropped
        del self._lanes[lane.id]
        lane.forget()
        self._records.append([LANE_DELETED, lane.id])
        self._dropped.append(lane.id)
        self._changes.operations += 1
        self._await_acks()

    # -- messages

    @property
    def lsn(self) -> int:
        """The number of the next record."""
        return self._log.lsn

    def append(
        self,
        lanes: Sequence[Lane[M]],
        metas: Sequence[M],
        bodies: Sequence[bytes],
        *,
        persistent: bool,
        now_ms: int,
    ) -> int:
        """Give each of the messages the next qseq in each of the lanes.

        One record a message, however many lanes. The LSN after the last record: the run is
        durable when `durable_lsn` reaches it. What is not persistent stays in memory, and is
        durable as soon as what came before it. The two lists are kept: they must not change.
        """
        count = len(bodies)
        assert lanes and len(metas) == count
        if not count:
            return self._log.lsn
        settings = self.settings
        if count > 1 and (
            count > settings.batch_records_max
            or sum(map(len, bodies)) + count * TARGET_BYTES * len(lanes) > settings.batch_bytes_max
        ):
            half = count // 2
            self.append(lanes, metas[:half], bodies[:half], persistent=persistent, now_ms=now_ms)
            return self.append(
                lanes, metas[half:], bodies[half:], persistent=persistent, now_ms=now_ms
            )
        ids = [lane.id for lane in lanes]
        firsts = [lane.next_qseq for lane in lanes]
        log = self._log
        if persistent:
            parts, lengths = pack_run(ids, firsts, metas, bodies, PERSISTENT, now_ms)
            size = sum(lengths)
            footer_bytes = 8 * count + 8 + 12 * len(ids)
            batch = log.place(count, size, footer_bytes)
            positions = array("I", accumulate(lengths, initial=batch.end))
            positions.pop()
            columns = batch.segment.columns
            assert columns is not None
            columns.add(ids, firsts, positions, lengths)
            batch.parts += parts
            log.added(batch, count, size, footer_bytes)
            self._bytes_appended += size
            run = Run(
                batch.segment.segment_id, positions, lengths, log.lsn, len(ids), metas, bodies
            )
        else:
            lengths = array("I", map(len, bodies))
            positions = array("I", accumulate(lengths, initial=0))
            positions.pop()
            run = Run(IN_MEMORY, positions, lengths, 0, len(ids), metas, bodies)
            run.origin = (ids, firsts, now_ms)
        self._cache.add(run)
        for lane in lanes:
            lane.add(run)
        self._changes.operations += count
        return log.lsn

    @property
    def congested(self) -> bool:
        """More is waiting for the disk than there should be: stop taking messages."""
        return self._log.pending_bytes > self.settings.pending_bytes_max

    # -- commits

    def commit(self) -> None:
        """The end of a turn: hand over what is pending, unless the commit thread is at work."""
        if self._committing:
            return
        if (
            (self._log.has_pending and not self._log_held)
            or self._sync_requested > self.synced
            or self._checkpoint_wanted
            or self._acks_due
            or self._changes.acked_count >= self.settings.ack_flush_count
        ):
            self._hand_over()

    def advance(self) -> None:
        """Take what the store's threads have done, and give them more."""
        for result in self._commit_worker.take():
            self._committing = False
            self._take(self._committed, result)
        for result in self._upkeep.take():
            self._take(self._kept_up, result)
        self.commit()

    def request_sync(self) -> int:
        """A ticket: all done so far is durable, settlements too, when `synced` reaches it."""
        self._sync_requested += 1
        return self._sync_requested

    def tick(self, now_s: float) -> float:
        """Do what is due by the owner's monotonic clock; seconds until the next time."""
        self._now_s = now_s
        settings = self.settings
        wait_s = _IDLE_S
        if self._log_held or self._ledger_held or self._checkpoint_full:
            if now_s >= self._retry_s:
                self._log_held = self._ledger_held = self._checkpoint_full = False
                self._reader.close()  # it can be its files that leave no descriptor for others
                self._hand_over()
                self._resume_checkpoint()
            wait_s = _FULL_RETRY_S
        acks = self._changes
        if (
            acks.dirty
            or self._dropped
            or self._condemned
            or self._compactor.moves
            or self._dead_left
            or self._checkpoint_lsn < self.durable_lsn
        ):
            due_s = self._checkpoint_s + settings.checkpoint_interval_s
            if (
                now_s >= due_s
                or acks.operations >= settings.checkpoint_operations
                or self._bytes_appended >= settings.checkpoint_bytes
                or self._cache.transient_bytes > settings.cache_bytes_max
            ):
                self._begin_checkpoint()
            wait_s = min(wait_s, max(due_s - now_s, 0.01))
        if acks.acked or acks.delivered or self._records:
            assert self._acks_since_s is not None
            due_s = self._acks_since_s + settings.ack_flush_s
            if now_s >= due_s:
                self._acks_due = True
                self.commit()
            wait_s = min(wait_s, max(due_s - now_s, settings.ack_flush_s))
        if self._ledger_unsynced:
            due_s = self._ledger_synced_s + settings.ledger_sync_s
            if now_s >= due_s and not self._ledger_held:
                self._ledger_sync_due = True
                self._hand_over()
            wait_s = min(wait_s, max(due_s - now_s, 0.01))
        if self._log.rolled and self._log.rolled[0].end_lsn <= self.durable_lsn:
            if now_s >= self._seal_s:
                self._seal_rolled()
            wait_s = min(wait_s, _FULL_RETRY_S)
        if self.failure is None and not self._closed:
            compact_s = self._compactor.tick(
                now_s,
                self._live,
                self._checkpoint_lsn,
                self._condemned,
                may_begin=not self.full,
            )
            wait_s = min(wait_s, compact_s)
        self._acks_awaited = wait_s <= settings.ack_flush_s
        return wait_s

    def settle_down(self, timeout_s: float = 60.0) -> bool:
        """Block until all appended and settled is durable; False when it cannot be (yet)."""
        ticket = self.request_sync()
        while self._committing:  # what is under way may have found the disk full, and it is not now
            if not self._commit_worker.wait(timeout_s):
                return False
            self.advance()
        self._log_held = self._ledger_held = self.full = False
        while self.synced < ticket:
            if self.failure is not None or self.full:
                return False
            self.commit()
            if not self._commit_worker.wait(timeout_s):
                return False
            self.advance()
        return True

    def checkpoint(self, timeout_s: float = 60.0) -> bool:
        """Block until the index has all that is durable now; False when it cannot (yet)."""
        for _ in range(2):  # one that was full may be under way, and then be tried again
            self._checkpoint_full = False
            self._resume_checkpoint()
            if not self._quiesce(timeout_s):
                return False
        self._begin_checkpoint()
        return self._quiesce(timeout_s) and self._snapshot is None

    def close(self) -> None:
        """Write everything, make a last checkpoint, end the threads, give up the lock.

        What cannot be written for lack of space, or after a failure, was never confirmed.
        """
        if self._closed:
            return
        self._closed = True
        if self._compactor.working:
            self._quiesce(_CLOSE_S)
            self._compactor.abandon()
        if self.failure is None and self.settle_down():
            self._log.roll()
            self._seal_rolled()
            if self.checkpoint():
                self._identity.closed_lsn = self.durable_lsn
                with suppress(DirectoryUnreadable):  # no space: the next start looks for itself
                    self._identity.save(self.catalog)
        self._commit_worker.stop()
        self._upkeep.stop()
        self._committer.close()
        self._nursery.close()
        self._spill.close()
        self._reader.close()
        self._index.close()
        self.catalog.close()
        self._disk.close(self._recovered.lock)
        self._disk.release()

    # -- figures

    @property
    def segment_count(self) -> int:
        return len(self._log.segments)

    @property
    def segment_bytes(self) -> int:
        """What the log takes on disk, without what is reserved."""
        return sum(segment.log_end for segment in self._log.segments.values())

    @property
    def live_bytes(self) -> int:
        """What of it is unsettled, as of the last checkpoint."""
        return sum(live.size for live in self._live.values())

    def take_findings(self) -> list[str]:
        """Damage that was come upon since the last time, a line each for the operator."""
        return self._compactor.take_findings()

    @property
    def cache_bytes(self) -> int:
        """Bodies in memory."""
        return self._cache.bytes + self._cache.transient_bytes

    # -- inside

    def _await_acks(self) -> None:
        """Make sure that tick is called in time to flush the ledger."""
        if self._acks_since_s is None:  # since the tick before, at least: rather early than late
            self._acks_since_s = self._now_s
        if not self._acks_awaited:
            self._acks_awaited = True
            self._notify()

    def _flush_changes(self) -> None:
        """Make a ledger batch of what lanes settled and delivered."""
        changes = self._changes
        records = self._records
        self._records = []
        for lane in changes.acked:
            if not lane.dropped:
                records.append(ack_record(lane.id, lane.unwritten))
            lane.unwritten = []
        for lane in changes.delivered:
            lane.delivered_unwritten = False
            if not lane.dropped:
                records.append([DELIVERED, lane.id, lane.delivered])
        changes.acked.clear()
        changes.delivered.clear()
        changes.acked_count = 0
        self._acks_since_s = None
        self._acks_due = False
        if records:
            self._add_time(records)
            self._chunks.append(records)

    def _add_time(self, records: list[Record]) -> None:
        """Let a ledger batch say when it was made, about once a second."""
        if self._clock_ms is None:
            return
        now_ms = self._clock_ms()
        last_ms = self._ledger_time_ms
        if last_ms is None or not 0 <= now_ms - last_ms < _LEDGER_TIME_MS:
            records.insert(0, [TIME, now_ms])
            self._ledger_time_ms = now_ms

    def _hand_over(self) -> None:
        """Give the commit thread all there is to write, if it is idle."""
        if self._committing or self.failure is not None:
            return
        try:
            self._submit_job()
        except Exception as error:
            self._fail(error)  # batches may have been taken: nothing behind them may be confirmed
            raise

    def _submit_job(self) -> None:
        batches = [] if self._log_held else self._log.take_batches()
        job = CommitJob(batches, self.durable_lsn)
        snapshot = self._snapshot
        # Until the ledger has what a snapshot has, it gets no more: what came after the snapshot
        # must lie behind the position that the index remembers.
        flushable = snapshot is None or snapshot.ledger is not None
        if not self._log_held and not self._ledger_held and flushable:
            job.ticket = self._sync_requested
        if not self._ledger_held:
            job.ledger_sync = self._ledger_sync_due or job.ticket > self.synced
            if flushable and (  # else acks gather: a confirm costs no more than its write and sync
                self._acks_due
                or job.ledger_sync
                or self._checkpoint_wanted
                or self._changes.acked_count >= self.settings.ack_flush_count
            ):
                self._flush_changes()
            job.ledger = self._chunks
            self._chunks = []
            if self._checkpoint_wanted and self._snapshot is None:
                self._checkpoint_wanted = False
                self._snapshot = self._gather()
                if self._ledger_wants_roll:
                    job.snapshot = self._ledger_snapshot()
            if self._ledger_overflowed:  # between two checkpoints, on a full disk
                job.snapshot = self._ledger_snapshot()
            if job.snapshot is not None:
                self._ledger_time_ms = None
            if self._snapshot is not None and self._snapshot.ledger is None:
                job.ledger_sync = True
        if job.batches or job.ledger or job.ledger_sync:
            self._committing = True
            self._commit_worker.submit(self._committer.bind(job))

    def _take(self, take: Callable[[object], None], result: object) -> None:
        """Whatever goes wrong with a result is final: what it had to say is lost."""
        try:
            take(result)
        except Exception as error:  # noqa: BLE001 - latched: nothing is confirmed after it
            self._fail(error)

    def _committed(self, result: object) -> None:
        if isinstance(result, BaseException):
            self._fail(result)
            return
        assert isinstance(result, CommitResult)
        job = result.job
        log = self._log
        if result.written:
            last = job.batches[result.written - 1]
            self.durable_lsn = last.base_lsn + last.count
            self._durable_end = (last.segment.segment_id, last.end)
            log.pending_bytes -= sum(batch.size for batch in job.batches[: result.written])
            self._cache.advance(self.durable_lsn)
            self._seal_rolled()
            active = log.active
            # The next file comes after this one's, which has been written: a start takes a gap for a
            # segment that is missing.
            if active is last.segment and active.log_end > active.capacity // 4:
                self._upkeep.prepare(active.segment_id + 1, self.settings.segment_bytes_max)
        if result.failure is not None:
            self._fail(result.failure)
            return
        if result.ledger_written:
            self._ledger_unsynced = True
        if result.ledger_synced:
            self._ledger_unsynced = False
            self._ledger_sync_due = False
            self._ledger_synced_s = self._now_s
        self._ledger_wants_roll = result.ledger_wants_roll
        self._ledger_overflowed = bool(result.full) and result.ledger_written < len(job.ledger)
        log.put_back(job.batches[result.written :])
        self._chunks = job.ledger[result.ledger_written :] + self._chunks
        if result.full is not None:
            self.lacks_descriptors = lacks_descriptors(result.full)
            self._retry_s = self._now_s + _FULL_RETRY_S
            self._log_held = result.written < len(job.batches)
            self._ledger_held = bool(self._chunks) or (job.ledger_sync and not result.ledger_synced)
            self._notify()  # the owner's next tick may be too far away
        # With nothing held, the ledger was not rolled, or old files of it stay: that can wait.
        self.full = self._log_held or self._ledger_held
        if result.ledger_synced and not self.full:
            self.synced = max(self.synced, job.ticket)
        snapshot = self._snapshot
        if result.ledger_synced and snapshot is not None and snapshot.ledger is None:
            snapshot.ledger = result.ledger_position
            self._resume_checkpoint()

    def _kept_up(self, result: object) -> None:
        match result:
            case CheckpointDone():
                self._checkpointed(result)
            case Sealed(segment, error):
                if error is None:
                    assert segment.columns is not None
                    segment.capacity = segment.log_end + segment.columns.packed_bytes
                    segment.columns = None
                    segment.sealed_s = self._now_s
                    if not self._dead_left and self._any_dead():
                        self._dead_left = True
                        self._notify()  # when nothing else happens, the next tick is far away
                elif is_full(error):
                    self._log.rolled.insert(0, segment)  # again soon
                    self._seal_s = self._now_s + _FULL_RETRY_S
                    self._notify()
                else:
                    self._fail(error)
            case CompactionStep():
                self._compacted(result)
            case Unlinked(gone, left, error):
                if error is not None:
                    self._fail(error)
                self._unlinked += gone
                self._unlink_again += left
            case Prepared(error):
                if error is not None and not is_full(error):
                    self._fail(error)
            case BaseException():
                self._fail(result)

    def _fail(self, failure: BaseException) -> None:
        """Nothing is ever confirmed again."""
        if self.failure is None:
            self.failure = failure

    def _doubt(self, doubt: Exception) -> CorruptLog:
        """The index is wrong: the end, too, and the next start rebuilds it. What to say of it."""
        failure = CorruptLog(
            f"the index {self._paths.index} is damaged ({doubt}); start again, and it is rebuilt"
        )
        failure.__cause__ = doubt
        self._fail(failure)
        with suppress(OSError, SyncFailed):  # the next start finds it again, only later
            mark_doubt(self._disk, self._paths)
        return failure

    # -- checkpoints

    def _begin_checkpoint(self) -> None:
        if self._snapshot is None and self.failure is None:
            self._checkpoint_wanted = True
            self._dead_left = False
            self._checkpoint_s = self._now_s
            self._hand_over()

    def _gather(self) -> Snapshot[M]:
        changes = self._changes
        snapshot: Snapshot[M] = Snapshot(self.durable_lsn, *self._durable_end)
        checkpoint.gather(snapshot, changes.dirty, self.durable_lsn)
        changes.dirty.clear()
        changes.operations = 0
        self._bytes_appended = 0
        for lane in snapshot.lanes:  # what is not durable yet comes with the next one
            if lane.durable_upto(self.durable_lsn) < lane.next_qseq:
                changes.dirty.add(lane)
        snapshot.dropped = self._dropped
        snapshot.unlinked = self._unlinked
        snapshot.condemned = list(self._condemned)
        snapshot.moves = self._compactor.take_moves()
        self._dropped = []
        self._unlinked = []
        return snapshot

    def _ledger_snapshot(self) -> Records:
        segments = self._log.segments.values()
        written = [segment for segment in segments if segment.base_lsn < self.durable_lsn]
        following = min(
            (segment.segment_id for segment in segments if segment.base_lsn >= self.durable_lsn),
            default=self._log.active.segment_id + 1,
        )
        ids = [segment.segment_id for segment in written]
        kept = [segment_id for segment_id in ids if segment_id not in self._condemned]
        made = self._compactor.made
        if made is not None:  # the index may point to it, and all its sources may be condemned
            kept.append(made.segment_id)
        replaced = {
            old: new for old, new in self._compactor.replaced.items() if old not in self._condemned
        }
        pointed_to = {id_ for id_, live in self._live.items() if live.count and id_ < SPILL}
        assert pointed_to <= set(kept), "a start would miss what the index points to"
        return snapshot_records(self._lanes.values(), kept, replaced, following, self.durable_lsn)

    def _resume_checkpoint(self) -> None:
        """Write the snapshot if its part of the ledger is synced."""
        snapshot = self._snapshot
        if (
            snapshot is None
            or snapshot.ledger is None
            or self._snapshot_writing
            or self._checkpoint_full
            or self.failure is not None
        ):
            return
        self._snapshot_writing = True
        identity = self._identity
        index = self._index
        spill = self._spill
        self._upkeep.submit(
            lambda: checkpoint.write(snapshot, index, spill, identity.uuid, identity.epoch)
        )

    def _checkpointed(self, done: CheckpointDone[M]) -> None:
        snapshot = done.snapshot
        self._snapshot_writing = False
        if done.failure is not None:
            self._fail(done.failure)
            return
        if done.doubt is not None:
            self._doubt(done.doubt)
            return
        if done.full:
            self._checkpoint_full = True
            self._retry_s = self._now_s + _FULL_RETRY_S
            self._notify()
            return
        for run, segment_id, positions, lengths in snapshot.spilled:
            self._cache.drop(run)
            run.segment_id = segment_id
            run.positions = positions
            run.lengths = lengths
            run.indexed = True
        for transient in snapshot.transients:  # no space for them: again with the next one
            for update, _ in transient.owners:
                lane = self._lanes.get(update.lane_id)
                if lane is not None:
                    self._changes.dirty.add(lane)
        self._snapshot = None
        for run in snapshot.runs:
            run.indexed = True
        self._index.forget_cached()
        self._lanes_with_runs.update(snapshot.lanes)
        self._take_over(snapshot.moves)
        self._lanes_with_runs = {lane for lane in self._lanes_with_runs if lane.forget_indexed()}
        self._live.update(done.live)
        self._checkpoint_lsn = snapshot.lsn
        self._reclaim(snapshot.condemned, done.spill_current)

    def _reclaim(self, condemned: Sequence[int], spill_current: int) -> None:
        """After a checkpoint: unlink what was given up before it, give up what is dead now."""
        spilled = [
            segment_id
            for segment_id, live in self._live.items()
            if segment_id >= SPILL and not live.count and segment_id != spill_current
        ]
        going = [segment_id for segment_id in condemned if segment_id in self._condemned]
        for segment_id in going:
            self._condemned.remove(segment_id)
            del self._log.segments[segment_id]
            self._compactor.replaced.pop(segment_id, None)
        for segment_id in [*going, *spilled]:
            self._reader.forget(segment_id)
            self._live.pop(segment_id, None)
        unlinking = [*self._unlink_again, *going, *spilled]
        self._unlink_again = []
        if unlinking:
            self._upkeep.unlink(unlinking)
        dead = dead_segments(self._log.segments, self._live, self._checkpoint_lsn, self._condemned)
        for segment_id in dead:
            self._condemned.add(segment_id)
            end_lsn = self._log.segments[segment_id].end_lsn
            self._records.append([SEGMENT_DROPPED, segment_id, end_lsn])
        if dead:
            self._await_acks()
        if self._log.lsn == self._checkpoint_lsn and is_worth_rolling(
            self._log.active, self._live, self._checkpoint_lsn
        ):
            self._log.roll()
            self._seal_rolled()

    def _any_dead(self) -> bool:
        return bool(
            dead_segments(self._log.segments, self._live, self._checkpoint_lsn, self._condemned)
        )

    # -- compaction

    def _compacted(self, step: CompactionStep) -> None:
        if step.failure is not None:
            if isinstance(step.failure, IndexDoubt):
                self._doubt(step.failure)
            else:
                self._fail(step.failure)
        record = self._compactor.stepped(step, self._now_s)
        if record is not None:
            self._records.append(record)
            self._await_acks()
        if not step.finished:
            self._notify()

    def _take_over(self, moves: Sequence[Move]) -> None:
        """The index has these moves: memory must not know better."""
        if not moves:
            return
        sources = frozenset().union(*(move.sources for move in moves))
        for lane in self._lanes_with_runs:
            lane.forget_segments(sources)
        segment = self._compactor.moved()
        if segment is not None:
            self._log.segments[segment.segment_id] = segment

    # -- maintenance

    def _seal_rolled(self) -> None:
        """Have the full segments sealed whose records are all durable."""
        rolled = self._log.rolled
        while rolled and rolled[0].end_lsn <= self.durable_lsn:
            self._upkeep.seal(rolled.pop(0))

    def _quiesce(self, timeout_s: float) -> bool:
        """Block until no thread of the store is at work; False when that takes too long."""
        while self._committing or self._upkeep.jobs:
            busy = self._commit_worker if self._committing else self._upkeep
            if not busy.wait(timeout_s):
                return False
            self.advance()
        return self.failure is None
