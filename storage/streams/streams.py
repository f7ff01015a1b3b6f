"""All streams of a store: messages are moved to segments, and old segments are given up.

Promises the order that makes a crash harmless: messages are settled in the lane when they are
synced in a segment; a segment is unlinked when the ledger knows, synced, where its stream begins
now; the segments of a deleted stream are unlinked when the ledger knows, synced, that it is
deleted. Work on the owner's thread is bounded for each tick; the disk is written by jobs on the
checkpoint thread.

A stream is a definition of the kind `stream`, by its lane's id; the value is where it begins. A
start knows by it that the messages in this lane have no gaps, whatever the index and the ledger
name: nobody has seen an offset that was not durable (start/recovery.py).
"""

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Generic

from qlog.storage.bytes.datadir import Paths
from qlog.storage.bytes.disk import Disk
from qlog.storage.catalog import Catalog
from qlog.storage.errors import (
    CorruptLog,
    DirectoryUnreadable,
    OutOfDescriptors,
    SyncFailed,
    is_shortage,
)
from qlog.storage.lanes.cache import Cache
from qlog.storage.lanes.lane import Lane
from qlog.storage.lanes.run import M, Slice
from qlog.storage.settings import StoreSettings
from qlog.storage.streams.chunks import ChunkCache, ChunkShelf
from qlog.storage.streams.definition import STREAM, pack_first, unpack_first
from qlog.storage.streams.files import Segment, Source, end_of, examine, stream_files, whole_batch
from qlog.storage.streams.stream import OpenFiles, Stream
from qlog.storage.streams.write import Append, Appended, Moved, move, truncate, unlink

BATCH_COUNT = 2048  # a batch has at most so many messages
# One job moves so much, of so many streams: the checkpoint thread has other work, too.
JOB_BYTES = 4 << 20
JOB_STREAMS = 16
# The mover reads so much from disk in one tick, if messages are not in memory any more.
COLD_BYTES = 1 << 20
# While messages wait to be moved, streams are looked at so often, and so many of them at once.
LOOK_S = 0.05
LOOK_STREAMS = 200
RETRY_S = 1.0
RETENTION_S = 5.0
_UNLINKED_AT_ONCE = 64
_IDLE_S = 60.0


@dataclass(slots=True)
class Removed:
    """The result of unlinking files of streams."""

    error: BaseException | None


@dataclass(slots=True)
class _Removal:
    """Segments of a lane before an offset go when so many definitions are synced; None: all."""

    defined: int
    lane_id: int
    bases: list[int] | None


@dataclass(slots=True)
class _Waiting:
    """Since when messages of a stream wait to be moved, and what has happened to that."""

    since_s: float
    not_before_s: float = 0.0
    tidy: bool = False  # an earlier job has failed


