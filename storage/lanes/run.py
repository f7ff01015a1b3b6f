"""Messages that were appended together, in memory and as places; shared by the lanes they went to."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
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
        "count",
        "indexed",
        "lengths",
        "lsn_end",
        "memory_bytes",
        "metas",
        "origin",
        "owners",
        "positions",
        "readers",
        "segment_id",
    )

    def __init__(
        self,
        segment_id: int,
        positions: "array[int]",
        lengths: "array[int]",
        lsn_end: int,
        owners: int,
        metas: Sequence[M] | None = None,
        bodies: Sequence[bytes] | None = None,
    ) -> None:
        self.segment_id = segment_id
        self.positions = positions  # in the segment; in memory only: from any origin
        self.lengths = lengths  # of the whole records
        self.lsn_end = lsn_end  # 0: not in the log
        self.count = len(positions)
        self.owners = owners  # lanes that may still need it
        self.readers = owners  # lanes that did not read to its end yet
        self.metas = metas
        self.bodies = bodies  # None: only on disk
        self.indexed = False
        self.origin: tuple[Sequence[int], Sequence[int], int] | None = None  # to spill it
        self.memory_bytes = (
            positions[-1]
            + lengths[-1]
            - positions[0]
            + _MESSAGE_OVERHEAD_BYTES * self.count
            + _RUN_OVERHEAD_BYTES
        )


@dataclass(frozen=True, slots=True)
class Slice(Generic[M]):
    """Messages of a lane with consecutive qseqs, none of them settled."""

    first_qseq: int
    metas: Sequence[M]
    bodies: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Pointers:
    """Where consecutive messages of a lane are: all in one segment."""

    segment_id: int
    positions: "array[int]"
    lengths: "array[int]"
