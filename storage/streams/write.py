"""Appending to a stream's segments: the jobs of the checkpoint thread.

Promises that what a job reports as appended is synced, names included. A job that fails reports
nothing, and leaves only bytes and files behind the end that the stream knows of: `append` with
`tidy` takes them away before it tries again, as a start does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic

from qlog.storage.bytes.batch import pack_file_header
from qlog.storage.errors import SyncFailed
from qlog.storage.lanes.run import M, Slice
from qlog.storage.streams.files import Segment, Source, stream_files
from qlog.storage.streams.format import STREAM_MAGIC, pack_footer, pack_messages


@dataclass(slots=True)
class Append(Generic[M]):
    """What is to be appended to one stream: `batches` to its last segment, None: it has none."""

    source: Source
    last: Segment | None
    batches: Sequence[Slice[M]]
    segment_bytes: int
    tidy: bool  # an earlier job has failed


@dataclass(slots=True)
class Appended(Generic[M]):
    """`segments` take the place of the last one. `places`: of each batch, its file, where it
    begins and where it ends there."""

    job: Append[M]
    segments: list[Segment] = field(default_factory=list)
    places: list[tuple[int, int, int]] = field(default_factory=list)
    error: BaseException | None = None


@dataclass(slots=True)
class Moved(Generic[M]):
    """The result of one job, stream by stream."""

    appended: list[Appended[M]]


def move(jobs: Sequence[Append[M]], epoch: int, *, first: bool) -> Moved[M]:
    """Append to several streams. `first`: the directory may be missing. Raises nothing."""
    done = []
    for job in jobs:
        appended = Appended(job)
        try:
            if first:
                disk, paths = job.source.disk, job.source.paths
                disk.make_directory(paths.streams)
                disk.sync_directory(paths.root)
                first = False
            _Writer(job, appended, epoch).run()
        except (OSError, SyncFailed) as error:
            appended = Appended(job, error=error)
        done.append(appended)
    return Moved(done)


def unlink(source: Source, paths: Sequence[Path]) -> None:
    """Remove files whose messages are in the lane: they must not come back beside later ones."""
    for path in paths:
        source.disk.unlink(path)
    if paths:
        source.disk.sync_directory(source.paths.streams)


def truncate(source: Source, segment: Segment) -> None:
    """Cut a file back to its batches, so that a trailer will stand at its end."""
    file = source.disk.open(source.path(segment.base), write=True)
    try:
        source.disk.truncate(file, segment.data_end)
    finally:
        source.disk.close(file)
    segment.size = segment.data_end


class _Writer(Generic[M]):
    def __init__(self, job: Append[M], result: Appended[M], epoch: int) -> None:
        self.source = job.source
        self.disk = job.source.disk
        self.job = job
        self.result = result
        self.epoch = epoch
        self.segment = None if job.last is None else job.last.copy()
        self.latest_ms = 0 if job.last is None else job.last.latest_ms
        self.file: int | None = None
        self.created = False

    def run(self) -> None:
        if self.job.tidy:
            self._tidy_up()
        if self.segment is not None and self.segment.sealed:
            self.segment = None
        elif self.segment is not None:
            self.result.segments.append(self.segment)
        try:
            for messages in self.job.batches:
                self._write(messages)
            if self.file is not None:
                self.disk.sync_data(self.file)
        finally:
            self._close()
        if self.created:
            self.disk.sync_directory(self.source.paths.streams)

    def _tidy_up(self) -> None:
        segment, lane_id = self.segment, self.source.lane_id
        bases = stream_files(self.disk, self.source.paths).get(lane_id, [])
        after = -1 if segment is None else segment.base
        unlink(self.source, [self.source.path(base) for base in bases if base > after])
        if segment is not None and not segment.sealed:
            truncate(self.source, segment)

    def _write(self, messages: Slice[M]) -> None:
        segment = self.segment
        if segment is not None and (
            segment.data_end >= self.job.segment_bytes or segment.end != messages.first_qseq
        ):
            self._seal(segment)
            segment = None
        if segment is None:
            segment = self._create(messages.first_qseq)
        elif self.file is None:
            self.file = self.disk.open(self.source.path(segment.base), write=True)
        assert self.file is not None
        self.latest_ms = max(self.latest_ms, *messages.times_ms)
        position = segment.data_end
        seed = self.source.seed(segment.base)
        buffers = pack_messages(seed, position, self.epoch, messages, self.latest_ms)
        self.disk.write(self.file, buffers, position)
        first = messages.first_qseq
        size = sum(map(len, buffers))
        segment.grow(first, first + len(messages.bodies), size, self.latest_ms)
        self.result.places.append((segment.base, position, segment.data_end))

    def _create(self, base: int) -> Segment:
        segment = self.segment = Segment(base, base)
        path = self.source.path(base)
        self.file = self.disk.open(path, write=True, create=True)
        self.created = True
        header = pack_file_header(
            STREAM_MAGIC, self.source.uuid, self.source.lane_id, base, self.epoch
        )
        self.disk.write(self.file, [header], 0)
        self.result.segments.append(segment)
        return segment

    def _seal(self, segment: Segment) -> None:
        if self.file is None:
            self.file = self.disk.open(self.source.path(segment.base), write=True)
        assert segment.places is not None
        seed = self.source.seed(segment.base)
        footer = pack_footer(seed, segment.data_end, segment.places, segment.end, segment.latest_ms)
        self.disk.write(self.file, [footer], segment.data_end)
        self.disk.sync_data(self.file)
        segment.size = segment.data_end + len(footer)
        segment.sealed = True
        segment.places = None
        self._close()

    def _close(self) -> None:
        if self.file is not None:
            self.disk.close(self.file)
            self.file = None
