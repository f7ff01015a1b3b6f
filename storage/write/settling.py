"""Settlements, deliveries and definitions on their way to the ledger.

Settlements gather for `ack_flush_s`, become one batch of records, and are synced at least once in
`ledger_sync_s`. Promises that records reach the ledger in the order in which they were noted, and
that a settlement which waits for the log (`Lane.settle_after`) reaches the ledger only when the log
is durable up to there. It also knows whether messages that wait are in a lane whose definition is
not durable: then the log must not go before the ledger. This file says when the ledger is written;
the commit thread writes it.
"""

from collections.abc import Callable, Sequence
from typing import Generic

from qlog.storage.errors import Shortage, shortage_of
from qlog.storage.journal import Attempts, Defined, Delivered, Noted, Restored, Settled, Time
from qlog.storage.lanes.lane import Changes, Lane
from qlog.storage.lanes.run import M
from qlog.storage.settings import StoreSettings
from qlog.storage.write.commit import CommitJob, CommitResult
from qlog.storage.write.ledger import Record, Records

_TIME_MS = 1000  # a batch gets a TIME record, unless one had it within so long before
_NEVER_S = 60.0


class Settling(Generic[M]):
    """See the head of this file.

    Arguments: `changes` is what lanes leave; `clock_ms` is the wall clock, for the times in the
    ledger that people read; `notify` makes the owner call `tick` soon.
    """

    def __init__(
        self,
        changes: Changes[M],
        settings: StoreSettings,
        clock_ms: Callable[[], int] | None,
        notify: Callable[[], None],
    ) -> None:
        self.changes = changes
        self.held: Shortage | None = None  # why the ledger is not written now
        self.wants_roll = False  # the ledger's file is nearly full
        self.overflowed = False  # the ledger's file is full, between two checkpoints
        self.wants_sync = False  # what was written has waited long enough for its sync
        changes.await_acks = self.await_flush
        self._settings = settings
        self._clock_ms = clock_ms
        self._notify = notify
        self._records: list[Record] = []  # records that do not come from `changes`
        self._chunks: list[Records] = []  # batches that are not written yet
        self._time_ms: int | None = None  # the last time in the ledger's file
        self._now_s = 0.0
        self.defined = 0  # changes of definitions that were noted so far
        self.defined_synced = 0  # how many of these are durable
        self.new_lanes: dict[Lane[M], int] = {}  # durable when `defined_synced` is so far
        self._defined_written = 0  # how many of the changes went into a job
        self._messages_after = 0  # messages that wait must not be durable before so many changes
        self._since_s: float | None = None  # when the oldest record that waits came
        self._flush_due = False
        self._awaited = False  # `tick` will be called in time for them
        self._unsynced = False
        self._synced_s = 0.0

    def note(self, record: Record) -> None:
        """Have a record written with the next settlements."""
        self._records.append(record)
        self.await_flush()

    def restored(self, lane: Lane[M], flat: list[int]) -> None:
        """Messages were restored. The record comes after all earlier changes of the lane."""
        if lane.attempts_unwritten:
            self._records.append(Attempts(lane.id, lane.attempts_unwritten))
            lane.attempts_unwritten = []
        if lane.unwritten:
            self._records.append(Settled(lane.id, lane.unwritten))
            lane.unwritten = []
        self.note(Restored(lane.id, flat))

    def submit(self, entries: Sequence[Noted]) -> None:
        """Have entries written; definitions are synced, too, within `ack_flush_s`."""
        self._records += entries
        self.defined += any(isinstance(entry, Defined) for entry in entries)
        self.await_flush()

    @property
    def defines(self) -> bool:
        """Definitions are not synced yet."""
        return self.defined > self.defined_synced

    def lane_made(self, lane: Lane[M]) -> None:
        """A lane is new. Everything that defines it, or reserves its id, was noted before."""
        if self.defines:
            self.new_lanes[lane] = self.defined

    def appended(self, lanes: Sequence[Lane[M]]) -> None:
        """Messages in these lanes wait for the log. To be called while there are `new_lanes`."""
        for lane in lanes:
            self._messages_after = max(self._messages_after, self.new_lanes.get(lane, 0))

    @property
    def before_log(self) -> bool:
        """Messages wait that must not be durable before definitions are."""
        return self._messages_after > self.defined_synced

    def hurry(self) -> None:
        """Write what has gathered with the next job, if definitions are among it."""
        if self.defines:
            self._flush_due = True

    def await_flush(self) -> None:
        """Make sure that `tick` is called in time to write what waits."""
        if self._since_s is None:  # since the tick before, at least: rather early than late
            self._since_s = self._now_s
        if not self._awaited:
            self._awaited = True
            self._notify()

    @property
    def due(self) -> bool:
        """Settlements have waited long enough, or are many."""
        return self._flush_due or self.changes.acked_count >= self._settings.ack_flush_count

    @property
    def pressing(self) -> bool:
        """Something goes with the next job, and that is to be soon.

        Settlements are due, or wait for the log, which somebody waits for; or messages wait for
        definitions.
        """
        return self.due or bool(self.changes.waiting) or self.before_log

    @property
    def unwritten(self) -> bool:
        """Batches wait that could not be written."""
        return bool(self._chunks)

    def tick(self, now_s: float) -> tuple[bool, float]:
        """Whether something must be written now, and the seconds until that is so again."""
        self._now_s = now_s
        settings = self._settings
        now = False
        wait_s = _NEVER_S
        changes = self.changes
        if changes.acked or changes.delivered or changes.attempted or self._records:
            assert self._since_s is not None
            due_s = self._since_s + settings.ack_flush_s
            if now_s >= due_s:
                self._flush_due = now = True
            wait_s = max(due_s - now_s, settings.ack_flush_s)
        if self._unsynced:
            due_s = self._synced_s + settings.ledger_sync_s
            if now_s >= due_s and self.held is None:
                self.wants_sync = now = True
            wait_s = min(wait_s, max(due_s - now_s, 0.01))
        return now, wait_s

    def ticked(self, wait_s: float) -> None:
        """The owner's next tick comes in `wait_s` seconds."""
        self._awaited = wait_s <= self._settings.ack_flush_s

    def join(self, job: CommitJob, *, sync: bool, flush: bool) -> None:
        """Add to the job what is to be written.

        `sync`: somebody waits for the ledger's sync. `flush`: what has gathered goes now. Without
        `flush` only batches go that were made before, so that a confirm costs no more than its own
        write and sync.
        """
        job.ledger_sync = sync or self.wants_sync or (flush and self.defines)
        if flush:
            self.flush()
            self._defined_written = self.defined
        job.ledger = self._chunks
        self._chunks = []

    def flush(self) -> None:
        """Make a batch of everything that lanes have settled, delivered, and got back."""
        changes = self.changes
        records = self._records
        self._records = []
        for lane in changes.attempted:  # before acks: what is settled came back before
            if not lane.dropped and lane.attempts_unwritten:
                records.append(Attempts(lane.id, lane.attempts_unwritten))
            lane.attempts_unwritten = []
        for lane in changes.acked:
            if not lane.dropped and lane.unwritten:
                records.append(Settled(lane.id, lane.unwritten))
            lane.unwritten = []
        for lane in changes.delivered:
            lane.delivered_unwritten = False
            if not lane.dropped:
                records.append(Delivered(lane.id, lane.delivered))
        changes.attempted.clear()
        changes.acked.clear()
        changes.delivered.clear()
        changes.acked_count = 0
        self._since_s = None
        self._flush_due = False
        if records:
            self._add_time(records)
            self._chunks.append(records)

    def durable(self, lsn: int) -> None:
        """The log is durable up to `lsn`: settle the messages that waited for that."""
        if self.changes.waiting:
            self.changes.release(lsn)

    def rolls(self) -> None:
        """The job begins a new file of the ledger, which has no time yet."""
        self._time_ms = None

    def committed(self, result: CommitResult) -> None:
        """Take the ledger's part of the result of a job that did not fail."""
        job = result.job
        if result.ledger_written:
            self._unsynced = True
        if result.ledger_synced:
            synced = self.defined_synced = self._defined_written
            if self.new_lanes:
                new_lanes = self.new_lanes.items()
                self.new_lanes = {lane: count for lane, count in new_lanes if count > synced}
            self._unsynced = False
            self.wants_sync = False
            self._synced_s = self._now_s
        self.wants_roll = result.ledger_wants_roll
        self.overflowed = bool(result.full) and result.ledger_written < len(job.ledger)
        self._chunks = [*job.ledger[result.ledger_written :], *self._chunks]
        if result.full is not None and (
            self._chunks or (job.ledger_sync and not result.ledger_synced)
        ):
            self.held = shortage_of(result.full)

    def _add_time(self, records: list[Record]) -> None:
        """Let a batch say when it was made, about once a second."""
        if self._clock_ms is None:
            return
        now_ms = self._clock_ms()
        last_ms = self._time_ms
        if last_ms is None or not 0 <= now_ms - last_ms < _TIME_MS:
            records.insert(0, Time(now_ms))
            self._time_ms = now_ms
