"""One stream, as those see it who read it: messages by their offsets, from wherever they are.

The newest messages are in the stream's lane, the others in its segments. Promises that a message
below the bound that the caller gives is read as it was published, at its offset, until retention
takes its segment; and that what was promised and is not there any more is reported, never skipped.
Knows no consumers. All methods are for the owner's thread.
"""

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable
from operator import attrgetter
from typing import Generic

from qlog.storage.bytes.batch import BATCH_HEADER_BYTES, FILE_HEADER_BYTES
from qlog.storage.errors import CorruptLog, OutOfDescriptors, Shortage, shortage_of
from qlog.storage.lanes.cache import Cache
from qlog.storage.lanes.lane import Lane
from qlog.storage.lanes.run import M, Slice
from qlog.storage.streams.chunks import Chunk, ChunkShelf
from qlog.storage.streams.files import Segment, Source, places_of, read_messages, walk
from qlog.storage.streams.format import Place

# So much is read from a segment, or taken from the lane, at once: for all who read it.
CHUNK_BYTES = 256 << 10
CHUNK_COUNT = 2048
_FILES_MAX = 64
_FOOTERS_MAX = 64

_base = attrgetter("base")
_latest_ms = attrgetter("latest_ms")
_offset = attrgetter("offset")


class OpenFiles:
    """The segments that are open for reading, and the footers that were read, of all streams."""

    def __init__(self) -> None:
        self._files: OrderedDict[tuple[int, int], int] = OrderedDict()
        self._footers: OrderedDict[tuple[int, int], list[Place]] = OrderedDict()

    def file(self, source: Source, segment: Segment) -> int:
        """The open file of a segment. Raises OSError."""
        key = source.lane_id, segment.base
        file = self._files.get(key)
        if file is not None:
            self._files.move_to_end(key)
            return file
        try:
            file = source.disk.open(source.path(segment.base))
        except OSError as error:
            if not self._files or shortage_of(error) is not Shortage.DESCRIPTORS:
                raise
            self.close(source)  # these may be what takes the descriptors
            file = source.disk.open(source.path(segment.base))
        self._files[key] = file
        if len(self._files) > _FILES_MAX:
            source.disk.close(self._files.popitem(last=False)[1])
        return file

    def places(self, source: Source, segment: Segment) -> list[Place]:
        """The places of a segment's batches. Raises OSError."""
        if segment.places is not None:
            return segment.places
        key = source.lane_id, segment.base
        places = self._footers.get(key)
        if places is None:
            places = places_of(source, self.file(source, segment), segment)
            self._footers[key] = places
            if len(self._footers) > _FOOTERS_MAX:
                self._footers.popitem(last=False)
        return places

    def forget(self, source: Source, segment: Segment) -> None:
        """The segment is about to be unlinked."""
        key = source.lane_id, segment.base
        self._footers.pop(key, None)
        file = self._files.pop(key, None)
        if file is not None:
            source.disk.close(file)

    def close(self, source: Source) -> None:
        """Close all files; those that are read again are opened again."""
        for file in self._files.values():
            source.disk.close(file)
        self._files.clear()


