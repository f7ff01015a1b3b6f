"""Backups of the data directory while the broker runs: one at a time, for an operator.

The files are copied by a thread of their own (storage/space/backup.py). On the loop, names of files
are linked in slices, and the moment of the backup is when a sync is done. Nothing here costs
anything while no backup is under way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlog.server.broker.durability import Durability
from qlog.server.broker.jobs import Jobs, Steps
from qlog.server.broker.outcome import Outcome
from qlog.server.broker.timers import Timers
from qlog.storage.bytes.manifest import BackupError
from qlog.storage.space.backup import Backup, Done
from qlog.storage.store import Store
from qlog.storage.worker import Worker

logger = logging.getLogger("qlog.broker")

# How often the thread is asked whether it is done.
LOOK_S = 0.1
# Less than this, and a stop of the broker would wait for the thread for longer than a second.
BYTES_PER_S_MIN = 1 << 20


@dataclass(slots=True)
class _UnderWay:
    backup: Backup
    worker: Worker
    outcome: Outcome[Done]
    then: Callable[[Any], None]  # gets the thread's next result


class Backups:
    """See the head of this file. `now_s` is the clock of `timers`."""

    def __init__(
        self,
        store: Store[Any],
        jobs: Jobs,
        durability: Durability,
        timers: Timers,
        now_s: Callable[[], float],
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._durability = durability
        self._timers = timers
        self._now_s = now_s
        self._under_way: _UnderWay | None = None
        self.last: tuple[Path, Outcome[Done]] | None = None
        # For what came before it to be on the disk; for ever, if that is full.
        self.waits = False

    def start(self, directory: Path, bytes_per_s: int) -> Outcome[Done]:
        """Make a backup in a directory, or add to the one that is there.

        Everything that was confirmed before the call is in it. Arguments: `directory`, absolute;
        `bytes_per_s` is how fast is copied at most, 0: as fast as can be. Raises BackupError when
        one is under way, or the arguments are wrong. The outcome fails with BackupError,
        or StorageError.
        """
        if self._under_way is not None:
            raise BackupError("a backup is under way; wait for its end")
        if not directory.is_absolute():
            raise BackupError(f"the directory of a backup has to be an absolute path: {directory}")
        if bytes_per_s and bytes_per_s < BYTES_PER_S_MIN:
            raise BackupError(f"bytes_per_s must be 0 or at least {BYTES_PER_S_MIN}")
        backup = self._store.new_backup(directory, bytes_per_s)
        worker = self._store.new_worker("qlog-backup")
        self._under_way = under_way = _UnderWay(backup, worker, Outcome(), self._prepared)
        self.last = directory, under_way.outcome
        worker.submit(backup.prepare)
        self._look_later()
        logger.info("backup begins directory=%s", directory)
        return under_way.outcome

    def close(self) -> None:
        """The broker stops: break off what is under way, and wait for its thread."""
        if self._under_way is not None:
            self._under_way.backup.cancelled = True
            self._under_way.worker.stop()
            self._under_way = None

    def _look_later(self) -> None:
        self._timers.at(self._now_s() + LOOK_S, self._look)

    def _look(self) -> None:
        under_way = self._under_way
        if under_way is None:
            return
        results = under_way.worker.take()
        if not results:
            self._look_later()
        elif isinstance(results[0], BaseException):
            self._failed(results[0])
        else:
            under_way.then(results[0])

    def _prepared(self, _: None) -> None:
        self._jobs.start(self._linking()).then(self._linked)

    def _linking(self) -> Steps[None]:
        assert self._under_way is not None
        store = self._store
        yield from self._under_way.backup.link_sealed(store.uuid, store.sealed_parts())

    def _linked(self, outcome: Outcome[None]) -> None:
        try:
            outcome.result()
        except Exception as error:  # noqa: BLE001 - whoever asked for the backup hears of it
            self._failed(error)
            return
        self.waits = True
        self._durability.sync().then(self._synced)

    def _synced(self, _: Outcome[None]) -> None:
        """The moment of the backup: nothing may come between this extent and its links."""
        self.waits = False
        under_way = self._under_way
        if under_way is None:  # the broker stops
            return
        try:
            extent = self._store.extent(under_way.backup.linked)
            under_way.backup.link_rest(extent)
        except Exception as error:  # noqa: BLE001 - as above
            self._failed(error)
            return
        under_way.then = self._copied
        under_way.worker.submit(lambda: under_way.backup.copy(extent))
        self._look_later()

    def _copied(self, done: Done) -> None:
        under_way = self._end()
        logger.info(
            "backup made directory=%s files=%d bytes=%d copied_files=%d copied_bytes=%d",
            done.directory,
            done.files,
            done.bytes,
            done.files_copied,
            done.bytes_copied,
        )
        under_way.outcome.set(done)

    def _failed(self, error: BaseException) -> None:
        under_way = self._end()
        if isinstance(error, OSError):
            directory, _ = self.last or (Path(), None)
            error = BackupError(f"{error.filename or directory}: {error.strerror}")
        logger.error("backup failed: %s", error)
        wrapped = error if isinstance(error, Exception) else BackupError(str(error))
        under_way.outcome.fail(wrapped)

    def _end(self) -> _UnderWay:
        under_way, self._under_way = self._under_way, None
        assert under_way is not None
        under_way.worker.stop()  # it is idle
        return under_way
