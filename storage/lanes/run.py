"""Runs: messages with consecutive qseqs, in memory or as places on disk.

The lanes that the messages went to share a run.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from qlog.storage.bytes.record import Lengths, Meta

M = TypeVar("M", bound=Meta)
IN_MEMORY = 0  # the segment id of a run that is only in memory
NOT_PACKED = 1 << 62  # the end of a run whose records have no numbers yet: never durable
RUN_OVERHEAD_BYTES = 900  # the memory of a run's objects
MESSAGE_OVERHEAD_BYTES = 64  # the memory of the objects of one message
# A run grows no larger than this, since it leaves memory as a whole.
_COUNT_MAX = 4096
_NONE = array("I")  # of runs that have nothing yet: never changed
_BYTES_MAX = 1 << 20


class Run(Generic[M]):
    """Messages that went to the same lanes, with consecutive qseqs in each.

    A run is open while its batch is open: more messages are added to it. When the batch is handed
    over, the run is packed, and its positions are known. When runs of a lane are durable they are
    joined, so that a lane has few runs however its messages came. A run that is only in memory is
    open until it is large, or a checkpoint has it.
    """

    __slots__ = (
        "batch",
        "bodies",
        "count",
        "dues_ms",
        "gathered",
        "indexed",
        "lane_count",
        "lengths",
        "lsn_end",
        "memory_bytes",
        "metas",
        "now_ms",
        "origin",
        "owners",
        "positions",
        "readers",
        "segment_id",
        "serial",
        "sizes",
        "times_ms",
    )

    def __init__(self, segment_id: int, lsn_end: int, lane_count: int, *, has_dues: bool) -> None:
        self.segment_id = segment_id
        self.lsn_end = lsn_end  # 0: not in the log
        # Where its records wait as long as it is open; the gathering's own, if only in memory.
        self.batch: object | None = None
        self.lane_count = lane_count
        self.count = 0
        self.positions = _NONE  # in the segment; none until it is packed
        self.lengths = _NONE  # of the whole records
        self.sizes = _NONE  # of the bodies
        self.now_ms = 0  # when they were appended, by the wall clock
        self.times_ms: array[int] | None = None  # the time of each message, if they differ
        self.dues_ms: array[int] | None = array("Q") if has_dues else None
        self.metas: list[M] | None = []
        self.bodies: list[bytes] | None = []  # None: only on disk
        self.owners = lane_count  # lanes that may still need it
        self.readers = lane_count  # lanes that have not read it to its end yet
        self.origin: list[tuple[int, int]] = []  # (lane, first qseq), if it is only in memory
        self.serial = 0  # numbers the runs that are only in memory, in the order they began
        self.gathered = False  # a checkpoint that is under way has it
        self.indexed = False
        self.memory_bytes = RUN_OVERHEAD_BYTES

    def extend(
        self,
        metas: Sequence[M],
        bodies: Sequence[bytes],
        measured: Lengths,
        now_ms: int,
        dues_ms: Sequence[int] | None,
    ) -> int:
        """Add messages behind the others. Returns how much memory they take, in bytes."""
        assert self.metas is not None and self.bodies is not None
        count = len(bodies)
        if self.count:
            if self.times_ms is None and now_ms != self.now_ms:
                self.times_ms = self.times(0, self.count)
            if self.times_ms is not None:
                self.times_ms += array("Q", (now_ms,)) * count
            self.lengths += measured.lengths
            self.sizes += measured.sizes
        else:
            self.now_ms = now_ms
            self.lengths = measured.lengths
            self.sizes = measured.sizes
        if self.dues_ms is not None:
            assert dues_ms is not None
            self.dues_ms.extend(dues_ms)
        self.metas += metas
        self.bodies += bodies
        self.count += count
        grown = measured.record_bytes + MESSAGE_OVERHEAD_BYTES * count
        self.memory_bytes += grown
        return grown

    def times(self, start: int, end: int) -> "array[int]":
        """The times at which the messages from index `start` to before `end` were appended."""
        if self.times_ms is None:
            return array("Q", (self.now_ms,)) * (end - start)
        return self.times_ms[start:end]

    def has_room(self, count: int, size: int) -> bool:
        """Whether it stays small enough with so many more messages, which take `size` bytes."""
        return self.count + count <= _COUNT_MAX and self.memory_bytes + size <= _BYTES_MAX

    def can_join(self, later: "Run[M]") -> bool:
        """Whether the next run of the lane can be made a part of this one."""
        return (
            self.lane_count == later.lane_count == 1
            and self.segment_id == later.segment_id
            and (self.bodies is None) is (later.bodies is None)
            and (self.dues_ms is None) is (later.dues_ms is None)
            and self.indexed is later.indexed
            and not (self.gathered or later.gathered)
            and self.has_room(later.count, later.memory_bytes)
        )

    def join(self, later: "Run[M]") -> None:
        """Take over the messages of the next run, whose memory is counted here from now on."""
        assert len(self.positions) in (0, self.count) and bool(self.positions) is bool(
            later.positions
        )
        self.positions += later.positions
        self.lengths += later.lengths
        self.sizes += later.sizes
        if self.times_ms is not None or later.times_ms is not None or self.now_ms != later.now_ms:
            if self.times_ms is None:
                self.times_ms = self.times(0, self.count)
            self.times_ms += later.times(0, later.count)
        if self.dues_ms is not None:
            assert later.dues_ms is not None
            self.dues_ms += later.dues_ms
        if self.bodies is not None:
            assert self.metas is not None and later.metas is not None and later.bodies is not None
            self.metas += later.metas
            self.bodies += later.bodies
        self.count += later.count
        self.lsn_end = max(self.lsn_end, later.lsn_end)
        self.memory_bytes += later.memory_bytes - RUN_OVERHEAD_BYTES
        later.metas = later.bodies = None


@dataclass(slots=True)
class Slice(Generic[M]):
    """Messages that one read of a lane returns: consecutive qseqs, none of them settled.

    Each list has an entry for each message.
    """

    first_qseq: int
    metas: list[M] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    # When they were appended, by the wall clock.
    times_ms: "array[int]" = field(default_factory=lambda: array("Q"))
    sizes: "array[int]" = field(default_factory=lambda: array("I"))  # of the bodies
    dues_ms: list[int] | None = None  # due times, 0 for one without; None: all are without

    def add(
        self,
        metas: Sequence[M],
        bodies: Sequence[bytes],
        times_ms: Sequence[int],
        sizes: Sequence[int],
        dues_ms: Sequence[int] | None,
    ) -> None:
        """Add the messages that follow."""
        before = len(self.bodies)
        self.metas += metas
        self.bodies += bodies
        self.times_ms.extend(times_ms)
        self.sizes.extend(sizes)
        if dues_ms is None and self.dues_ms is None:
            return
        if self.dues_ms is None:
            self.dues_ms = [0] * before
        self.dues_ms += [0] * len(bodies) if dues_ms is None else dues_ms

    def join(self, later: "Slice[M]") -> None:
        """The messages of the slice that follows."""
        self.add(later.metas, later.bodies, later.times_ms, later.sizes, later.dues_ms)

    def keep(self, count: int) -> None:
        """Keep so many of the first messages."""
        del self.metas[count:], self.bodies[count:], self.times_ms[count:], self.sizes[count:]
        if self.dues_ms is not None:
            del self.dues_ms[count:]


@dataclass(frozen=True, slots=True)
class Pointers:
    """Where consecutive messages of a lane are: all in one segment."""

    segment_id: int
    positions: "array[int]"
    lengths: "array[int]"
    sizes: "array[int]"  # of the bodies

    def head(self, count: int) -> "Pointers":
        """Those of the first messages."""
        if count >= len(self.lengths):
            return self
        return Pointers(
            self.segment_id, self.positions[:count], self.lengths[:count], self.sizes[:count]
        )
