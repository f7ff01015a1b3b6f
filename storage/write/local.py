"""The journal of one directory: log and ledger, and the jobs of the commit thread that write both.

Promises what storage/journal.py says of a journal. A job consists of the log's batches and the
ledger's; one is under way at a time. commits.py has the log's part of a job, settling.py the
ledger's, gathering.py makes runs of what comes, rhythm.py says when a commit begins: this file puts
them together, and says what a result means: what is durable, what is held, what has failed.

Segments and checkpoints are the store's. What the journal must know of a checkpoint that is under
way is `Snapshots`: a checkpoint decides what the ledger may have, and rides on jobs.
"""

import math
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeAlias

from qlog.storage.errors import Shortage
from qlog.storage.journal import Noted, Position, Replay, Ticket
from qlog.storage.lanes.run import M
from qlog.storage.start.recovery import Recovered
from qlog.storage.worker import Worker
from qlog.storage.write.commit import CommitJob, CommitResult, Committer
from qlog.storage.write.commits import RETRY_S, Commits
from qlog.storage.write.gathering import Gathering
from qlog.storage.write.ledger import LedgerPosition
from qlog.storage.write.placement import Segment
from qlog.storage.write.replay import Places, Stream, Stretch
from qlog.storage.write.rhythm import Rhythm
from qlog.storage.write.settling import Settling
from qlog.storage.write.upkeep import Upkeep


class Snapshots(Protocol):
    """What the journal knows of the checkpoints, which ride on its jobs."""

    @property
    def wanted(self) -> bool:
        """A checkpoint is to begin with the next job."""

    @property
    def wants_sync(self) -> bool:
        """A checkpoint waits for a sync of the ledger."""

    @property
    def ledger_may_go_on(self) -> bool:
        """Whether what has gathered may be written to the ledger."""

    def stands(self, segment_id: int) -> bool:
        """Whether no compacted segment has taken the place of a segment."""

    def join(self, job: CommitJob) -> None:
        """Add to a job what a checkpoint needs."""

    def committed(self, result: CommitResult) -> None:
        """Take the result of a job."""


# The durable LSN, where the ledger ends, and where the log ends: (segment id, position).
_End: TypeAlias = tuple[int, LedgerPosition, tuple[int, int]]


