"""The checkpoint thread: segments are reserved, sealed and unlinked, beside the commits.

The owner's thread gives jobs and takes their results; jobs run one after the other, and none
raises. Checkpoints and compactions run here, too, since LMDB wants one thread for all writing.
"""

from collections.abc import Callable
from dataclasses import dataclass

from qlog.storage.bytes.datadir import Paths
from qlog.storage.bytes.disk import Disk
from qlog.storage.errors import SyncFailed, is_shortage
from qlog.storage.index.index import SPILL
from qlog.storage.worker import Worker
from qlog.storage.write.placement import Segment
from qlog.storage.write.prepare import Nursery
from qlog.storage.write.segment import seal


@dataclass(frozen=True, slots=True)
class Sealed:
    """The segment has its footer, or there was an error."""

    segment: Segment
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class Prepared:
    """The next segment is there, or there was an error."""

    error: BaseException | None


@dataclass(frozen=True, slots=True)
class Unlinked:
    """These files are gone, durably."""

    gone: list[int]
    left: list[int]  # could not be unlinked for lack of space, which some file systems need
    error: BaseException | None


class Upkeep:
    """See the head of this file."""

    def __init__(
        self, worker: Worker, disk: Disk, paths: Paths, uuid: bytes, nursery: Nursery
    ) -> None:
        self.jobs = 0  # under way
        self._worker = worker
        self._disk = disk
        self._paths = paths
        self._uuid = uuid
        self._nursery = nursery
        self._prepared_id = 0
        self._unsealed: Sealed | None = None  # what could not be sealed: nothing behind it is, too

    def submit(self, job: Callable[[], object]) -> None:
        """Have a job run; `take` will have what it returns."""
        self.jobs += 1
        self._worker.submit(job)

    def take(self) -> list[object]:
        """The results since the last time."""
        results = self._worker.take()
        self.jobs -= len(results)
        return results

    def wait(self, timeout_s: float) -> bool:
        """Block until there is a result; False when that takes too long."""
        return self._worker.wait(timeout_s)

    def stop(self) -> None:
        """End the thread, when it has done all it was given."""
        self._worker.stop()

    def prepare(self, segment_id: int, size: int) -> None:
        """Have the space of a segment reserved before it is needed. Gives Prepared."""
        if segment_id > self._prepared_id:
            self._prepared_id = segment_id
            self.submit(lambda: self._prepare(segment_id, size))

    def seal(self, segment: Segment) -> None:
        """Write the footer of a segment whose records are all durable. Gives Sealed.

        Segments are sealed in their order: when one could not be, those behind it are not, with the
        same error, until that one is tried again. A start relies on it (`_finish_log`).
        """
        self.submit(lambda: self._seal(segment))

    def unlink(self, segment_ids: list[int]) -> None:
        """Remove files of the log and of spill/. Gives Unlinked."""
        self.submit(lambda: self._unlink(segment_ids))

    def _prepare(self, segment_id: int, size: int) -> Prepared:
        try:
            self._nursery.prepare(segment_id, size)
        except (OSError, SyncFailed) as error:
            return Prepared(error)
        return Prepared(None)

    def _seal(self, segment: Segment) -> Sealed:
        unsealed = self._unsealed
        if unsealed is not None and segment.segment_id > unsealed.segment.segment_id:
            return Sealed(segment, unsealed.error)
        columns = segment.columns
        assert columns is not None
        try:
            seal(
                self._disk,
                self._paths.segment(segment.segment_id),
                self._uuid,
                columns,
                segment.base_lsn,
                segment.end_lsn,
                segment.log_end,
            )
        except (OSError, SyncFailed) as error:
            self._unsealed = Sealed(segment, error)
            return self._unsealed
        self._unsealed = None
        return Sealed(segment, None)

    def _unlink(self, segment_ids: list[int]) -> Unlinked:
        paths = self._paths
        gone: list[int] = []
        left: list[int] = []
        try:
            for segment_id in segment_ids:
                spilled = segment_id >= SPILL
                try:
                    self._disk.unlink((paths.spill_file if spilled else paths.segment)(segment_id))
                except OSError as error:
                    if not is_shortage(error):
                        raise
                    left.append(segment_id)
                else:
                    gone.append(segment_id)
            if any(segment_id < SPILL for segment_id in gone):
                self._disk.sync_directory(paths.log)
        except (OSError, SyncFailed) as error:
            return Unlinked([], [], error)
        return Unlinked(gone, left, None)
