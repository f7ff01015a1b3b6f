"""A look at the log and the ledger of a directory that runs, is stopped, copied or damaged.

Takes no lock, writes nothing, and returns everything that can be decoded, with a verdict by its
checksums. What is damaged is returned as damaged, never left out. What is written during the look
may be seen or not.
"""

import fcntl
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from qlog.storage.bytes.batch import (
    BATCH_HEADER_BYTES,
    FILE_HEADER_BYTES,
    BatchHeader,
    FileHeader,
    unpack_batch_header,
)
from qlog.storage.bytes.datadir import Paths, numbered
from qlog.storage.bytes.disk import Disk, OSDisk
from qlog.storage.bytes.footer import Columns, Trailer
from qlog.storage.bytes.record import Record, unpack_records
from qlog.storage.errors import DirectoryUnreadable
from qlog.storage.identity import Identity
from qlog.storage.start.judge import Evidence, identify, judge_ledger
from qlog.storage.write.segment import Batch, BatchFile


class Verdict(StrEnum):
    WHOLE = "whole"
    DAMAGED = "damaged"  # something is there, and its checksum is wrong
    BLANK = "blank"  # nothing was written here yet


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of a file: a batch, damage, or blank space. The stretches of a file leave no gaps.

    `header` is the header of a damaged batch, where there is one; what it says may be wrong.
    """

    position: int
    end: int
    verdict: Verdict
    header: BatchHeader | None
    batch: Batch | None  # when it is whole


@dataclass(frozen=True, slots=True)
class FileView:
    """A segment, or a file of the ledger."""

    path: Path
    file_id: int
    size: int
    header: FileHeader | None  # None: damaged, or nothing written yet
    header_verdict: Verdict
    trailer: Trailer | None  # of a sealed segment
    footer_verdict: Verdict  # BLANK: not sealed

    @property
    def sealed(self) -> bool:
        return self.trailer is not None

    @property
    def is_strange(self) -> bool:
        """The header is whole, but is of another directory or of another file."""
        return self.header is not None and self.header_verdict is not Verdict.WHOLE


class Examination:
    """One directory. Raises DirectoryUnreadable when there is none, or it was never used."""

    def __init__(self, directory: Path, disk: Disk | None = None) -> None:
        self.paths = Paths(directory.absolute())
        self._disk = disk or OSDisk()
        if not self.paths.ledger.is_dir():
            raise DirectoryUnreadable(f"{directory} is not a data directory: it has no ledger")
        uuid = identify(self._disk, self.paths, None)
        if uuid is None:
            raise DirectoryUnreadable(f"{directory} was never used: nothing says who it is")
        ledger = judge_ledger(self._disk, self.paths, Evidence(uuid), lambda entry: None)
        self.identity = ledger.identity or Identity(uuid, ledger.epoch, 1)
        self.definitions = ledger.definitions.entries

    # -- log and ledger

    def segment_ids(self) -> list[int]:
        return numbered(self._disk, self.paths.log, ".qseg")

    def ledger_ids(self) -> list[int]:
        """The ids of the ledger's files, usually one; the last one counts."""
        return numbered(self._disk, self.paths.ledger, ".qack")

    def segment(self, segment_id: int) -> FileView:
        return self._view(self.paths.segment(segment_id), segment_id)

    def ledger_file(self, file_id: int) -> FileView:
        return self._view(self.paths.ledger_file(file_id), file_id)

    def columns(self, view: FileView) -> Columns | None:
        """The footer of a sealed segment; None when it is damaged, or not sealed."""
        with self._open(view.path, view.file_id) as file:
            return None if view.trailer is None else file.columns(view.trailer)

    def stretches(self, view: FileView) -> Iterator[Stretch]:
        """The whole file between header and footer, batch by batch, damage included."""
        with self._open(view.path, view.file_id) as file:
            end = file.size if view.trailer is None else view.trailer.log_end
            position = FILE_HEADER_BYTES
            while position < end:
                batch = file.batch_at(position)
                if batch is None:
                    batch = next(file.whole_batches_after(position), None)
                    stop = end if batch is None else min(batch.position, end)
                    yield from self._damage(file, position, stop)
                    position = stop
                    if batch is None or position >= end:
                        return
                yield Stretch(batch.position, batch.end, Verdict.WHOLE, batch.header, batch)
                position = batch.end

    @staticmethod
    def records(batch: Batch) -> Iterator[tuple[int, int, Record]]:
        """(LSN, position in the file, record) of a log batch; each says if it is whole itself."""
        base = batch.position + BATCH_HEADER_BYTES
        for at, record in enumerate(unpack_records(batch.body)):
            yield batch.header.base + at, base + record.offset, record

    def read(self, view: FileView, size: int, offset: int) -> bytes:
        """Raw bytes of a file."""
        with self._open(view.path, view.file_id) as file:
            return file.read(size, offset)

    # -- inside

    @contextmanager
    def _open(self, path: Path, file_id: int) -> Iterator[BatchFile]:
        file = BatchFile(self._disk, path, self.identity.uuid, file_id)
        try:
            yield file
        finally:
            file.close()

    def _view(self, path: Path, file_id: int) -> FileView:
        with self._open(path, file_id) as file:
            trailer = file.trailer()
            footer = Verdict.BLANK
            if trailer is not None:
                footer = Verdict.DAMAGED if file.columns(trailer) is None else Verdict.WHOLE
            header = Verdict.WHOLE
            if not file.header_belongs_here:
                blank = not file.read(FILE_HEADER_BYTES, 0).strip(b"\0")
                header = Verdict.BLANK if blank else Verdict.DAMAGED
            view = FileView(path, file_id, file.size, file.header, header, trailer, footer)
            if view.is_strange and footer is Verdict.DAMAGED:  # the footer is another file's, too
                view = replace(view, trailer=None, footer_verdict=Verdict.BLANK)
            return view

    @staticmethod
    def _damage(file: BatchFile, position: int, end: int) -> Iterator[Stretch]:
        """The bytes of [position, end), none of which begins a whole batch."""
        used = end if end < file.size else file.used_end(position)
        if used > position:
            header = unpack_batch_header(file.read(BATCH_HEADER_BYTES, position))
            yield Stretch(position, used, Verdict.DAMAGED, header, None)
        if used < end:
            yield Stretch(used, end, Verdict.BLANK, None, None)


def is_open(environment: Path) -> bool:
    """Whether another process has this LMDB environment open. Raises PermissionError.

    All processes that have an environment open share a lock on its lock file. The system is asked
    whether anybody holds that lock; nothing is locked or changed by that.
    """
    try:
        file = os.open(environment / "lock.mdb", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        answer = fcntl.fcntl(file, fcntl.F_GETLK, struct.pack(_FLOCK, *_FLOCK_ASKED))
    finally:
        os.close(file)
    return int(struct.unpack(_FLOCK, answer)[_FLOCK_TYPE]) != fcntl.F_UNLCK


# struct flock: type, whence, start, length, pid on Linux; elsewhere start, length, pid, type,
# whence and perhaps a system's id
_FLOCK, _FLOCK_TYPE = ("hhqqi", 0) if sys.platform == "linux" else ("qqihhi", 3)
_FLOCK_ASKED = [fcntl.F_WRLCK if at == _FLOCK_TYPE else 0 for at in range(len(_FLOCK))]
