"""What a lane read ahead of what it was asked for, so that one read of the file serves many.

Who takes messages from disk one by one would read the file, and ask the index, once for each of
them. The lane reads a page instead, and gives the rest of it out from memory. It promises nothing of
what is settled: that is the lane's to know. What a page has stays true however long it is kept,
since a message never changes.
"""

from array import array
from typing import Generic

from qlog.storage.lanes.run import MESSAGE_OVERHEAD_BYTES, RUN_OVERHEAD_BYTES, M, Slice

# A page: as many messages, of so many bytes in the log. More would not make a message cheaper, and
# would make the first one wait.
PAGE_COUNT = 64
PAGE_BYTES_MAX = 64 << 10
# Who takes more at once has less to gain from a page than it costs to keep it.
FEW = PAGE_COUNT // 4


class Page(Generic[M]):
    """Messages with consecutive qseqs, read from disk: laid out as a run in memory is."""

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
        """When these of the messages were appended."""
        return self.times_ms[start:end]
