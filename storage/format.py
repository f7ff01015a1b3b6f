"""The bytes of log and ledger: file headers, batches, records, footers, and what proves them whole.

Pure: bytes in, values out. All integers are little-endian. Every hash is xxh3_64, and is seeded
with the place it stands at (directory, file, offset), so that bytes which are valid somewhere else,
in another broker's log or inside a message's body, are not valid here. A batch's header has a check
of its own, so that a place can be told not to begin a batch before the body is read that it claims:
bodies of messages can be full of headers.

    file     = file header (64) , batch* , [ footer , trailer (64) ]      (footer: sealed segments)
    batch    = batch header (48) , body
    record   = record header (32) , target (12) * target count , meta , body

What a meta or a body means is not known here.
"""

import itertools
import struct
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, repeat
from operator import add
from typing import NamedTuple, Protocol

from xxhash import xxh3_64, xxh3_64_intdigest

FORMAT_VERSION = 2  # 1: before the first release, batch headers had no check of their own
U64 = (1 << 64) - 1
_U32 = (1 << 32) - 1

# magic 8s, version u16, header length u16, flags u32, directory uuid 16s, file id u32, 0 u32,
# base u64 (segment: LSN of the first record; ledger: number of the first batch), epoch u64, xxh3 u64
FILE_HEADER = struct.Struct("<8sHHI16sIIQQQ")
FILE_HEADER_BYTES = FILE_HEADER.size
assert FILE_HEADER_BYTES == 64

SEGMENT_MAGIC = b"QLOGSEG\n"
LEDGER_MAGIC = b"QLOGACK\n"
SPILL_MAGIC = b"QLOGSPL\n"

SPARSE = 1  # file header flag: LSNs are missing between batches, not within one

# magic u32, check u32 (the lower half of xxh3 over the five that follow), body length u32, record
# count u32, epoch u64, base u64, durable u64, xxh3 u64 (over this header without the hash, and the
# body). `base` is the LSN of the first record (in the ledger: the number of the batch); all below
# `durable` had been synced when this batch was written.
BATCH_HEADER = struct.Struct("<IIIIQQQQ")
BATCH_HEADER_BYTES = BATCH_HEADER.size
assert BATCH_HEADER_BYTES == 48
_BATCH_FIELDS = struct.Struct("<IIQQQ")  # what the check is of
_BATCH_CHECK = struct.Struct("<4xI32s")
BATCH_MAGIC = 0x8F51_B47C
BATCH_MAGIC_BYTES = struct.pack("<I", BATCH_MAGIC)

# length u32 (of the whole record), meta length u32, type u8, flags u8, 0 u16, target count u32,
# timestamp ms u64, xxh3 u64 (of the body, seeded with `record_seed`)
RECORD_HEADER = struct.Struct("<IIBBHIQQ")
RECORD_HEADER_BYTES = RECORD_HEADER.size
assert RECORD_HEADER_BYTES == 32
TARGET = struct.Struct("<IQ")  # lane u32, qseq u64
TARGET_BYTES = TARGET.size
assert TARGET_BYTES == 12

MESSAGE = 1  # the only record type yet
PERSISTENT = 1  # record flag: the message was published to survive a restart

# magic 8s, version u16, 0 u16, segment id u32, base LSN u64, end LSN u64, log end u32 (where the
# footer begins), run count u32, record count u32, target count u32, 0 u64, xxh3 u64 (of the footer
# and this trailer without the hash)
TRAILER = struct.Struct("<8sHHIQQIIIIQQ")
TRAILER_BYTES = TRAILER.size
assert TRAILER_BYTES == 64
TRAILER_MAGIC = b"QLOGEND\n"


def place_seed(uuid: bytes, file_id: int, offset: int) -> int:
    """The seed of a hash that stands at this place of this directory."""
    return (xxh3_64_intdigest(uuid) ^ (file_id << 32) ^ offset) & U64


@dataclass(frozen=True, slots=True)
class FileHeader:
    magic: bytes
    version: int
    uuid: bytes
    file_id: int
    base: int
    epoch: int
    flags: int = 0

    @property
    def sparse(self) -> bool:
        """LSNs are missing between batches: what was there is settled, or lost and reported."""
        return bool(self.flags & SPARSE)


def pack_file_header(
    magic: bytes, uuid: bytes, file_id: int, base: int, epoch: int, flags: int = 0
) -> bytes:
    head = FILE_HEADER.pack(
        magic, FORMAT_VERSION, FILE_HEADER_BYTES, flags, uuid, file_id, 0, base, epoch, 0
    )[:-8]
    return head + struct.pack("<Q", xxh3_64_intdigest(head, file_id))