class LocalJournal(Generic[M]):
    """See the head of this file.

    Arguments: `recovered` is what a start found; `worker` runs the jobs; `upkeep` seals and
    prepares segments; `clock_ms` is the wall clock, `clock_s` the owner's monotonic clock (None: no
    commit is held back or made inline); `notify` makes the owner call `advance` and `tick` soon.
    `snapshots` must be set before the first job.
    """

    snapshots: Snapshots

    def __init__(
        self,
        recovered: Recovered[M],
        worker: Worker,
        upkeep: Upkeep,
        *,
        clock_ms: Callable[[], int] | None,
        clock_s: Callable[[], float] | None,
        notify: Callable[[], None],
    ) -> None:
        uuid, epoch = recovered.identity.uuid, recovered.identity.epoch
        settings = recovered.settings
        self.log = recovered.log
        self.shortage: Shortage | None = None  # why log or ledger cannot be written now
        self.failure: BaseException | None = None  # nothing is confirmed after a failure
        self.due_s = math.inf  # when a commit that is held back needs a call of `tick`
        self.retry_s = 0.0  # what met a shortage is not tried again before this time
        self.synced: Ticket = 0
        self.settling = Settling(recovered.changes, settings, clock_ms, notify)
        self.committer = Committer(
            recovered.disk, recovered.paths, uuid, epoch, recovered.nursery, recovered.ledger
        )
        self.commits = Commits(
            self.log, self.committer, worker, upkeep, recovered.cache, settings, notify
        )
        gathering = Gathering(self.log, recovered.cache, settings)
        # Bound once: there is no call of the journal's between `Store.append` and the run.
        self.append = gathering.persistent
        self.append_transient = gathering.transient
        self._rhythm = Rhythm(inline=settings.commit_inline)
        self._recovered = recovered
        self._clock_s = clock_s
        self._notify = notify
        self._now_s = 0.0
        self._ticket: Ticket = 0  # the newest
        self._requested: Ticket = 0  # up to here somebody waits
        self._kept: Position | None = None  # what a follower has not taken yet begins here
        # The last sync of the ledger: (the log's LSN when that job began, where the ledger ended).
        self._ledger_synced = (self.log.lsn, recovered.ledger.position)
        self._end = self._places()  # of what can be replayed
        # Of what was replayed last: the next replay begins there.
        self._given = _places_of(self._end)

    # -- in

    @property
    def lsn(self) -> Ticket:
        """The ticket of all messages that were appended so far."""
        return self.log.lsn

    @property
    def durable_lsn(self) -> Ticket:
        """The tickets of messages up to this one are served."""
        return self.commits.durable_lsn

    def submit(self, entries: Sequence[Noted]) -> Ticket:
        """Have entries written, after all that was submitted before. Returns their ticket.

        Definitions are synced within `ack_flush_s`, the rest is as lasting as settlements are.
        """
        self.settling.submit(entries)
        self._ticket += 1
        return self._ticket

    def request_sync(self) -> Ticket:
        """A ticket for everything done so far, and have it served soon."""
        self._ticket += 1
        self._requested = self._ticket
        return self._ticket

    @property
    def awaited(self) -> bool:
        """Somebody waits for a ticket."""
        return self._requested > self.synced

    # -- commits

    def commit(
        self, waiting: int | None = None, before_inline: Callable[[], None] | None = None
    ) -> None:
        """Hand over what is pending, if it is time: see `Store.commit`."""
        commits, settling, snapshots = self.commits, self.settling, self.snapshots
        if commits.busy:
            return
        if not waiting:
            settling.hurry()
        if (
            self._requested > self.synced
            or snapshots.wanted
            or snapshots.wants_sync
            or settling.pressing
        ):
            self.hand_over()
        elif commits.pending:
            if waiting is None or self._clock_s is None:
                self.hand_over()
            else:
                self._commit_in_time(self._clock_s, waiting, before_inline)

    def _commit_in_time(
        self,
        clock_s: Callable[[], float],
        waiting: int,
        before_inline: Callable[[], None] | None,
    ) -> None:
        rhythm, commits = self._rhythm, self.commits
        now_s = clock_s()
        pending_bytes = commits.log.pending_bytes
        delay_s = rhythm.delay_s(now_s, waiting, pending_bytes)
        if delay_s > 0:
            self.due_s = min(self.due_s, now_s + delay_s)
        elif (
            before_inline is not None
            and self.failure is None
            and rhythm.may_be_inline(now_s, waiting, pending_bytes)
            and commits.can_be_inline
        ):
            before_inline()
            rhythm.begun(now_s)
            result = commits.run_inline()
            rhythm.done(clock_s(), waiting, inline=True)
            self._take(result)
        else:
            self.hand_over()

    def take(self, waiting: int) -> None:
        """Take what the commit thread has done; `waiting` publishers wait for a confirm now."""
        for result in self.commits.results():
            if self._clock_s is not None:
                self._rhythm.done(self._clock_s(), waiting, inline=False)
            self._take(result)

    def tick(self, now_s: float) -> float:
        """Do what is due by the owner's monotonic clock; seconds until the next time."""
        if now_s >= self.due_s:  # a commit was held back until now
            self.due_s = math.inf
            if self.commits.pending:
                self.hand_over()
        hand_over, wait_s = self.settling.tick(now_s)
        if hand_over:
            self.hand_over()
        return min(wait_s, self.commits.tick(now_s))

    def hand_over(self) -> None:
        """Give the commit thread all there is to write, if it is idle."""
        if self.commits.busy or self.failure is not None:
            return
        try:
            self._submit_job()
        except Exception as error:
            self.fail(error)  # batches may be lost: nothing behind them may be confirmed
            raise

    def _submit_job(self) -> None:
        commits, settling, snapshots = self.commits, self.settling, self.snapshots
        may_flush = snapshots.ledger_may_go_on
        # A queue must be durable before a message in it is. If there are messages in new queues the
        # ledger goes first, and if the ledger cannot be written, the log waits.
        ledger_first = settling.before_log
        job = commits.job(
            with_log=not ledger_first or (may_flush and settling.held is None), whole=self.awaited
        )
        job.ledger_first = ledger_first
        if not settling.held:  # if only the log is held, acks go on, in reserved space
            awaited = self.awaited and may_flush and not commits.held
            sync = ledger_first or snapshots.wants_sync or awaited
            flush = may_flush and (settling.due or settling.wants_sync or sync or snapshots.wanted)
            if flush and not commits.log.has_pending:  # nothing is left, nor held
                job.ticket = self._ticket
            settling.join(job, sync=sync, flush=flush)
            snapshots.join(job)
        if job.batches or job.ledger or job.ledger_sync:
            self.due_s = math.inf
            if self._clock_s is not None:
                self._rhythm.begun(self._clock_s())
            commits.submit(job)

    def _take(self, result: object) -> None:
        """Take a result. An error in that is final, since the result would be lost."""
        try:
            self._committed(result)
        except Exception as error:  # noqa: BLE001 - latched: nothing is confirmed after it
            self.fail(error)

    def _committed(self, result: object) -> None:
        if isinstance(result, BaseException):
            self.fail(result)
            return
        assert isinstance(result, CommitResult)
        commits, settling = self.commits, self.settling
        commits.committed(result)
        settling.durable(commits.durable_lsn)
        if result.failure is not None:
            self.fail(result.failure)
            return
        settling.committed(result)
        if result.full is not None:
            self.retry_later()
        # If the disk is full and nothing is held, only a roll or an unlink failed: that can wait.
        self.shortage = commits.held or settling.held
        if result.ledger_synced and self.shortage is None:
            self.synced = max(self.synced, result.job.ticket)
        self._move_position(result)
        if self.failure is None:
            self.snapshots.committed(result)

    def retry_later(self) -> None:
        """Something met a shortage: have it tried again in a moment."""
        self.retry_s = self._now_s + RETRY_S
        self._notify()  # the owner's next tick may be too far away

    def fail(self, failure: BaseException) -> None:
        """Nothing is ever confirmed again."""
        if self.failure is None:
            self.failure = failure

    # -- out

    def _move_position(self, result: CommitResult) -> None:
        """See how far the stream is that can be replayed.

        It ends where every settlement is of a message before the end. A job's settlements may be of
        messages that its sync of the log has not reached, when the disk is full: the end then stays
        where it was.
        """
        if result.ledger_synced:
            assert result.ledger_position is not None
            self._ledger_synced = (result.job.lsn_end, result.ledger_position)
        if self.commits.durable_lsn >= self._ledger_synced[0]:
            self._end = self._places()

    def _places(self) -> _End:
        """Where what is synced ends. Asked for by each commit: the rest is made of it when needed."""
        return self.commits.durable_lsn, self._ledger_synced[1], self.commits.durable_end

    @property
    def synced_places(self) -> Places:
        """Where the files end of which all is synced: those of the last syncs of ledger and log.

        While nothing is held back on a full disk, `position` is theirs.
        """
        return _places_of(self._places())

    @property
    def position(self) -> Position:
        """How far the stream is that can be replayed."""
        return _places_of(self._end).position

    def replay(self, after: Position | None) -> Replay:
        """See `Journal.replay`. The entries may be taken on any thread.

        What is read is durable: a commit that is under way is not in the way. Raises PositionGone.
        """
        recovered = self._recovered
        stretches = [
            Stretch.of(segment)
            for segment in self.log.segments.values()
            if self.snapshots.stands(segment.segment_id)
        ]
        end = _places_of(self._end)
        stream = Stream(
            recovered.disk,
            recovered.paths,
            recovered.identity.uuid,
            stretches,
            end.position,
            self._given if self._given.position == after else None,
        )
        replay = stream.replay(after)
        self._given = end
        return replay

    def release(self, below: Position | None) -> None:
        """See `Journal.release`."""
        self._kept = below
        self._recovered.ledger.keep_from = None if below is None else below.batch

    def keeps(self, segment: Segment) -> bool:
        """Whether a follower has not taken all of a segment yet."""
        return self._kept is not None and segment.end_lsn > self._kept.lsn


def _places_of(end: _End) -> Places:
    durable_lsn, ledger, durable_end = end
    return Places(Position(durable_lsn, ledger.number), ledger, *durable_end)
