"""The bytes of messages in the log: a record each. Pure: bytes in, values out.

    record   = record header (32) , target (12) * target count , meta , body

All integers are little-endian. What a meta or a body means is not known here.
"""

import itertools
import struct
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import repeat
from operator import add
from typing import NamedTuple, Protocol

from xxhash import xxh3_64_intdigest

from qlog.storage.bytes.checks import U64

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
