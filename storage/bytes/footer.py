"""The end of a sealed segment: where its records lie and which lanes they went to. Pure.

    footer   = columns, one behind the other:
               one u32 a record:   positions , lengths , body sizes
               one u32 a run:      record counts , target counts , due counts
               one u32 a target:   lanes
               one u64 a target:   first qseqs
               one u64 a due time: due times
    trailer (80)

A due count is the run's record count when its records have due times, and else 0. So the index can
be made anew from the footers, due times included, without a look at the messages.
"""

import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from xxhash import xxh3_64

from qlog.storage.bytes.batch import FORMAT_VERSION
from qlog.storage.bytes.checks import BIG_ENDIAN, little_endian, place_seed

# magic 8s, version u16, trailer length u16, segment id u32, base LSN u64, end LSN u64, log end u32
# (where the footer begins), run count u32, record count u32, target count u32, due time count u32,
# 0 u32, earliest record time u64, latest record time u64 (ms since 1970; both 0 without a record),
# xxh3 u64 (of the footer and this trailer without the hash)
TRAILER = struct.Struct("<8sHHIQQIIIIIIQQQ")
TRAILER_BYTES = TRAILER.size
assert TRAILER_BYTES == 80
TRAILER_MAGIC = b"QLOGEND\n"


def run_bytes(target_count: int) -> int:
    """The bytes that a run takes in the footer, without its records."""
    return 12 + 12 * target_count


def records_bytes(count: int, *, has_dues: bool) -> int:
    """The bytes that so many records of a run take in the footer."""
    return (20 if has_dues else 12) * count


class PlacedRun(NamedTuple):
    """Records with the same lanes and consecutive qseqs: record i has qseq `firsts[…] + i`."""

    lanes: "array[int]"
    firsts: "array[int]"
    positions: "array[int]"
    lengths: "array[int]"
    sizes: "array[int]"  # of the bodies
    dues_ms: "array[int] | None"  # due times; None: the records have none


class Columns:
    """Where a segment's records lie and which lanes they went to, by run.

    A run is a sequence of records with the same lanes and consecutive qseqs. All records of a run
    have due times, or none has. The columns are flat arrays of integers, since a segment of small
    messages has half a million records.
    """

    __slots__ = (
        "due_counts",
        "dues_ms",
        "earliest_ms",
        "firsts",
        "lanes",
        "latest_ms",
        "lengths",
        "positions",
        "record_counts",
        "sizes",
        "target_counts",
    )

    def __init__(self) -> None:
        self.positions = array("I")  # one a record
        self.lengths = array("I")
        self.sizes = array("I")  # of the bodies
        self.record_counts = array("I")  # one a run
        self.target_counts = array("I")
        self.due_counts = array("I")
        self.lanes = array("I")  # one a target of a run
        self.firsts = array("Q")
        self.dues_ms = array("Q")  # one a record of those runs that have due times
        self.earliest_ms = 0  # the times of the records lie in between; 0: there is none yet
        self.latest_ms = 0

    def add(
        self,
        lanes: Sequence[int],
        firsts: Sequence[int],
        positions: "array[int]",
        lengths: "array[int]",
        sizes: "array[int]",
        dues_ms: Sequence[int] | None = None,
    ) -> None:
        """Add a run. A caller that writes a footer also calls `note_times`."""
        self.positions += positions
        self.lengths += lengths
        self.sizes += sizes
        self.record_counts.append(len(positions))
        self.target_counts.append(len(lanes))
        self.lanes.extend(lanes)
        self.firsts.extend(firsts)
        if dues_ms is None:
            self.due_counts.append(0)
        else:
            assert len(dues_ms) == len(positions)
            self.due_counts.append(len(dues_ms))
            self.dues_ms.extend(dues_ms)

    def note_times(self, earliest_ms: int, latest_ms: int) -> None:
        """Records were added whose times lie between these two, both included."""
        if not self.latest_ms or earliest_ms < self.earliest_ms:
            self.earliest_ms = earliest_ms
        self.latest_ms = max(self.latest_ms, latest_ms)

    def extend(self, other: "Columns") -> None:
        """Add all of another's runs behind these."""
        for name in _COLUMNS:
            column: array[int] = getattr(self, name)
            column += getattr(other, name)
        if other.record_counts:
            self.note_times(other.earliest_ms, other.latest_ms)

    @property
    def packed_bytes(self) -> int:
        """The size of the footer with its trailer."""
        columns: list[array[int]] = [getattr(self, name) for name in _COLUMNS]
        return TRAILER_BYTES + sum(column.itemsize * len(column) for column in columns)

    def runs(self) -> Iterator[PlacedRun]:
        """The runs, in order."""
        starts = accumulate(self.record_counts, initial=0)
        target_starts = accumulate(self.target_counts, initial=0)
        due_starts = accumulate(self.due_counts, initial=0)
        for start, count, target_start, target_count, due_start, due_count in zip(
            starts,
            self.record_counts,
            target_starts,
            self.target_counts,
            due_starts,
            self.due_counts,
            strict=False,
        ):
            end = start + count
            target_end = target_start + target_count
            yield PlacedRun(
                self.lanes[target_start:target_end],
                self.firsts[target_start:target_end],
                self.positions[start:end],
                self.lengths[start:end],
                self.sizes[start:end],
                self.dues_ms[due_start : due_start + due_count] if due_count else None,
            )