class Stream(Generic[M]):
    """See the head of this file. Made by `Streams` only.

    `segments` are in order; the last one may grow. Retention keeps messages younger than
    `max_age_ms` (None: of any age), and whole segments up to `max_bytes` (None: no bound); the last
    segment stays. `readers`: how many cursors there are.
    """

    def __init__(
        self,
        lane: Lane[M],
        source: Source,
        segments: list[Segment],
        first: int,
        shelf: ChunkShelf[M],
        files: OpenFiles,
        cache: Cache[M],
        decode: Callable[[bytes, int, int], M],
    ) -> None:
        self.lane = lane
        self.source = source
        self.segments = segments
        self.first = first
        self.max_age_ms: int | None = None
        self.max_bytes: int | None = None
        self.segment_bytes = 0  # 0: the store's own
        self.readers = 0
        self.shelf = shelf
        self._files = files
        self._cache = cache
        self._decode = decode

    @property
    def moved(self) -> int:
        """All messages below this offset are in segments."""
        return self.lane.settled.floor

    @property
    def end(self) -> int:
        """The offset of the next message that is published."""
        return self.lane.next_qseq

    @property
    def segment_bytes_all(self) -> int:
        """The bytes of its segments."""
        return sum(segment.size for segment in self.segments)

    # -- reading

    def chunk(self, offset: int, bound: int, after: tuple[int, int] | None) -> Chunk[M] | None:
        """The chunk with the first message at or after an offset that is still there.

        Arguments: `bound`: only messages below it are wanted; `after`: where the message stands, as
        far as the caller knows (`Chunk.after`). None: there is no such message. Raises CorruptLog,
        OutOfDescriptors.
        """
        found = self.shelf.find(offset)
        if found is not None:
            return found
        if offset < self.moved:
            return self._read(offset, after)
        messages = self.lane.read(
            offset, min(bound - offset, CHUNK_COUNT), CHUNK_BYTES, passing=False
        )
        if messages is None or messages.first_qseq >= bound:
            return None
        messages.keep(bound - messages.first_qseq)
        return self.shelf.add(messages, None)

    def on_disk(self, offset: int) -> bool:
        """Whether the message at an offset has to be read from disk."""
        if self.shelf.find(offset) is not None:
            return False
        return offset < self.moved or self.lane.on_disk(offset)

    def _read(self, offset: int, after: tuple[int, int] | None) -> Chunk[M]:
        segment = self._segment(offset)
        messages, position = self._guarded(segment, lambda: self._fetch(segment, offset, after))
        return self.shelf.add(messages, (segment.base, position))

    def _fetch(
        self, segment: Segment, offset: int, after: tuple[int, int] | None
    ) -> tuple[Slice[M], int]:
        if offset == segment.base:
            position = FILE_HEADER_BYTES
        elif after is not None and after[0] == segment.base:
            position = after[1]
        else:
            position = self._seek(segment, lambda place, end: end > offset, _offset, offset + 1)
        file = self._files.file(self.source, segment)
        messages, following, got = read_messages(
            self.source, file, segment, position, CHUNK_BYTES, self._decode
        )
        self._cache.cold_bytes += got
        return messages, following

    def _segment(self, offset: int) -> Segment:
        """The segment that has a message. Raises CorruptLog when none has."""
        place = bisect_right(self.segments, offset, key=_base) - 1
        if place < 0 or offset >= self.segments[place].end:
            following = self.segments[place + 1 :]
            end = following[0].base if following else self.moved
            raise CorruptLog(
                f"{self.source.paths.streams}: the messages {offset} to {end - 1} of the stream "
                f"with lane {self.lane.id} are missing or damaged; consumers can go on at {end}"
            )
        return self.segments[place]

    def _seek(
        self,
        segment: Segment,
        wanted: Callable[[Place, int], bool],
        key: Callable[[Place], int],
        value: int,
    ) -> int:
        """The position of the first batch that is wanted, by its place and end.

        It is not before the last place whose `key` is below `value`, if there is one. Raises
        CorruptLog, OSError.
        """
        places = self._files.places(self.source, segment)
        at = bisect_left(places, value, key=key) - 1
        position = places[at].position if at >= 0 else FILE_HEADER_BYTES
        file = self._files.file(self.source, segment)
        for place, end, following in walk(
            self.source, file, segment.base, position, segment.data_end
        ):
            if wanted(place, end):
                return place.position
            position = following
        raise CorruptLog(
            f"{self.source.path(segment.base)} is damaged at byte {position}: it has no batch there"
        )

    def _guarded(
        self, segment: Segment, read: Callable[[], tuple[Slice[M], int]]
    ) -> tuple[Slice[M], int]:
        try:
            return read()
        except OSError as error:
            path = self.source.path(segment.base)
            if shortage_of(error) is Shortage.DESCRIPTORS:
                raise OutOfDescriptors(
                    f"{path} cannot be opened now: {error.strerror}; raise `ulimit -n`"
                ) from error
            raise CorruptLog(f"{path} cannot be read: {error.strerror}; check the disk") from error

    # -- finding a time

    def since(self, time_ms: int) -> int:
        """The offset of the first message that was published at this time or later.

        It is `end` if there is none. Raises CorruptLog, OutOfDescriptors.
        """
        at = bisect_left(self.segments, time_ms, key=_latest_ms)
        if at < len(self.segments):
            segment = self.segments[at]
            messages, _ = self._guarded(segment, lambda: self._fetch_since(segment, time_ms))
            return messages.first_qseq + _first_since(messages, time_ms)
        return self._since_in_lane(time_ms)

    def _since_in_lane(self, time_ms: int) -> int:
        """The same for what was not moved yet. A full disk may keep very much of it there."""
        offset, end = self.moved, self.end
        while end - offset > CHUNK_COUNT:
            middle = (offset + end) // 2
            one = self.lane.read(middle, 1, CHUNK_BYTES, passing=False)
            if one is not None and one.times_ms[0] < time_ms:
                offset = one.first_qseq + 1
            else:
                end = middle
        while True:
            messages = self.lane.read(offset, CHUNK_COUNT, CHUNK_BYTES, passing=False)
            if messages is None:
                return self.end
            index = _first_since(messages, time_ms)
            offset = messages.first_qseq + index
            if index < len(messages.bodies):
                return offset

    def _fetch_since(self, segment: Segment, time_ms: int) -> tuple[Slice[M], int]:
        position = self._seek(
            segment, lambda place, end: place.latest_ms >= time_ms, _latest_ms, time_ms
        )
        file = self._files.file(self.source, segment)
        messages, following, got = read_messages(
            self.source, file, segment, position, BATCH_HEADER_BYTES, self._decode
        )
        self._cache.cold_bytes += got
        return messages, following

    # -- for `Streams`

    def excess(self, now_ms: int) -> int:
        """The offset that retention would have the stream begin with: whole segments go."""
        size = self.segment_bytes_all
        first = self.first
        for segment, following in zip(self.segments, self.segments[1:], strict=False):
            too_large = self.max_bytes is not None and size > self.max_bytes
            too_old = self.max_age_ms is not None and segment.latest_ms < now_ms - self.max_age_ms
            if not (too_large or too_old):
                break
            size -= segment.size
            first = following.base
        return first

    def begin_at(self, first: int) -> list[Segment]:
        """The messages before an offset are given up; returns their segments."""
        going = [segment for segment in self.segments if segment.base < first]
        self.segments = self.segments[len(going) :]
        self.first = first
        for segment in going:
            self._files.forget(self.source, segment)
        return going

    def close(self) -> None:
        """It is deleted."""
        self.shelf.clear()
        for segment in self.segments:
            self._files.forget(self.source, segment)
        self.segments = []


