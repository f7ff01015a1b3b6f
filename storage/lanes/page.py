"""Messages that a lane has read ahead, so that one read of the file serves many calls.

A consumer that takes messages from disk one by one would cost a look into the index and a read of
the file for each. The lane reads a page instead, and gives the rest out from memory. A page does
not know what is settled: the lane does. A page stays right however long it is kept, since a
message never changes.
"""

from array import array
from typing import Generic

from qlog.storage.lanes.run import MESSAGE_OVERHEAD_BYTES, RUN_OVERHEAD_BYTES, M, Slice

# A page has at most so many messages, and so many bytes of the log. A larger page would not make a
# message cheaper, and would make the first message wait.
PAGE_COUNT = 64
PAGE_BYTES_MAX = 64 << 10
# A consumer that takes more than this at once would gain less from a page than the page costs.
FEW = PAGE_COUNT // 4


class Page(Generic[M]):
    """Messages with consecutive qseqs, read from disk. The layout is that of a run in memory."""

    __slots__ = (
        "bodies",
        "count",
        "dues_ms",
        "end",
        "first",
        "lengths",
        "memory_bytes",
        "metas",
        "sizes",
        "times_ms",
    )

    def __init__(self, slice_: Slice[M], lengths: "array[int]") -> None:
        self.first = slice_.first_qseq
        self.count = len(slice_.bodies)
        self.end = self.first + self.count
        self.metas: list[M] | None = slice_.metas
        self.bodies: list[bytes] | None = slice_.bodies
        self.sizes = slice_.sizes
        self.times_ms = slice_.times_ms
        self.dues_ms = slice_.dues_ms
        self.lengths = lengths
        self.memory_bytes = sum(lengths) + MESSAGE_OVERHEAD_BYTES * self.count + RUN_OVERHEAD_BYTES

    def times(self, start: int, end: int) -> "array[int]":
        """The times at which the messages from index `start` to before `end` were appended."""
        return self.times_ms[start:end]