@dataclass(slots=True)
class Streams(Generic[M]):
    """See the head of this file.

    Arguments: `durable_lsn` and `definitions` (made, synced) say how far the disk is; `submit`
    gives a job to the checkpoint thread; `on_failure` is told when the disk has failed.
    """

    disk: Disk
    paths: Paths
    uuid: bytes
    epoch: int
    settings: StoreSettings
    catalog: Catalog
    cache: Cache[M]
    decode: Callable[[bytes, int, int], M]
    durable_lsn: Callable[[], int]
    definitions: Callable[[], tuple[int, int]]
    submit: Callable[[Callable[[], object]], None]
    on_failure: Callable[[BaseException], None]
    clock_ms: Callable[[], int] | None
    working: bool = False  # a job of the mover is under way
    _streams: dict[int, Stream[M]] = field(default_factory=dict)
    _waiting: dict[int, _Waiting] = field(default_factory=dict)  # by lane
    _files: OpenFiles = field(default_factory=OpenFiles)
    _findings: list[str] = field(default_factory=list)
    _removals: deque[_Removal] = field(default_factory=deque)
    _bases: dict[int, list[int]] | None = None  # what a start has found
    _chunks: ChunkCache[M] | None = None
    _look_s: float = 0.0
    _retention_s: float = 0.0
    _now_s: float = 0.0
    _directory: bool = False  # `streams/` is there, durably

    # -- which there are

    def define(self, lane_id: int) -> None:
        """A lane is about to be made that is to be a stream."""
        self.catalog.put(STREAM, str(lane_id), pack_first(0))

    def open(self, lane: Lane[M]) -> Stream[M]:
        """The stream of a lane that was defined as one. Raises DirectoryUnreadable."""
        stream = self._streams.get(lane.id)
        if stream is None:
            try:
                stream = self._streams[lane.id] = self._open(lane)
            except (OSError, SyncFailed) as error:
                raise DirectoryUnreadable(f"{self.paths.streams}: {error}; check it") from error
            if lane.alive:
                self.touched(stream)
        return stream

    def _open(self, lane: Lane[M]) -> Stream[M]:
        value = self.catalog.get(STREAM, str(lane.id))
        assert value is not None, "not defined as a stream"
        source = Source(self.disk, self.paths, self.uuid, lane.id)
        bases = self._found().get(lane.id, [])
        if bases and (end := end_of(source, bases)) > lane.next_qseq:
            lane.skip_to(end)  # a repair made the ledger anew: it does not know of what was moved
        floor = whole_batch(source, bases, lane.settled.floor)
        if floor > lane.settled.floor:
            lane.settle(lane.settled.floor, floor - lane.settled.floor)
        first = unpack_first(value)
        if first > floor:  # retention was noted, and the move that it followed was not
            first = floor
            self.catalog.put(STREAM, str(lane.id), pack_first(first))
        found = examine(source, bases, first, floor)
        unlink(source, found.leftover)
        if found.torn:
            truncate(source, found.segments[-1])
        self._findings += found.findings
        if self._chunks is None:
            self._chunks = ChunkCache(self.settings.cache_bytes_max // 4)
        shelf = ChunkShelf(self._chunks)
        return Stream(
            lane, source, found.segments, first, shelf, self._files, self.cache, self.decode
        )

    def _found(self) -> dict[int, list[int]]:
        if self._bases is None:
            self._bases = stream_files(self.disk, self.paths)
        return self._bases

    def retain(self, lane_ids: Collection[int]) -> None:
        """Drop what is left of all streams but these, when a start is done with definitions."""
        left = {int(name) for name, _ in self.catalog.items(STREAM)} - set(lane_ids)
        for lane_id in left:
            self.dropped(lane_id)
        for lane_id in self._found().keys() - set(lane_ids) - left:
            self._remove(lane_id, None)
        self._bases = {}

    def dropped(self, lane_id: int) -> None:
        """A lane is gone; nothing happens if it was no stream."""
        if not self.catalog.delete(STREAM, str(lane_id)):
            return
        stream = self._streams.pop(lane_id, None)
        self._waiting.pop(lane_id, None)
        if stream is not None:
            self._remove_segments(lane_id, stream.segments)
            stream.close()
        self._remove(lane_id, None)

    def _remove_segments(self, lane_id: int, segments: Sequence[Segment]) -> None:
        bases = [segment.base for segment in segments]
        for start in range(0, len(bases), _UNLINKED_AT_ONCE):
            self._remove(lane_id, bases[start : start + _UNLINKED_AT_ONCE])

    def _remove(self, lane_id: int, bases: list[int] | None) -> None:
        self._removals.append(_Removal(self.definitions()[0], lane_id, bases))

    # -- when

    def touched(self, stream: Stream[M]) -> None:
        """Messages may have come to a stream."""
        if stream.lane.id not in self._waiting:
            self._waiting[stream.lane.id] = _Waiting(self._now_s)
            self._look_s = 0.0

    def tick(self, now_s: float) -> float:
        """Begin what is due; seconds until the next time."""
        self._now_s = now_s
        if not self._streams and not self._removals:
            return _IDLE_S
        wait_s = _IDLE_S
        while self._removals and self._removals[0].defined <= self.definitions()[1]:
            removal = self._removals.popleft()
            self.submit(lambda removal=removal: self._unlink(removal))  # type: ignore[misc]
        if self._streams:
            if now_s >= self._retention_s:
                self._retention_s = now_s + RETENTION_S
                self._retain()
            wait_s = self._retention_s - now_s
        if self._waiting and not self.working:
            if now_s >= self._look_s:
                self._look_s = now_s + LOOK_S
                self._begin()
            wait_s = min(wait_s, max(self._look_s - now_s, 0.0))
        return wait_s

    def take_findings(self) -> list[str]:
        """Damage that was found since the last call, a line each."""
        findings, self._findings = self._findings, []
        return findings

    def close(self) -> None:
        """Close all files."""
        for stream in self._streams.values():
            self._files.close(stream.source)
            break

    # -- moving

    def _begin(self) -> None:
        """Give the checkpoint thread a job, if enough waits for long enough."""
        jobs: list[Append[M]] = []
        left, cold_from = JOB_BYTES, self.cache.cold_bytes
        for lane_id in list(self._waiting)[:LOOK_STREAMS]:
            waiting, stream = self._waiting[lane_id], self._streams[lane_id]
            if not stream.lane.alive:
                del self._waiting[lane_id]
                continue
            self._waiting[lane_id] = self._waiting.pop(lane_id)  # others come first the next time
            if self._now_s < waiting.not_before_s or not self._is_due(stream, waiting):
                continue
            batches = self._gather(stream, waiting, left)
            if batches:
                last = stream.segments[-1] if stream.segments else None
                size = stream.segment_bytes or self.settings.stream_segment_bytes
                jobs.append(Append(stream.source, last, batches, size, waiting.tidy))
                left -= sum(sum(messages.sizes) for messages in batches)
            if left <= 0 or len(jobs) == JOB_STREAMS or self._cold(cold_from):
                break
        if jobs:
            self.working = True
            first = not self._directory
            self.submit(lambda: move(jobs, self.epoch, first=first))

    def _is_due(self, stream: Stream[M], waiting: _Waiting) -> bool:
        settings = self.settings
        return (
            stream.lane.alive_bytes >= settings.stream_move_bytes
            or stream.lane.alive >= settings.stream_move_count
            or self._now_s - waiting.since_s >= settings.stream_move_s
        )

    def _cold(self, cold_from: int) -> bool:
        return self.cache.cold_bytes - cold_from > COLD_BYTES

    def _gather(self, stream: Stream[M], waiting: _Waiting, bytes_max: int) -> list[Slice[M]]:
        """The next durable messages of a lane, as they will stand in batches."""
        lane = stream.lane
        upto = lane.durable_upto(self.durable_lsn())
        batches: list[Slice[M]] = []
        at, left, cold_from = lane.settled.floor, bytes_max, self.cache.cold_bytes
        try:
            while at < upto and left > 0 and not self._cold(cold_from):
                messages = lane.read(
                    at, min(upto - at, BATCH_COUNT), self.settings.stream_batch_bytes, passing=False
                )
                if messages is None or messages.first_qseq >= upto:
                    break
                messages.keep(upto - messages.first_qseq)
                batches.append(messages)
                at = messages.first_qseq + len(messages.bodies)
                left -= sum(messages.sizes)
        except OutOfDescriptors:
            waiting.not_before_s = self._now_s + RETRY_S
        except CorruptLog as error:
            if not batches:  # what can be moved is moved first; the rest stays where it is
                self._findings.append(str(error))
                waiting.not_before_s = float("inf")
        return batches

    def moved(self, done: Moved[M]) -> None:
        """The job is done: settle what it has moved."""
        self.working = False
        self._look_s = 0.0  # more may be due, and one job moves only so much
        for appended in done.appended:
            stream = self._streams.get(appended.job.source.lane_id)
            if stream is None:
                # It was deleted meanwhile, and so were its files, perhaps before these were made.
                self._remove(appended.job.source.lane_id, None)
            elif appended.error is None:
                self._directory = True
                self._settle(stream, appended)
            elif is_shortage(appended.error):
                waiting = self._waiting[stream.lane.id]
                waiting.tidy = True
                waiting.not_before_s = self._now_s + RETRY_S
            else:
                self.on_failure(appended.error)

    def _settle(self, stream: Stream[M], appended: Appended[M]) -> None:
        last = appended.job.last
        if last is not None and appended.segments and appended.segments[0].base == last.base:
            stream.segments[-1:] = appended.segments
        else:
            stream.segments += appended.segments
        for messages, place in zip(appended.job.batches, appended.places, strict=True):
            count = len(messages.bodies)
            stream.lane.settle(messages.first_qseq, count, sum(messages.sizes))
            if stream.readers:  # they are likely to read it soon
                base, _, following = place
                stream.shelf.add(messages, (base, following))
        if len(appended.segments) > 1:  # with a new segment an old one may go
            self._retention_s = 0.0
        waiting = self._waiting[stream.lane.id]
        waiting.since_s, waiting.tidy = self._now_s, False

    # -- giving up

    def _retain(self) -> None:
        now_ms = 0 if self.clock_ms is None else self.clock_ms()
        for lane_id, stream in self._streams.items():
            if len(stream.segments) < 2 or stream.max_age_ms is stream.max_bytes is None:
                continue
            first = stream.excess(now_ms)
            if first > stream.first:
                going = stream.begin_at(first)
                self.catalog.put(STREAM, str(lane_id), pack_first(first))
                self._remove_segments(lane_id, going)

    def _unlink(self, removal: _Removal) -> Removed:
        """A job: remove files. Those that cannot be removed now are removed by the next start."""
        bases = removal.bases
        try:
            if bases is None:
                bases = stream_files(self.disk, self.paths).get(removal.lane_id, [])
            for base in bases:
                self.disk.unlink(self.paths.stream_segment(removal.lane_id, base))
        except OSError as error:
            if not is_shortage(error):
                return Removed(error)
        return Removed(None)