def unpack_file_header(data: bytes) -> FileHeader | None:
    """The header at the start of `data`; None when it is damaged, or is none."""
    if len(data) < FILE_HEADER_BYTES:
        return None
    magic, version, _, flags, uuid, file_id, _, base, epoch, digest = FILE_HEADER.unpack_from(data)
    if xxh3_64_intdigest(data[: FILE_HEADER_BYTES - 8], file_id) != digest:
        return None
    return FileHeader(magic, version, uuid, file_id, base, epoch, flags)


@dataclass(frozen=True, slots=True)
class BatchHeader:
    body_bytes: int
    count: int
    epoch: int
    base: int
    durable: int
    digest: int


def pack_batch(seed: int, count: int, epoch: int, base: int, durable: int, *body: bytes) -> bytes:
    """The header of a batch; the body (in any number of pieces) is to be written right behind it."""
    size = sum(map(len, body))
    fields = _BATCH_FIELDS.pack(size, count, epoch, base, durable)
    check = xxh3_64_intdigest(fields, seed) & _U32
    head = struct.pack("<II", BATCH_MAGIC, check) + fields
    digest = xxh3_64(head, seed)
    for piece in body:
        digest.update(piece)
    return head + struct.pack("<Q", digest.intdigest())


def unpack_batch_header(data: bytes, offset: int = 0) -> BatchHeader | None:
    """The header at `offset`; None without its magic. It may be anything that looks like one: see
    `batch_header_is_whole`.
    """
    if len(data) - offset < BATCH_HEADER_BYTES:
        return None
    magic, _, body_bytes, count, epoch, base, durable, digest = BATCH_HEADER.unpack_from(
        data, offset
    )
    if magic != BATCH_MAGIC:
        return None
    return BatchHeader(body_bytes, count, epoch, base, durable, digest)


def batch_header_is_whole(seed: int, data: bytes, offset: int = 0) -> bool:
    """Whether a header at `offset` was written there; nobody who does not know the directory's uuid
    can make one. What became of the body is not known.
    """
    if len(data) - offset < BATCH_HEADER_BYTES:
        return False
    check, fields = _BATCH_CHECK.unpack_from(data, offset)
    return bool(xxh3_64_intdigest(fields, seed) & _U32 == check)


def batch_is_whole(seed: int, header_data: bytes, body: bytes, digest: int) -> bool:
    """Whether header and body are what was written; `header_data` are the header's 48 bytes."""
    actual = xxh3_64(header_data[: BATCH_HEADER_BYTES - 8], seed)
    actual.update(body)
    return actual.intdigest() == digest


def record_seed(packed_hash: int, timestamp_ms: int, kind: int, flags: int) -> int:
    """The seed of a record's hash: all that surrounds the body and is the same for a whole run."""
    return (packed_hash ^ timestamp_ms ^ (kind << 56) ^ (flags << 48)) & U64


class Meta(Protocol):
    """What surrounds a body: opaque, and hashed once by its owner."""

    @property
    def packed(self) -> bytes: ...

    @property
    def packed_hash(self) -> int:
        """xxh3_64 of `packed`."""


@cache
def _record_packer(target_count: int) -> Callable[..., bytes]:
    """Packs a record's header and targets together."""
    return struct.Struct("<IIBBHIQQ" + "IQ" * target_count).pack


@cache
def run_unpacker(target_count: int) -> Callable[[bytes, int], tuple[int, ...]]:
    """Unpacks (from data, at an offset) a record's header and so many targets together."""
    return struct.Struct("<IIBBHIQQ" + "IQ" * target_count).unpack_from


def pack_run(
    lanes: Sequence[int],
    firsts: Sequence[int],
    metas: Sequence[Meta],
    bodies: Sequence[bytes],
    flags: int,
    timestamp_ms: int,
) -> tuple[list[bytes], "array[int]"]:
    """The records of a run, as buffers to be written one behind the other, and their lengths.

    Record i goes to each of `lanes`, where its qseq is `firsts[…] + i`. No step here is Python
    code for each message: this is where the broker's speed is made or lost.
    """
    count = len(bodies)
    fixed = RECORD_HEADER_BYTES + TARGET_BYTES * len(lanes)
    seed = record_seed(0, timestamp_ms, MESSAGE, flags)
    parts: list[bytes] = [b""] * (3 * count)
    meta_lengths: Iterable[int]
    if metas[0] is metas[-1] and metas.count(metas[0]) == count:
        packed = metas[0].packed
        meta_lengths = repeat(len(packed))
        lengths = array("I", map((fixed + len(packed)).__add__, map(len, bodies)))
        hashes = map(xxh3_64_intdigest, bodies, repeat(seed ^ metas[0].packed_hash))
        parts[1::3] = [packed] * count
    else:
        packeds = [meta.packed for meta in metas]
        meta_lengths = list(map(len, packeds))
        lengths = array("I", map(fixed.__add__, map(add, meta_lengths, map(len, bodies))))
        seeds = [meta.packed_hash ^ seed for meta in metas]
        hashes = map(xxh3_64_intdigest, bodies, seeds)
        parts[1::3] = packeds
    targets = [
        column
        for lane, first in zip(lanes, firsts, strict=True)
        for column in (repeat(lane), itertools.count(first))
    ]
    parts[0::3] = map(
        _record_packer(len(lanes)),
        lengths,
        meta_lengths,
        repeat(MESSAGE),
        repeat(flags),
        repeat(0),
        repeat(len(lanes)),
        repeat(timestamp_ms),
        hashes,
        *targets,
    )
    parts[2::3] = bodies
    return parts, lengths


