"""What is in memory of all streams, for all who read them: bounded in bytes.

A chunk is some messages of a stream, as they were moved or read. Whoever reads the same messages
gets them from the same chunk. Chunks that nobody has asked for longest go first.
"""

from bisect import bisect_right
from collections import OrderedDict
from operator import attrgetter
from typing import Any, Generic

from qlog.storage.lanes.run import MESSAGE_OVERHEAD_BYTES, RUN_OVERHEAD_BYTES, M, Slice

_first = attrgetter("first")


class Chunk(Generic[M]):
    """Messages with consecutive offsets, from `first` to before `end`.

    `after`: segment and position where what follows them stands, None if that is not known.
    `noted`: what a reader has made of the messages, for the other readers.
    """

    __slots__ = ("after", "end", "first", "memory_bytes", "messages", "noted", "shelf")

    def __init__(
        self, shelf: "ChunkShelf[M]", messages: Slice[M], after: tuple[int, int] | None
    ) -> None:
        self.shelf = shelf
        self.messages = messages
        self.first = messages.first_qseq
        self.end = self.first + len(messages.bodies)
        self.after = after
        self.noted: Any = None
        # Twice the overhead: what readers note has an object for each message, too.
        overhead = RUN_OVERHEAD_BYTES + 2 * MESSAGE_OVERHEAD_BYTES * len(messages.bodies)
        self.memory_bytes = sum(messages.sizes) + overhead


class ChunkCache(Generic[M]):
    """All chunks in memory, up to a limit."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes = 0
        self._bytes_max = bytes_max
        self._chunks: OrderedDict[Chunk[M], None] = OrderedDict()  # the longest unused first

    def add(self, chunk: Chunk[M]) -> None:
        """A new chunk; others go if there is no room for it."""
        self._chunks[chunk] = None
        self.bytes += chunk.memory_bytes
        while self.bytes > self._bytes_max and len(self._chunks) > 1:
            next(iter(self._chunks)).shelf.drop(next(iter(self._chunks)))

    def used(self, chunk: Chunk[M]) -> None:
        """Somebody has asked for it."""
        self._chunks.move_to_end(chunk)

    def forget(self, chunk: Chunk[M]) -> None:
        """A chunk was dropped."""
        del self._chunks[chunk]
        self.bytes -= chunk.memory_bytes


class ChunkShelf(Generic[M]):
    """The chunks of one stream; no message is in two of them."""

    def __init__(self, cache: ChunkCache[M]) -> None:
        self._cache = cache
        self._chunks: list[Chunk[M]] = []  # by their firsts

    def add(self, messages: Slice[M], after: tuple[int, int] | None) -> Chunk[M]:
        """Keep messages, instead of all chunks that have any of them."""
        chunk = Chunk(self, messages, after)
        place = bisect_right(self._chunks, chunk.first, key=_first)
        if place and self._chunks[place - 1].end > chunk.first:
            place -= 1
        while place < len(self._chunks) and self._chunks[place].first < chunk.end:
            self.drop(self._chunks[place])
        self._chunks.insert(place, chunk)
        self._cache.add(chunk)
        return chunk

    def find(self, offset: int) -> Chunk[M] | None:
        """The chunk that has a message, if any has."""
        place = bisect_right(self._chunks, offset, key=_first) - 1
        if place < 0 or offset >= self._chunks[place].end:
            return None
        self._cache.used(self._chunks[place])
        return self._chunks[place]

    def drop(self, chunk: Chunk[M]) -> None:
        """Give up a chunk."""
        place = bisect_right(self._chunks, chunk.first, key=_first) - 1
        assert self._chunks[place] is chunk
        del self._chunks[place]
        self._cache.forget(chunk)

    def clear(self) -> None:
        """Give up all."""
        for chunk in self._chunks:
            self._cache.forget(chunk)
        self._chunks.clear()
