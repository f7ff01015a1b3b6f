"""What one job of the commit thread does: one write and one fdatasync for a batch of the log.

The only code that appends to log and ledger after recovery. Promises that what a result calls
durable is durable, and that a failed sync is final. After a full disk, which the result reports,
the caller tries the same batches again later. Knows no confirms.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter

from qlog.storage.bytes.batch import FILE_HEADER_BYTES, SEGMENT_MAGIC, pack_batch, pack_file_header
from qlog.storage.bytes.checks import place_seed
from qlog.storage.bytes.datadir import Paths
from qlog.storage.bytes.disk import Disk
from qlog.storage.errors import SyncFailed, is_shortage
from qlog.storage.write.ledger import LedgerPosition, LedgerWriter, Records
from qlog.storage.write.placement import PendingBatch
from qlog.storage.write.prepare import Nursery

# Pieces that are smaller than this on average are joined: a copy is cheaper than many buffers.
_PIECE_BYTES_MIN = 8192
_PIECES_MAX = 1000  # the kernel takes 1024 buffers, headers included


@dataclass(slots=True)
class CommitJob:
    """What to write, in this order."""

    batches: list[PendingBatch]
    durable_lsn: int  # all below had been synced when the job was made
    lsn_end: int  # what is in the ledger's part is about messages below
    ledger: list[Records] = field(default_factory=list)  # one batch each
    ledger_sync: bool = False
    seals_checkpoint: bool = False  # a checkpoint waits for this job's sync of the ledger
    ledger_first: bool = False  # records of the log may depend on definitions in the ledger
    snapshot: Records | None = None  # begin a new ledger file with these records
    ticket: int = 0  # what a `request_sync` waits for


@dataclass(slots=True)
class CommitResult:
    """The result of a job."""

    job: CommitJob
    written: int = 0  # batches that are durable
    took_s: float = 0.0  # the log's part of it, by a clock of the machine
    sync_s: float = 0.0  # of which its syncs
    ledger_written: int = 0
    ledger_synced: bool = False
    ledger_position: LedgerPosition | None = None  # the end of the ledger after this job
    ledger_wants_roll: bool = False
    full: OSError | None = None  # why not all of it could be written now
    failure: BaseException | None = None


class Committer:
    """Runs commit jobs, one at a time, on the commit thread; on the owner's if that one is idle."""

    def __init__(
        self,
        disk: Disk,
        paths: Paths,
        uuid: bytes,
        epoch: int,
        nursery: Nursery,
        ledger: LedgerWriter,
    ) -> None:
        self._disk = disk
        self._paths = paths
        self._uuid = uuid
        self._epoch = epoch
        self._nursery = nursery
        self._ledger = ledger
        self._file = -1
        self._segment_id = -1

    def bind(self, job: CommitJob) -> Callable[[], CommitResult]:
        """The job as a function for a worker."""
        return lambda: self.run(job)

    def run(self, job: CommitJob) -> CommitResult:
        result = CommitResult(job)
        parts = [self._write_log, self._write_ledger]
        if job.ledger_first:
            parts.reverse()
        for part in parts:
            try:
                part(job, result)
            except OSError as error:
                if not is_shortage(error):
                    result.failure = error
                    break
                result.full = error
                if job.ledger_first:
                    break
            except SyncFailed as error:
                result.failure = error
                break
        if result.ledger_position is None:
            result.ledger_position = self._ledger.position
        result.ledger_wants_roll = self._ledger.wants_roll
        return result

    def has_open(self, segment_id: int) -> bool:
        """Whether the file of this segment is open already."""
        return self._segment_id == segment_id

    def close(self) -> None:
        if self._file >= 0:
            self._disk.close(self._file)
            self._file = -1
        self._ledger.close()

    def _write_log(self, job: CommitJob, result: CommitResult) -> None:
        batches = job.batches
        durable_lsn = job.durable_lsn
        began_s = perf_counter()
        at = 0
        while at < len(batches):
            segment = batches[at].segment
            self._open(segment.segment_id, segment.capacity)
            end = at
            while end < len(batches) and batches[end].segment is segment:
                batch = batches[end]
                body = batch.parts
                if len(body) > _PIECES_MAX or batch.size < len(body) * _PIECE_BYTES_MIN:
                    body = [b"".join(body)]
                seed = place_seed(self._uuid, segment.segment_id, batch.position)
                header = pack_batch(
                    seed, batch.count, self._epoch, batch.base_lsn, durable_lsn, *body
                )
                buffers = [header, *body]
                assert sum(map(len, body)) == batch.size
                offset = batch.position
                if offset == FILE_HEADER_BYTES:  # the header goes with the first batch: one write
                    header = pack_file_header(
                        SEGMENT_MAGIC,
                        self._uuid,
                        segment.segment_id,
                        segment.base_lsn,
                        self._epoch,
                    )
                    buffers.insert(0, header)
                    offset = 0
                self._disk.write(self._file, buffers, offset)
                end += 1
            written_s = perf_counter()
            self._disk.sync_data(self._file)
            synced_s = perf_counter()
            result.sync_s += synced_s - written_s
            result.took_s = synced_s - began_s
            at = result.written = end
            durable_lsn = batches[at - 1].base_lsn + batches[at - 1].count

    def _write_ledger(self, job: CommitJob, result: CommitResult) -> None:
        ledger = self._ledger
        durable_lsn = job.durable_lsn
        if result.written:
            last = job.batches[result.written - 1]
            durable_lsn = last.base_lsn + last.count
        try:
            for records in job.ledger:
                ledger.append(records, durable_lsn)
                result.ledger_written += 1
            if job.ledger_sync:
                if ledger.dirty:
                    ledger.sync()
                result.ledger_synced = True
        except OSError as error:
            # No room is left in the file, and none on the disk. The snapshot has all of it, too.
            if job.snapshot is None or not is_shortage(error):
                raise
        if job.snapshot is not None:  # when there is no space for it, the old file goes on
            unwritten = result.ledger_written < len(job.ledger)
            result.ledger_position = ledger.roll(job.snapshot, durable_lsn, gap=unwritten)
            result.ledger_written = len(job.ledger)
            result.ledger_synced = True
            ledger.remove_older()

    def _open(self, segment_id: int, size: int) -> None:
        if segment_id != self._segment_id:
            # Close the old file first, which is synced: on a full disk it may be the last one that
            # keeps the space of an unlinked segment from being free.
            if self._file >= 0:
                file, self._file, self._segment_id = self._file, -1, -1
                self._disk.close(file)
            self._file = self._nursery.take(segment_id, size)
            self._segment_id = segment_id
