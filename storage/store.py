"""The face of storage: append, read, settle, commit, close.

What it promises: a message that was appended as persistent is on disk when `durable_lsn` has
reached the LSN that `append` returned. From then on it can be read, as it was, until it is
settled, across any crash. A settlement survives the process after `ack_flush_s` and the power
after `ledger_sync_s`. A definition is durable when `definitions_synced` has counted it, and no
message in a lane is durable before the lane's definition. Memory does not grow with the number of
messages.

What it does not know: AMQP, trio, the clock (times are passed in). All methods are for one thread,
the owner's. The store's own threads report by `notify`, after which the owner calls `advance` and
`tick`. A process that forks must not use the store in the child.

The work is parted by who waits for what: the journal (write/local.py) has what is written to log
and ledger, index/checkpoints.py the index and the space. The store has the lanes, and says when the
next thing is due.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Generic, Self

from qlog.storage.bytes.datadir import mark_doubt
from qlog.storage.bytes.disk import Disk, OSDisk
from qlog.storage.bytes.record import TARGET_BYTES
from qlog.storage.catalog import Catalog
from qlog.storage.errors import CorruptLog, Shortage, SyncFailed, is_shortage
from qlog.storage.figures import StoreFigures
from qlog.storage.identity import IDENTITY, Identity
from qlog.storage.index.checkpoint import CheckpointDone
from qlog.storage.index.checkpoints import Checkpoints
from qlog.storage.index.due import DueTimes
from qlog.storage.index.due_rows import Due
from qlog.storage.journal import Defined, Journal, LaneDeleted
from qlog.storage.lanes.lane import Lane
from qlog.storage.lanes.reader import Reader
from qlog.storage.lanes.run import M
from qlog.storage.settings import StoreSettings
from qlog.storage.space.backup import Backup, Extent, Part
from qlog.storage.space.compact import CompactionStep
from qlog.storage.space.compactor import Compactor
from qlog.storage.space.retention import KeepNothing, Retention
from qlog.storage.start import recovery
from qlog.storage.start.recovery import Progress, ignore_progress
from qlog.storage.streams.files import stream_files
from qlog.storage.streams.stream import Stream
from qlog.storage.streams.streams import Removed, Streams
from qlog.storage.streams.write import Moved
from qlog.storage.worker import ThreadWorker, Worker
from qlog.storage.write.commits import RETRY_S
from qlog.storage.write.local import LocalJournal
from qlog.storage.write.upkeep import Prepared, Sealed, Unlinked, Upkeep

_LANE_IDS_RESERVED = 1024  # so many ids for one record of the ledger
_IDLE_S = 60.0
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
        retention: Retention,
        clock_s: Callable[[], float] | None,
    ) -> None:
        """Use `open`."""
        self.report = recovered.report
        self.settings = recovered.settings
        self._recovered = recovered
        self._notify = notify
        self._new_worker = new_worker
        self._lanes = recovered.lanes
        self._identity: Identity = recovered.identity
        self._lane_id_next = recovered.identity.lane_ids_reserved
        self._reader: Reader[M] = recovered.reader
        self._cache = recovered.cache
        self._closed = False
        commit_worker = new_worker("qlog-commit", notify)
        self._upkeep = Upkeep(
            new_worker("qlog-checkpoint", notify),
            recovered.disk,
            recovered.paths,
            recovered.identity.uuid,
            recovered.nursery,
        )
        self._journal = LocalJournal(
            recovered,
            commit_worker,
            self._upkeep,
            clock_ms=clock_ms,
            clock_s=clock_s,
            notify=notify,
        )
        self._log = self._journal.log
        self._append = self._journal.append
        self._append_transient = self._journal.append_transient
        self._settling = self._journal.settling
        self.catalog = Catalog(recovered.definitions, self._journal.submit)
        self._due = DueTimes(recovered.index, self._lanes, self._doubt)
        self._checkpoints = self._new_checkpoints(retention, clock_ms)
        self._journal.snapshots = self._checkpoints
        self._streams = self._new_streams(clock_ms)
        recovered.shelf.on_doubt = self._doubt
        recovered.shelf.may_restore = self._checkpoints.may_restore
        active = self._log.active
        self._upkeep.prepare(active.segment_id, active.capacity)

    def _new_checkpoints(
        self, retention: Retention, clock_ms: Callable[[], int] | None
    ) -> Checkpoints[M]:
        recovered = self._recovered
        return Checkpoints(
            due=self._due,
            retention=retention,
            followed=self._journal.keeps,
            clock_ms=clock_ms,
            commits=self._journal.commits,
            settling=self._settling,
            lanes=self._lanes,
            cache=recovered.cache,
            index=recovered.index,
            catalog=self.catalog,
            catalog_file=recovered.catalog,
            live=recovered.live,
            spill=recovered.spill,
            reader=recovered.reader,
            identity=(recovered.identity.uuid, recovered.identity.epoch),
            upkeep=self._upkeep,
            compactor=Compactor(
                recovered.disk,
                recovered.paths,
                recovered.index,
                recovered.identity,
                recovered.settings,
                recovered.log.segments,
                recovered.replaced,
                next_id=recovered.compacted_id_next,
                spill=recovered.spill,
                submit=self._upkeep.submit,
            ),
            settings=recovered.settings,
            notify=self._notify,
            on_doubt=self._doubt,
            on_failure=self._journal.fail,
        )

    def _new_streams(self, clock_ms: Callable[[], int] | None) -> Streams[M]:
        recovered, settling = self._recovered, self._settling
        return Streams(
            disk=recovered.disk,
            paths=recovered.paths,
            uuid=recovered.identity.uuid,
            epoch=recovered.identity.epoch,
            settings=recovered.settings,
            catalog=self.catalog,
            cache=recovered.cache,
            decode=recovered.decode,
            durable_lsn=lambda: self.durable_lsn,
            definitions=lambda: (settling.defined, settling.defined_synced),
            submit=self._upkeep.submit,
            on_failure=self._journal.fail,
            clock_ms=clock_ms,
        )

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        decode: Callable[[bytes, int, int], M],
        notify: Callable[[], None],
        settings: StoreSettings | None = None,
        disk: Disk | None = None,
        new_worker: Callable[[str, Callable[[], None]], Worker] = ThreadWorker,
        clock_ms: Callable[[], int] | None = None,
        clock_s: Callable[[], float] | None = None,
        progress: Progress = ignore_progress,
        retention: Retention | None = None,
    ) -> Self:
        """Lock, verify and recover a data directory, or make a new one.

        Arguments: `decode` makes a meta of its bytes, the size of its body and the bytes' xxh3_64.
        `notify` is called from the store's threads, and from `Lane.settle` when a timer starts; the
        owner then calls `advance` and `tick`. `clock_ms` is the wall clock, for times in the ledger
        that people read. `clock_s` is the owner's monotonic clock, the one that `tick` gets;
        without it no commit is held back or made inline. `progress` is told how far recovery is,
        and may raise to end it. Raises StorageError: DirectoryLocked, OtherFormat,
        DirectoryUnreadable, CorruptLog.
        """
        recovered = recovery.recover(
            directory, decode, settings or StoreSettings(), disk or OSDisk(), progress
        )
        return cls(
            recovered,
            notify=notify,
            new_worker=new_worker,
            clock_ms=clock_ms,
            clock_s=clock_s,
            retention=retention or KeepNothing(),
        )

    # -- lanes

    def new_lane_id(self) -> int:
        """An id that was never used in this directory."""
        reserved = self._identity.lane_ids_reserved
        if self._lane_id_next >= reserved:
            self._identity = self._identity.reserve(self.catalog, reserved + _LANE_IDS_RESERVED)
        lane_id = self._lane_id_next
        self._lane_id_next += 1
        return lane_id

    def lane(self, lane_id: int) -> Lane[M]:
        """The lane with this id: as recovered, or empty.

        What defines a new lane is to be noted in the catalog before.
        """
        lane = self._lanes.get(lane_id)
        if lane is None:
            assert lane_id < self._identity.lane_ids_reserved
            lane = Lane(lane_id, self._recovered.shelf, self._cache, self._recovered.changes)
            self._lanes[lane_id] = lane
            self._settling.lane_made(lane)
        return lane

    def retain(self, lane_ids: Collection[int]) -> None:
        """Drop all recovered lanes but these: no definition names the others."""
        kept = set(lane_ids)
        for lane_id in [lane_id for lane_id in self._lanes if lane_id not in kept]:
            self.drop(self._lanes[lane_id])
        self._streams.retain(kept)

    def drop(self, lane: Lane[M]) -> None:
        """The queue is deleted: its messages are given up, its id is never used again."""
        assert not lane.dropped
        del self._lanes[lane.id]
        lane.forget()
        self._journal.submit([LaneDeleted(lane.id)])
        self._checkpoints.lane_dropped(lane.id)
        self._streams.dropped(lane.id)

    # -- streams

    def define_stream(self, lane_id: int) -> None:
        """A new lane is to be a stream: its messages are kept, and moved to segments of its own.

        To be called before `lane`, with what else defines the lane.
        """
        self._streams.define(lane_id)

    def stream(self, lane: Lane[M]) -> Stream[M]:
        """The stream of a lane that was defined as one. Nobody else may settle its messages.

        Raises DirectoryUnreadable.
        """
        return self._streams.open(lane)

    def stream_touched(self, stream: Stream[M]) -> None:
        """Messages may have been appended to a stream's lane: see that they are moved."""
        self._streams.touched(stream)

    # -- messages

    @property
    def lsn(self) -> int:
        """The number of the next record."""
        return self._log.lsn

    @property
    def durable_lsn(self) -> int:
        """All records below are on disk."""
        return self._journal.commits.durable_lsn

    def append(
        self,
        lanes: Sequence[Lane[M]],
        metas: Sequence[M],
        bodies: Sequence[bytes],
        *,
        persistent: bool,
        now_ms: int,
        dues_ms: Sequence[int] | None = None,
    ) -> int:
        """Give each of the messages the next qseq in each of the lanes.

        A message is one record, however many lanes it goes to. Returns the LSN after the last
        record: the messages are durable when `durable_lsn` reaches it. Messages that are not
        persistent stay in memory; for them the LSN is that of what came before.

        Arguments: `now_ms` is the time of all of the messages, `dues_ms` the due time of each
        (both wall-clock milliseconds, above 0); None when they have none.
        """
        log = self._log
        count = len(bodies)
        assert lanes and len(metas) == count
        if not count:
            return log.lsn
        settings = self.settings
        if count > 1 and (
            count > settings.batch_records_max
            or sum(map(len, bodies)) + count * TARGET_BYTES * len(lanes) > settings.batch_bytes_max
        ):
            half = count // 2
            for part in (slice(half), slice(half, count)):
                lsn = self.append(
                    lanes,
                    metas[part],
                    bodies[part],
                    persistent=persistent,
                    now_ms=now_ms,
                    dues_ms=None if dues_ms is None else dues_ms[part],
                )
            return lsn
        if dues_ms is not None:
            self._due.add(lanes, [lane.next_qseq for lane in lanes], dues_ms)
        if persistent:
            size = self._append(lanes, metas, bodies, now_ms, dues_ms)
            self._checkpoints.appended(size)
            if self._settling.new_lanes:
                self._settling.appended(lanes)
        else:
            self._append_transient(lanes, metas, bodies, now_ms, dues_ms)
        self._settling.changes.operations += count
        return log.lsn

    def due(self, until_ms: int, count_max: int) -> list[Due]:
        """Messages whose due time has come and which are not settled, in the order of the times.

        Those of a lane that follow one another, and are due at the same time, come together. Each
        message is given out once in a process, and again after a restart. A message that waits to
        be settled (`Lane.settle_after`) may be among them. Arguments: `until_ms` is the time now
        (wall-clock ms), `count_max` the most messages to give out. If very many were settled before
        their time, fewer are given out, and `next_due_ms` is still in the past. Raises CorruptLog
        when the index is wrong.
        """
        return self._due.take(until_ms, count_max)

    @property
    def next_due_ms(self) -> int | None:
        """When `due` is worth calling next (wall-clock ms); None: nothing is ever due.

        Raises CorruptLog when the index is wrong.
        """
        return self._due.next_ms

    @property
    def congested(self) -> bool:
        """More waits for the disk than should: take no more messages."""
        return self._journal.commits.congested

    # -- commits

    @property
    def journal(self) -> Journal[Lane[M], M]:
        """What is durable, as a stream that others can follow."""
        return self._journal

    @property
    def failure(self) -> BaseException | None:
        """What ended the store: nothing is confirmed any more."""
        return self._journal.failure

    @property
    def shortage(self) -> Shortage | None:
        """Why log or ledger cannot be written now."""
        return self._journal.shortage

    @property
    def due_s(self) -> float:
        """When a commit that is held back needs a call of `tick`, on the owner's clock."""
        return self._journal.due_s

    @property
    def definitions(self) -> int:
        """How often the catalog was changed so far by this process."""
        return self._settling.defined

    @property
    def definitions_synced(self) -> int:
        """The first so many of these changes are durable."""
        return self._settling.defined_synced

    @property
    def synced(self) -> int:
        """All tickets of `request_sync` up to this one are served."""
        return self._journal.synced

    def request_sync(self) -> int:
        """A ticket.

        When `synced` reaches it, everything done so far is durable, in log and ledger.
        """
        return self._journal.request_sync()

    def commit(
        self, waiting: int | None = None, before_inline: Callable[[], None] | None = None
    ) -> None:
        """The end of a turn: hand over what is pending, unless the commit thread is at work.

        `waiting`: how many publishers wait for a confirm. The commit may be held back for a moment
        (write/rhythm.py), unless this is None. A small commit may be made at once, on this thread:
        `before_inline` is called before it, and `durable_lsn` has moved afterwards. While
        publishers wait, definitions wait for the next settlements (`ack_flush_s`): each sync of the
        ledger keeps the log waiting.
        """
        if self._checkpoints.stepping:
            self._checkpoints.step()
            self._notify()  # more slices may be left, or something may have waited for this one
        self._journal.commit(waiting, before_inline)

    def commit_early(self, waiting: int, before_inline: Callable[[], None]) -> None:
        """`commit` before something that takes long, in the middle of a turn.

        A checkpoint has no slice: that is for the turn's end.
        """
        self._journal.commit(waiting, before_inline)

    def advance(self) -> None:
        """Take what the store's threads have done, and give them more."""
        self.take()
        self.commit()

    def take(self, waiting: int = 0) -> None:
        """Take what the store's threads have done; `commit` gives them more.

        `waiting`: how many publishers wait for a confirm now.
        """
        if self._journal.commits.busy:
            self._journal.take(waiting)
        if self._upkeep.jobs:
            for result in self._upkeep.take():
                try:
                    self._kept_up(result)
                except Exception as error:  # noqa: BLE001 - latched: the result would be lost
                    self._journal.fail(error)
        if self._cache.garbage and self._cache.free():
            self._notify()  # the next turn goes on with it, though nothing else may happen

    def tick(self, now_s: float) -> float:
        """Do what is due by the owner's monotonic clock; seconds until the next time."""
        journal, checkpoints = self._journal, self._checkpoints
        wait_s = _IDLE_S
        if self._held:
            if now_s >= journal.retry_s:
                self._try_again()
            wait_s = RETRY_S
        hand_over, due_s = checkpoints.tick(now_s)
        wait_s = min(wait_s, due_s)
        if hand_over:
            journal.hand_over()
        wait_s = min(wait_s, journal.tick(now_s))
        if self.failure is None and not self._closed:
            wait_s = min(wait_s, self._streams.tick(now_s))
            may_begin = self.shortage is None
            wait_s = min(wait_s, checkpoints.compact(now_s, may_begin=may_begin))
        self._settling.ticked(wait_s)
        return min(wait_s, max(self.due_s - now_s, 0.0))

    def settle_down(self, timeout_s: float = 60.0) -> bool:
        """Block until all appended and settled is durable; False when it cannot be (yet)."""
        journal, commits = self._journal, self._journal.commits
        ticket = journal.request_sync()
        while commits.busy:  # the job under way may have met a shortage that is over now
            if not commits.wait(timeout_s):
                return False
            self.advance()
        commits.held = self._settling.held = journal.shortage = None
        while journal.synced < ticket:
            if self.failure is not None or self.shortage is not None:
                return False
            self.commit()
            if not commits.wait(timeout_s):
                return False
            self.advance()
        return True

    def checkpoint(self, timeout_s: float = 60.0) -> bool:
        """Block until the index has all that is durable now; False when it cannot (yet)."""
        checkpoints = self._checkpoints
        for _ in range(2):  # a checkpoint that met a shortage may be under way; try it again then
            checkpoints.held = None
            self._resume_checkpoint()
            if not self._quiesce(timeout_s):
                return False
        checkpoints.begin()
        self._journal.hand_over()
        # Without space for the ledger none was begun.
        return self._quiesce(timeout_s) and checkpoints.snapshot is None and not checkpoints.wanted

    def close(self) -> None:
        """Write everything, make a last checkpoint, end the threads, give up the lock.

        What cannot be written, for lack of space or after a failure, was never confirmed.
        """
        if self._closed:
            return
        self._closed = True
        compactor = self._checkpoints.compactor
        compacting = compactor.working
        if compacting or self._streams.working:
            self._quiesce(_CLOSE_S)
        if compacting:
            compactor.abandon()
        if self.failure is None and self.settle_down():
            self._log.roll()
            self._journal.commits.seal_rolled()
            if self.checkpoint():
                # The last batch of the ledger attests all of the log.
                self._journal.submit([Defined(*IDENTITY, self._identity.pack())])
                self.settle_down()
        recovered = self._recovered
        self._streams.close()
        self._journal.commits.close()
        self._upkeep.stop()
        recovered.close()

    # -- backups

    def new_worker(self, name: str) -> Worker:
        """A thread for work on the directory's files beside the store's own; its user stops it."""
        return self._new_worker(name, self._notify)

    def new_backup(self, target: Path, bytes_per_s: int) -> Backup:
        """A backup of this directory that is to be made; see space/backup.py."""
        return Backup(self._recovered.disk, self._recovered.paths, target, bytes_per_s)

    @property
    def uuid(self) -> bytes:
        """Which directory this is."""
        return self._recovered.identity.uuid

    def sealed_parts(self) -> Iterator[tuple[int, Part]]:
        """The segments of the log that never change, with their ids; it may be paused."""
        segments = self._log.segments
        for segment_id in list(segments):
            segment = segments.get(segment_id)
            if segment is not None and segment.sealed:
                yield segment_id, Part(_in_log(segment_id), None)

    def extent(self, known: Mapping[int, object]) -> Extent:
        """The files that are durable now, and up to which byte.

        They are what a crash at this moment would leave. Everything is among them that was done
        before the last `request_sync` that is served. Segments that are given up are no files of it
        any more soon after. `known` are segments that need not be told again, by their ids.
        """
        recovered, segments = self._recovered, self._log.segments
        places = self._journal.synced_places
        parts = []
        for segment_id in segments.keys() - known.keys():
            segment = segments[segment_id]
            if segment.sealed:
                parts.append(Part(_in_log(segment_id), None))
            elif segment_id < places.segment_id:  # full, and about to be sealed
                parts.append(Part(_in_log(segment_id), segment.log_end))
            elif segment_id == places.segment_id:
                parts.append(Part(_in_log(segment_id), places.segment_position))
        for lane_id, bases in stream_files(recovered.disk, recovered.paths).items():
            for base in bases:
                name = f"streams/{recovered.paths.stream_segment(lane_id, base).name}"
                parts.append(Part(name, None, grows=base == bases[-1]))
        ledger = places.ledger
        return Extent(
            recovered.identity.uuid,
            places.position,
            Part(f"ledger/{recovered.paths.ledger_file(ledger.file_id).name}", ledger.position),
            ledger.file_id,
            frozenset(segments.keys() & known.keys()),
            parts,
        )

    # -- figures

    @property
    def segment_count(self) -> int:
        return len(self._log.segments)

    @property
    def segment_bytes(self) -> int:
        """The bytes that the log takes on disk, without what is reserved."""
        return sum(segment.log_end for segment in self._log.segments.values())

    @property
    def live_bytes(self) -> int:
        """The bytes of the log that are unsettled, as of the last checkpoint."""
        return sum(live.size for live in self._checkpoints.live.values())

    @property
    def figures(self) -> StoreFigures:
        """What it has done, and how much there is. Costs some microseconds a segment."""
        compactor = self._checkpoints.compactor
        return StoreFigures(
            self._journal.commits.figures,
            self.segment_count,
            self.segment_bytes,
            self.live_bytes,
            self.cache_bytes,
            self.cold_bytes,
            self._log.pending_bytes,
            compactor.count,
            compactor.bytes_done,
            self.lsn,
            self.durable_lsn,
        )

    def take_findings(self) -> list[str]:
        """Damage that was found since the last call, a line each for the operator."""
        return self._checkpoints.compactor.take_findings() + self._streams.take_findings()

    @property
    def cold_bytes(self) -> int:
        """What was read back from disk for lanes, since the start."""
        return self._cache.cold_bytes

    @property
    def cache_bytes(self) -> int:
        """Bodies in memory."""
        cache = self._cache
        return cache.bytes + cache.transient_bytes

    # -- inside

    @property
    def _held(self) -> bool:
        """Something met a shortage and waits to be tried again."""
        journal = self._journal
        return bool(journal.commits.held or journal.settling.held or self._checkpoints.held)

    def _try_again(self) -> None:
        journal = self._journal
        journal.commits.held = journal.settling.held = self._checkpoints.held = None
        self._reader.close()  # the reader's files may be what takes the last descriptors
        journal.hand_over()
        self._resume_checkpoint()

    def _kept_up(self, result: object) -> None:
        match result:
            case CheckpointDone():
                self._checkpoints.written(result)
                if result.shortage is not None:
                    self._journal.retry_later()
            case Sealed():
                self._journal.commits.sealed(result)
                if result.error is None:
                    self._checkpoints.sealed()
            case CompactionStep():
                self._checkpoints.compacted(result)
            case Unlinked():
                self._checkpoints.unlinked(result)
            case Moved():
                self._streams.moved(result)
            case Removed(error):
                if error is not None:
                    self._journal.fail(error)
            case Prepared(error):
                if error is not None and not is_shortage(error):
                    self._journal.fail(error)
            case BaseException():
                self._journal.fail(result)

    def _doubt(self, doubt: Exception) -> CorruptLog:
        """The index is wrong: the broker has to end, and the next start rebuilds the index.

        Returns the error to raise.
        """
        paths = self._recovered.paths
        failure = CorruptLog(
            f"the index {paths.index} is damaged ({doubt}); start again, and it is rebuilt"
        )
        failure.__cause__ = doubt
        self._journal.fail(failure)
        with suppress(OSError, SyncFailed):  # without the mark the next start finds it later
            mark_doubt(self._recovered.disk, paths)
        return failure

    def _resume_checkpoint(self) -> None:
        if self.failure is None:
            self._checkpoints.resume()

    def _quiesce(self, timeout_s: float) -> bool:
        """Block until no thread of the store is at work; False when that takes too long."""
        while True:
            self.commit()
            commits = self._journal.commits
            if commits.busy or self._upkeep.jobs:
                busy = commits if commits.busy else self._upkeep
                if not busy.wait(timeout_s):
                    return False
                self.advance()
            elif not self._checkpoints.stepping:
                return self.failure is None


def _in_log(segment_id: int) -> str:
    """The name of a segment in the data directory, without the cost of a path."""
    return f"log/{segment_id:010d}.qseg"
