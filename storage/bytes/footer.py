"""The end of a sealed segment: where its records lie and which lanes they went to. Pure.

    footer   = positions , lengths , record counts , target counts , lanes , firsts (columns)
    trailer (64)

So the index can be made anew from the footers, without a look at the messages.
"""

import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from xxhash import xxh3_64

from qlog.storage.bytes.batch import FORMAT_VERSION
from qlog.storage.bytes.checks import BIG_ENDIAN, little_endian, place_seed

# magic 8s, version u16, 0 u16, segment id u32, base LSN u64, end LSN u64, log end u32 (where the
# footer begins), run count u32, record count u32, target count u32, 0 u64, xxh3 u64 (of the footer
# and this trailer without the hash)
TRAILER = struct.Struct("<8sHHIQQIIIIQQ")
TRAILER_BYTES = TRAILER.size
assert TRAILER_BYTES == 64
TRAILER_MAGIC = b"QLOGEND\n"


class Columns:
    """Where a segment's records lie and which lanes they went to, by run.

    A run is a sequence of records with the same lanes, whose qseqs count up. Flat arrays of
    integers, since a segment of small messages has half a million records.
    """

    __slots__ = ("firsts", "lanes", "lengths", "positions", "record_counts", "target_counts")

    def __init__(self) -> None:
        self.positions = array("I")  # one a record
        self.lengths = array("I")
        self.record_counts = array("I")  # one a run
        self.target_counts = array("I")
        self.lanes = array("I")  # one a target of a run
        self.firsts = array("Q")

    def add(
        self,
        lanes: Sequence[int],
        firsts: Sequence[int],
        positions: "array[int]",
        lengths: "array[int]",
    ) -> None:
        self.positions += positions
        self.lengths += lengths
        self.record_counts.append(len(positions))
        self.target_counts.append(len(lanes))
        self.lanes.extend(lanes)
        self.firsts.extend(firsts)

    def extend(self, other: "Columns") -> None:
        """Add all of another's runs behind these."""
        for name in self.__slots__:
            column: array[int] = getattr(self, name)
            column += getattr(other, name)

    @property
    def packed_bytes(self) -> int:
        """The size of the footer with its trailer."""
        return (
            8 * len(self.positions)
            + 8 * len(self.record_counts)
            + 12 * len(self.lanes)
            + TRAILER_BYTES
        )

    def runs(
        self,
    ) -> Iterator[tuple["array[int]", "array[int]", "array[int]", "array[int]"]]:
        """(lanes, first qseqs, positions, lengths) of each run, in order."""
        starts = accumulate(self.record_counts, initial=0)
        target_starts = accumulate(self.target_counts, initial=0)
        for start, count, target_start, target_count in zip(
            starts, self.record_counts, target_starts, self.target_counts, strict=False
        ):
            yield (
                self.lanes[target_start : target_start + target_count],
                self.firsts[target_start : target_start + target_count],
                self.positions[start : start + count],
                self.lengths[start : start + count],
            )


@dataclass(frozen=True, slots=True)
class Trailer:
    segment_id: int
    base_lsn: int
    end_lsn: int
    log_end: int
    run_count: int
    record_count: int
    target_count: int
    digest: int

    @property
    def footer_bytes(self) -> int:
        """The size of the columns in front of the trailer."""
        return 8 * self.record_count + 8 * self.run_count + 12 * self.target_count


def pack_footer(
    columns: Columns, uuid: bytes, segment_id: int, base_lsn: int, end_lsn: int, log_end: int
) -> bytes:
    """The columns and the trailer, as they stand at the end of a sealed segment."""
    data = b"".join(
        map(
            little_endian,
            (
                columns.positions,
                columns.lengths,
                columns.record_counts,
                columns.target_counts,
                columns.lanes,
                columns.firsts,
            ),
        )
    )
    trailer = TRAILER.pack(
        TRAILER_MAGIC,
        FORMAT_VERSION,
        0,
        segment_id,
        base_lsn,
        end_lsn,
        log_end,
        len(columns.record_counts),
        len(columns.positions),
        len(columns.lanes),
        0,
        0,
    )[:-8]
    digest = xxh3_64(data, place_seed(uuid, segment_id, log_end))
    digest.update(trailer)
    return data + trailer + struct.pack("<Q", digest.intdigest())


def unpack_trailer(data: bytes) -> Trailer | None:
    """The trailer in the last 64 bytes of a file; None when there is none."""
    if len(data) != TRAILER_BYTES:
        return None
    magic, version, _, segment_id, base, end, log_end, runs, records, targets, _, digest = (
        TRAILER.unpack(data)
    )
    if magic != TRAILER_MAGIC or version != FORMAT_VERSION:
        return None
    return Trailer(segment_id, base, end, log_end, runs, records, targets, digest)


def unpack_columns(data: bytes, trailer: Trailer, uuid: bytes) -> Columns | None:
    """The columns of a footer (`data`: footer and trailer); None when they are damaged."""
    digest = xxh3_64(data[:-8], place_seed(uuid, trailer.segment_id, trailer.log_end))
    if len(data) != trailer.footer_bytes + TRAILER_BYTES or digest.intdigest() != trailer.digest:
        return None
    columns = Columns()
    offset = 0
    for column, count in (
        (columns.positions, trailer.record_count),
        (columns.lengths, trailer.record_count),
        (columns.record_counts, trailer.run_count),
        (columns.target_counts, trailer.run_count),
        (columns.lanes, trailer.target_count),
        (columns.firsts, trailer.target_count),
    ):
        end = offset + count * column.itemsize
        column.frombytes(data[offset:end])
        offset = end
        if BIG_ENDIAN:
            column.byteswap()
    return columns


assert array("I").itemsize == 4 and array("Q").itemsize == 8
