"""What the storage tests share: metas, workers that run when told to, disks that fail.

A disk that forgets what was not synced is in tests/simulation/disk.py.
"""

import errno
import shutil
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from xxhash import xxh3_64_intdigest

from qlog.storage.bytes.disk import OSDisk
from qlog.storage.errors import SyncFailed
from qlog.storage.lanes.lane import Lane
from qlog.storage.settings import StoreSettings
from qlog.storage.store import Store
from tests.storage.probe import probe

SMALL = StoreSettings(
    segment_bytes_max=16 << 10,
    ledger_bytes_max=8 << 10,
    batch_bytes_max=4 << 10,
    batch_records_max=16,
    cache_bytes_max=8 << 10,
    pending_bytes_max=64 << 10,
    checkpoint_operations=1000,
    index_map_bytes=64 << 20,
    index_reserve_bytes=256 << 10,
    catalog_map_bytes=16 << 20,
    catalog_reserve_bytes=64 << 10,
)


@dataclass(frozen=True, slots=True)
class Envelope:
    packed: bytes
    packed_hash: int


def envelope(packed: bytes = b"key") -> Envelope:
    return Envelope(packed, xxh3_64_intdigest(packed))


def decode(packed: bytes, body_size: int, packed_hash: int) -> Envelope:
    assert packed_hash == xxh3_64_intdigest(packed)
    return Envelope(packed, packed_hash)


def ignore() -> None:
    """Nobody waits for a notice."""


class ManualWorker:
    """Runs its jobs when the test says so, on the test's thread."""

    def __init__(self) -> None:
        self.jobs: deque[Callable[[], object]] = deque()
        self.results: list[object] = []

    def submit(self, job: Callable[[], object]) -> None:
        self.jobs.append(job)

    def run_one(self) -> bool:
        if not self.jobs:
            return False
        try:
            result = self.jobs.popleft()()
        except BaseException as error:  # noqa: BLE001 - as the real one does
            result = error
        self.results.append(result)
        return True

    def take(self) -> list[object]:
        results, self.results = self.results, []
        return results

    def wait(self, timeout_s: float | None = None) -> bool:
        while self.run_one():
            pass
        return bool(self.results)

    def stop(self) -> None:
        self.wait()


class Killed(BaseException):
    """The process ended here."""


class FaultyDisk(OSDisk):
    """Fails when told to: `fail(operation, path or None)` is asked before each operation."""

    def __init__(self) -> None:
        super().__init__()
        self.fail: Callable[[str], BaseException | None] = lambda operation: None
        self.operations = 0
        self.names_open: dict[int, str] = {}

    def open(self, path: Path, *, write: bool = False, create: bool = False) -> int:
        file = super().open(path, write=write, create=create)
        self.names_open[file] = f"{path.parent.name}/{path.name}"
        return file

    def _ask(self, operation: str) -> None:
        self.operations += 1
        error = self.fail(operation)
        if error is not None:
            raise error

    def write(self, file: int, buffers: Sequence[bytes], offset: int) -> None:
        try:
            self._ask("write")
        except BaseException:  # half of it was written
            data = b"".join(buffers)
            super().write(file, [data[: len(data) // 2]], offset)
            raise
        super().write(file, buffers, offset)

    def allocate(self, file: int, size: int) -> None:
        self._ask("allocate")
        super().allocate(file, size)

    def truncate(self, file: int, size: int) -> None:
        self._ask("truncate")
        super().truncate(file, size)

    def sync_data(self, file: int) -> None:
        try:
            self._ask("sync_data")
        except OSError as error:
            raise SyncFailed(f"a sync failed: {error.strerror}") from error
        super().sync_data(file)

    def sync_directory(self, path: Path) -> None:
        self._ask("sync_directory")
        super().sync_directory(path)

    def rename(self, source: Path, target: Path) -> None:
        self._ask("rename")
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self._ask("unlink")
        super().unlink(path)


class FullDisk(FaultyDisk):
    """As a real one that is full: what is reserved can be written to, and no more is given."""

    def __init__(self) -> None:
        super().__init__()
        self.full = False
        self.fail = lambda operation: None

    def allocate(self, file: int, size: int) -> None:
        if self.full and size > self.size(file):
            super().allocate(file, self.size(file) + 1000)  # there was a little left
            raise OSError(errno.ENOSPC, "No space left on device")
        super().allocate(file, size)

    def write(self, file: int, buffers: Sequence[bytes], offset: int) -> None:
        if self.full and offset + sum(map(len, buffers)) > self.size(file):
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(file, buffers, offset)


class Bench:
    """A store with manual workers, in a directory that can be copied as a crash would leave it."""

    def __init__(self, root: Path, settings: StoreSettings = SMALL) -> None:
        self.root = root
        self.settings = settings
        self.generation = 0
        self.now_s = 0.0
        self.disk = FaultyDisk()
        self.open()

    @property
    def directory(self) -> Path:
        return self.root / f"data{self.generation}"

    def open(self) -> None:
        self.workers: list[ManualWorker] = []
        self.store: Store[Envelope] = Store.open(
            self.directory,
            decode=decode,
            notify=ignore,
            settings=self.settings,
            disk=self.disk,
            new_worker=self._new_worker,
        )

    def _new_worker(self, name: str, notify: Callable[[], None]) -> ManualWorker:
        worker = ManualWorker()
        self.workers.append(worker)
        return worker

    @property
    def commits(self) -> ManualWorker:
        return self.workers[0]

    @property
    def maintenance(self) -> ManualWorker:
        return self.workers[1]

    def tick(self, seconds: float = 0.01) -> float:
        self.now_s += seconds
        return self.store.tick(self.now_s)

    def kill(self) -> None:
        """kill -9: the directory as it is; the old process leaves nothing else."""
        old = self.directory
        self.generation += 1
        shutil.copytree(old, self.directory)
        abandon(self.store)
        shutil.rmtree(old)
        self.disk = FaultyDisk()

    def restart(self) -> None:
        self.kill()
        self.open()

    def reopen(self) -> None:
        """An orderly stop and start. The directory moves: LMDB opens one place once a process."""
        self.store.close()
        old = self.directory
        self.generation += 1
        old.rename(self.directory)
        self.open()


def abandon(store: Store[Envelope]) -> None:
    """Let go of everything without writing anything."""
    probe(store).committer.close()
    probe(store).recovered.close()


def publish(
    store: Store[Envelope],
    lanes: Sequence[Lane[Envelope]],
    bodies: Sequence[bytes],
    *,
    persistent: bool = True,
    packed: bytes = b"key",
    dues_ms: Sequence[int] | None = None,
) -> int:
    metas = [envelope(packed)] * len(bodies)
    return store.append(
        lanes, metas, list(bodies), persistent=persistent, now_ms=7, dues_ms=dues_ms
    )


def contents(lane: Lane[Envelope], step: int = 50) -> dict[int, bytes]:
    """Everything unsettled in a lane, by qseq."""
    found: dict[int, bytes] = {}
    qseq = 0
    while (part := lane.read(qseq, step, 1 << 20)) is not None:
        assert part.first_qseq >= qseq and len(part.bodies) == len(part.metas) > 0
        for at, body in enumerate(part.bodies):
            found[part.first_qseq + at] = body
        qseq = part.first_qseq + len(part.bodies)
    return found


def new_lane(store: Store[Envelope]) -> Lane[Envelope]:
    return store.lane(store.new_lane_id())