class Alike(NamedTuple):
    """Messages of one lane with consecutive qseqs and one meta."""

    lane_id: int
    first_qseq: int
    packed: bytes
    bodies: tuple[bytes, ...]


def unpack_alike(data: bytes, count: int, length: int) -> Alike | None:
    """So many records of this length that stand one behind the other in `data`, verified.

    None if they are not alike in all but body, qseq and time, or if anything is wrong with them: then
    they are to be looked at one by one. No step here is Python code for each message.
    """
    if len(data) < count * length or length < _ALIKE_HEAD.size:
        return None
    meta_bytes = RECORD_HEADER.unpack_from(data)[1]
    body_bytes = length - _ALIKE_HEAD.size - meta_bytes
    if body_bytes < 0:
        return None
    layout = struct.Struct(f"{_ALIKE_HEAD.format}{meta_bytes}s{body_bytes}s")
    records = layout.iter_unpack(memoryview(data)[: count * length])
    *same, timestamps, digests, lanes, qseqs, packed, bodies = zip(*records, strict=True)
    expected = (length, meta_bytes, MESSAGE, same[3][0], same[4][0], 1)
    if (
        any(column.count(value) < count for column, value in zip(same, expected, strict=True))
        or lanes.count(lanes[0]) < count
        or qseqs != tuple(range(qseqs[0], qseqs[0] + count))
        or packed.count(packed[0]) < count
    ):
        return None
    packed_hash = xxh3_64_intdigest(packed[0])
    seeds = {
        timestamp: record_seed(packed_hash, timestamp, MESSAGE, expected[3])
        for timestamp in set(timestamps)
    }
    if tuple(map(xxh3_64_intdigest, bodies, map(seeds.__getitem__, timestamps))) != digests:
        return None
    return Alike(lanes[0], qseqs[0], packed[0], bodies)


_ALIKE_HEAD = struct.Struct("<IIBBHIQQIQ")  # a record's header and one target


@dataclass(frozen=True, slots=True)
class Record:
    """A record as read: `offset` is where it begins in the data it was read from."""

    offset: int
    length: int
    kind: int
    flags: int
    timestamp_ms: int
    targets: tuple[int, ...]  # lane, qseq, lane, qseq, …
    meta: bytes
    body: bytes
    whole: bool  # the record's own hash is right


def unpack_record(data: bytes, offset: int) -> Record | None:
    """The record at `offset`; None when its lengths do not fit in the data."""
    if len(data) - offset < RECORD_HEADER_BYTES:
        return None
    length, meta_bytes, kind, flags, _, target_count, timestamp_ms, digest = (
        RECORD_HEADER.unpack_from(data, offset)
    )
    meta_at = offset + RECORD_HEADER_BYTES + TARGET_BYTES * target_count
    body_at = meta_at + meta_bytes
    end = offset + length
    if not (meta_at <= body_at <= end <= len(data)):
        return None
    targets = struct.unpack_from("<" + "IQ" * target_count, data, offset + RECORD_HEADER_BYTES)
    meta = data[meta_at:body_at]
    body = data[body_at:end]
    seed = record_seed(xxh3_64_intdigest(meta), timestamp_ms, kind, flags)
    whole = xxh3_64_intdigest(body, seed) == digest
    return Record(offset, length, kind, flags, timestamp_ms, targets, meta, body, whole)


def unpack_records(data: bytes) -> Iterator[Record]:
    """The records that fill `data`; stops where one does not fit."""
    offset = 0
    while offset < len(data):
        record = unpack_record(data, offset)
        if record is None:
            return
        yield record
        offset += record.length


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
            _little_endian,
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
        if _BIG_ENDIAN:
            column.byteswap()
    return columns


_BIG_ENDIAN = struct.pack("=H", 1) == b"\0\1"
assert array("I").itemsize == 4 and array("Q").itemsize == 8


def _little_endian(column: "array[int]") -> bytes:
    if _BIG_ENDIAN:
        column = column[:]
        column.byteswap()
    return column.tobytes()
