"""Messages that were appended together, in memory and as places; shared by the lanes they went to."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from qlog.storage.bytes.record import Meta

M = TypeVar("M", bound=Meta)
IN_MEMORY = 0  # the segment id of a run that is nowhere else
_RUN_OVERHEAD_BYTES = 600  # what the objects of a run take
_MESSAGE_OVERHEAD_BYTES = 56  # and those of one of its messages


class Run(Generic[M]):
    """Messages appended together, shared by all the lanes they went to."""

    __slots__ = (
        "bodies",
        "body_bytes",
        "count",
        "dues_ms",
        "indexed",
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
        "sizes",
    )

    def __init__(
        self,
        segment_id: int,
        positions: "array[int]",
        lengths: "array[int]",
        sizes: "array[int]",
        lsn_end: int,
        owners: int,
        now_ms: int,
        metas: Sequence[M] | None = None,
        bodies: Sequence[bytes] | None = None,
        dues_ms: Sequence[int] | None = None,
    ) -> None:
        self.segment_id = segment_id
        self.positions = positions  # in the segment; in memory only: from any origin
        self.lengths = lengths  # of the whole records
        self.sizes = sizes  # of the bodies
        self.body_bytes = sum(sizes)
        self.lsn_end = lsn_end  # 0: not in the log
        self.count = len(positions)
        self.owners = owners  # lanes that may still need it
        self.readers = owners  # lanes that did not read to its end yet
        self.now_ms = now_ms  # when all of them were appended, by the wall clock
        self.metas = metas
        self.bodies = bodies  # None: only on disk
        self.dues_ms = dues_ms  # None: they have no due times
        self.indexed = False
        self.origin: tuple[Sequence[int], Sequence[int]] | None = None  # to spill it
        self.memory_bytes = (
            positions[-1]
            + lengths[-1]
            - positions[0]
            + _MESSAGE_OVERHEAD_BYTES * self.count
            + _RUN_OVERHEAD_BYTES
        )


@dataclass(slots=True)
class Slice(Generic[M]):
    """Messages of a lane with consecutive qseqs, none of them settled: an entry each in the lists."""

    first_qseq: int
    metas: list[M] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    times_ms: list[int] = field(default_factory=list)  # when they were appended, by the wall clock
    sizes: list[int] = field(default_factory=list)  # of the bodies
    dues_ms: list[int] | None = None  # due times, 0 for one without; None: all are without

    def add(
        self,
        metas: Sequence[M],
        bodies: Sequence[bytes],
        times_ms: Sequence[int],
        sizes: Sequence[int],
        dues_ms: Sequence[int] | None,
    ) -> None:
        """The messages that follow."""
        before = len(self.bodies)
        self.metas += metas
        self.bodies += bodies
        self.times_ms += times_ms
        self.sizes += sizes
        if dues_ms is None and self.dues_ms is None:
            return
        if self.dues_ms is None:
            self.dues_ms = [0] * before
        self.dues_ms += [0] * len(bodies) if dues_ms is None else dues_ms

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
