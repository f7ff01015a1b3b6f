"""The commits of the log, on the owner's thread: what waits, what is under way, what is durable.

One job is under way at a time; what comes meanwhile belongs to the next job. Promises that
`durable_lsn` moves only when a batch was synced, and that batches for which the disk had no room
are handed over again, in their order. settling.py has the ledger's part of a job; local.py puts
the parts together.
"""

from bisect import insort
from collections.abc import Callable
from typing import Generic

from qlog.storage.errors import Shortage, shortage_of
from qlog.storage.figures import CommitFigures
from qlog.storage.lanes.cache import Cache
from qlog.storage.lanes.run import M
from qlog.storage.settings import StoreSettings
from qlog.storage.worker import Worker
from qlog.storage.write.commit import CommitJob, CommitResult, Committer
from qlog.storage.write.placement import Log, PendingBatch
from qlog.storage.write.upkeep import Sealed, Upkeep

# A job writes no more than this, if nobody waits for all of it. Small batches before a large one are
# synced by themselves, and those behind it do not wait for the next large one.
JOB_BYTES_MAX = 8 << 20
RETRY_S = 0.2  # after a shortage the same is tried again so much later
_NEVER_S = 60.0


class Commits(Generic[M]):
    """See the head of this file.

    Arguments: `log` says where records go; `worker` runs `committer`'s jobs; `upkeep` seals and
    prepares segments; `notify` makes the owner call `advance` and `tick` soon.
    """

    def __init__(
        self,
        log: Log,
        committer: Committer,
        worker: Worker,
        upkeep: Upkeep,
        cache: Cache[M],
        settings: StoreSettings,
        notify: Callable[[], None],
    ) -> None:
        self.log = log
        self.figures = CommitFigures()
        self.durable_lsn = log.lsn
        # Where the record `durable_lsn` is, or will be: (segment id, position).
        self.durable_end = (log.active.segment_id, log.active.log_end)
        self.busy = False  # a job is under way
        self.held: Shortage | None = None  # why the log is not written now
        self._committer = committer
        self._worker = worker
        self._upkeep = upkeep
        self._cache = cache
        self._settings = settings
        self._notify = notify
        self._now_s = 0.0
        self._seal_s = 0.0  # no segment is sealed before this time

    @property
    def congested(self) -> bool:
        """More waits for the disk than should."""
        return self.log.pending_bytes > self._settings.pending_bytes_max

    @property
    def pending(self) -> bool:
        """Messages wait that can be handed over now."""
        return self.held is None and self.log.has_pending

    def job(self, *, with_log: bool, whole: bool = False) -> CommitJob:
        """The next job.

        `with_log`: with messages that wait; `whole`: with all of them, however many they are. The
        ledger's part is to be added.
        """
        bytes_max = None if whole else JOB_BYTES_MAX
        batches = self.log.take_batches(bytes_max) if with_log and self.held is None else []
        return CommitJob(batches, self.durable_lsn, self.log.lsn)

    def submit(self, job: CommitJob) -> None:
        """Give the job to the commit thread."""
        assert not self.busy
        self.busy = True
        self._worker.submit(self._committer.bind(job))

    @property
    def can_be_inline(self) -> bool:
        """The next batch goes to the file that the last batch went to."""
        return not self.busy and self._committer.has_open(self.log.active.segment_id)

    def run_inline(self) -> CommitResult:
        """Write what waits on this thread."""
        return self._committer.run(self.job(with_log=True))

    def results(self) -> list[object]:
        """What the commit thread has done since the last call."""
        results = self._worker.take()
        if results:
            self.busy = False
        return results

    def wait(self, timeout_s: float) -> bool:
        """Block until the job under way is done; False when that takes longer than `timeout_s`."""
        return self._worker.wait(timeout_s)

    def committed(self, result: CommitResult) -> None:
        """Take the result of a job: what was written is durable, the rest is held or has failed."""
        job = result.job
        log = self.log
        if result.written:
            last = job.batches[result.written - 1]
            count = last.base_lsn + last.count - job.batches[0].base_lsn
            size = last.size
            for batch in job.batches[: result.written - 1]:
                size += batch.size
            self.figures.add(result.took_s, result.sync_s, count, size)
            self.durable_lsn = last.base_lsn + last.count
            self.durable_end = (last.segment.segment_id, last.end)
            log.pending_bytes -= size
            self._cache.advance(self.durable_lsn)
            if log.rolled:
                self.seal_rolled()
            self._prepare_after(last)
        if result.failure is not None or result.written == len(job.batches):
            return
        log.put_back(job.batches[result.written :])
        if result.full is not None:
            self.held = shortage_of(result.full)

    def tick(self, now_s: float) -> float:
        """Have segments sealed. Returns the seconds until there may be more to seal."""
        self._now_s = now_s
        rolled = self.log.rolled
        if not (rolled and rolled[0].end_lsn <= self.durable_lsn):
            return _NEVER_S
        if now_s >= self._seal_s:
            self.seal_rolled()
        return RETRY_S

    def seal_rolled(self) -> None:
        """Have the full segments sealed whose records are all durable."""
        rolled = self.log.rolled
        while rolled and rolled[0].end_lsn <= self.durable_lsn:
            self._upkeep.seal(rolled.pop(0))

    def sealed(self, done: Sealed) -> None:
        """A segment has its footer, or there was no room for it. Raises any other error."""
        segment, error = done.segment, done.error
        if error is None:
            assert segment.columns is not None
            segment.capacity = segment.log_end + segment.columns.packed_bytes
            segment.forget_columns()
            segment.sealed_s = self._now_s
        elif shortage_of(error) is not None:
            insort(self.log.rolled, segment, key=lambda one: one.segment_id)
            self._seal_s = self._now_s + RETRY_S
            self._notify()
        else:
            raise error

    def close(self) -> None:
        """End the commit thread; call it when no job is under way."""
        self._worker.stop()
        self._committer.close()

    def _prepare_after(self, last: PendingBatch) -> None:
        """Have the next segment made when a quarter of the active one is used.

        The next file must not exist before the active one was written to: a start would take the
        gap for a missing segment.
        """
        active = self.log.active
        if active is last.segment and active.log_end > active.capacity // 4:
            self._upkeep.prepare(active.segment_id + 1, self._settings.segment_bytes_max)