class Cursor(Generic[M]):
    """One who reads a stream: `offset` is the next message. `close` it in the end."""

    __slots__ = ("_after", "offset", "stream")

    def __init__(self, stream: Stream[M], offset: int) -> None:
        self.stream = stream
        self.offset = offset
        self._after: tuple[int, int] | None = None
        stream.readers += 1

    def next(self, bound: int) -> Chunk[M] | None:
        """The chunk with the next message below the bound; `offset` is then in it.

        None: there is none. Raises CorruptLog, OutOfDescriptors.
        """
        stream = self.stream
        if self.offset < stream.first:  # retention was faster
            self.offset, self._after = stream.first, None
        if self.offset >= bound:
            return None
        chunk = stream.chunk(self.offset, bound, self._after)
        if chunk is not None and chunk.first > self.offset:
            self.offset = chunk.first
        return chunk

    def on_disk(self, bound: int) -> bool:
        """Whether `next` has to read from disk."""
        offset = max(self.offset, self.stream.first)
        return offset < bound and self.stream.on_disk(offset)

    def advance(self, chunk: Chunk[M], count: int) -> None:
        """So many messages of the chunk were taken."""
        self.offset += count
        self._after = chunk.after if self.offset == chunk.end else None

    def close(self) -> None:
        """It reads no more."""
        self.stream.readers -= 1


def _first_since(messages: Slice[M], time_ms: int) -> int:
    times_ms = messages.times_ms
    return next((at for at, time in enumerate(times_ms) if time >= time_ms), len(times_ms))