# In the order in which they stand in a footer.
_COLUMNS = (
    "positions",
    "lengths",
    "sizes",
    "record_counts",
    "target_counts",
    "due_counts",
    "lanes",
    "firsts",
    "dues_ms",
)


@dataclass(frozen=True, slots=True)
class Trailer:
    """The last bytes of a sealed segment, which describe the whole segment."""

    segment_id: int
    base_lsn: int
    end_lsn: int
    log_end: int
    run_count: int
    record_count: int
    target_count: int
    due_count: int
    earliest_ms: int  # the times of the records lie in between
    latest_ms: int
    digest: int

    @property
    def column_counts(self) -> tuple[int, ...]:
        """How many integers each column has."""
        return (
            *[self.record_count] * 3,
            *[self.run_count] * 3,
            *[self.target_count] * 2,
            self.due_count,
        )

    @property
    def footer_bytes(self) -> int:
        """The size of the columns in front of the trailer."""
        return (
            12 * self.record_count
            + 12 * self.run_count
            + 12 * self.target_count
            + 8 * self.due_count
        )


def pack_footer(
    columns: Columns, uuid: bytes, segment_id: int, base_lsn: int, end_lsn: int, log_end: int
) -> bytes:
    """The columns and the trailer, as they stand at the end of a sealed segment."""
    data = b"".join(little_endian(getattr(columns, name)) for name in _COLUMNS)
    trailer = TRAILER.pack(
        TRAILER_MAGIC,
        FORMAT_VERSION,
        TRAILER_BYTES,
        segment_id,
        base_lsn,
        end_lsn,
        log_end,
        len(columns.record_counts),
        len(columns.positions),
        len(columns.lanes),
        len(columns.dues_ms),
        0,
        columns.earliest_ms,
        columns.latest_ms,
        0,
    )[:-8]
    digest = xxh3_64(data, place_seed(uuid, segment_id, log_end))
    digest.update(trailer)
    return data + trailer + struct.pack("<Q", digest.intdigest())


def unpack_trailer(data: bytes) -> Trailer | None:
    """The trailer in the last bytes of a file (`TRAILER_BYTES`); None when there is none."""
    if len(data) != TRAILER_BYTES:
        return None
    magic, version, _, segment_id, base, end, log_end, runs, records, targets, dues, _, *rest = (
        TRAILER.unpack(data)
    )
    if magic != TRAILER_MAGIC or version != FORMAT_VERSION:
        return None
    return Trailer(segment_id, base, end, log_end, runs, records, targets, dues, *rest)


def unpack_columns(data: bytes, trailer: Trailer, uuid: bytes) -> Columns | None:
    """The columns of a footer (`data`: footer and trailer); None when they are damaged."""
    digest = xxh3_64(data[:-8], place_seed(uuid, trailer.segment_id, trailer.log_end))
    if len(data) != trailer.footer_bytes + TRAILER_BYTES or digest.intdigest() != trailer.digest:
        return None
    columns = Columns()
    columns.earliest_ms = trailer.earliest_ms
    columns.latest_ms = trailer.latest_ms
    offset = 0
    for name, count in zip(_COLUMNS, trailer.column_counts, strict=True):
        column: array[int] = getattr(columns, name)
        end = offset + count * column.itemsize
        column.frombytes(data[offset:end])
        offset = end
        if BIG_ENDIAN:
            column.byteswap()
    return columns


assert array("I").itemsize == 4 and array("Q").itemsize == 8
