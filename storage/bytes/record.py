"""The bytes of messages in the log: a record each. Pure: bytes in, values out.

    record   = record header (32) , [ due time (8) ] , target (12) * target count , meta , body

A record has a due time (ms since 1970, above 0) if its flags have DUE: somebody has to look at the
message again at that time. The size of the body follows from the length of the record. All integers
are little-endian. This file does not know what a meta or a body means.
"""

import itertools
import struct
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import repeat
from operator import add, xor
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
DUE = 2  # record flag: a due time stands behind the header
DUE_TIME = struct.Struct("<Q")
DUE_BYTES = DUE_TIME.size


def record_seed(packed_hash: int, timestamp_ms: int, kind: int, flags: int, due_ms: int = 0) -> int:
    """The seed of a record's hash. It stands for all that surrounds the body, but for lengths and
    targets.

    A due time is hashed before it is added, so that changes of due time and time cannot cancel out.
    `due_ms` is 0 for a record without a due time.
    """
    seed = (packed_hash ^ timestamp_ms ^ (kind << 56) ^ (flags << 48)) & U64
    return xxh3_64_intdigest(DUE_TIME.pack(due_ms), seed) if due_ms else seed


def fixed_bytes(flags: int, target_count: int) -> int:
    """The number of bytes in front of a record's meta."""
    due_bytes = DUE_BYTES if flags & DUE else 0
    return RECORD_HEADER_BYTES + due_bytes + TARGET_BYTES * target_count


class Meta(Protocol):
    """What surrounds a body: opaque, and hashed once by its owner."""

    @property
    def packed(self) -> bytes: ...

    @property
    def packed_hash(self) -> int:
        """xxh3_64 of `packed`."""


@cache
def _record_packer(target_count: int, has_due: bool) -> Callable[..., bytes]:
    """A function that packs the bytes in front of a record's meta."""
    due = "Q" if has_due else ""
    return struct.Struct("<IIBBHIQQ" + due + "IQ" * target_count).pack


_PACK_ONE = _record_packer(1, False)


@cache
def run_unpacker(target_count: int) -> Callable[[bytes, int], tuple[int, ...]]:
    """A function that unpacks header and targets of a record without a due time.

    Its arguments are the data and the record's offset.
    """
    return struct.Struct("<IIBBHIQQ" + "IQ" * target_count).unpack_from


class Lengths(NamedTuple):
    """The lengths of records, and the sums of the records' and the bodies' sizes, in bytes."""

    lengths: "array[int]"
    record_bytes: int
    sizes: "array[int]"  # of the bodies
    body_bytes: int


def record_lengths(
    target_count: int, metas: Sequence[Meta], bodies: Sequence[bytes], *, has_dues: bool
) -> Lengths:
    """The lengths that the records of these messages will have."""
    count = len(bodies)
    fixed = fixed_bytes(DUE if has_dues else 0, target_count)
    if count == 1:
        body_bytes = len(bodies[0])
        length = fixed + len(metas[0].packed) + body_bytes
        return Lengths(array("I", (length,)), length, array("I", (body_bytes,)), body_bytes)
    sizes = array("I", map(len, bodies))
    if _alike(metas):
        head = fixed + len(metas[0].packed)
        if is_uniform(sizes):
            body_bytes = count * sizes[0]
            lengths = array("I", (head + sizes[0],)) * count
            return Lengths(lengths, body_bytes + count * head, sizes, body_bytes)
        body_bytes = sum(sizes)
        lengths = array("I", map(head.__add__, sizes))
        return Lengths(lengths, body_bytes + count * head, sizes, body_bytes)
    heads = [len(meta.packed) + fixed for meta in metas]
    lengths = array("I", map(add, heads, sizes))
    body_bytes = sum(sizes)
    return Lengths(lengths, body_bytes + sum(heads), sizes, body_bytes)


def pack_run(
    lanes: Sequence[int],
    firsts: Sequence[int],
    metas: Sequence[Meta],
    bodies: Sequence[bytes],
    lengths: "array[int]",
    flags: int,
    now_ms: int,
    times_ms: Sequence[int] | None = None,
    dues_ms: Sequence[int] | None = None,
) -> list[bytes]:
    """The records of a run, as buffers to be written one behind the other.

    Record i goes to each of `lanes`, where its qseq is `firsts[…] + i`. `lengths` come from
    `record_lengths`. `now_ms` is the time of all messages; `times_ms` has the time of each, if
    they differ. `dues_ms` has the due time of each; the flag DUE is set here. No Python code runs
    for each message here, since the broker's speed depends on this function.
    """
    count = len(bodies)
    if dues_ms is not None:
        flags |= DUE
    elif count == 1:
        return _pack_one(lanes, firsts, metas[0], bodies[0], lengths[0], flags, now_ms)
    seed = record_seed(0, 0 if times_ms else now_ms, MESSAGE, flags)
    parts: list[bytes] = [b""] * (3 * count)
    meta_lengths: Iterable[int]
    times: Iterable[int] = times_ms or repeat(now_ms)
    seeds: Iterable[int]
    if _alike(metas):
        packed = metas[0].packed
        meta_lengths = repeat(len(packed))
        seeds = repeat(seed ^ metas[0].packed_hash, count)
        parts[1::3] = [packed] * count
    else:
        packeds = [meta.packed for meta in metas]
        meta_lengths = map(len, packeds)
        seeds = [meta.packed_hash ^ seed for meta in metas]
        parts[1::3] = packeds
    if times_ms:
        seeds = map(xor, seeds, times_ms)
    columns: list[Iterable[int]] = []
    if dues_ms is not None:
        assert len(dues_ms) == count and min(dues_ms) > 0
        seeds = map(xxh3_64_intdigest, map(DUE_TIME.pack, dues_ms), seeds)
        columns.append(dues_ms)
    for lane, first in zip(lanes, firsts, strict=True):
        columns += (repeat(lane), itertools.count(first))
    parts[0::3] = map(
        _record_packer(len(lanes), dues_ms is not None),
        lengths,
        meta_lengths,
        repeat(MESSAGE),
        repeat(flags),
        repeat(0),
        repeat(len(lanes)),
        times,
        map(xxh3_64_intdigest, bodies, seeds),
        *columns,
    )
    parts[2::3] = bodies
    return parts


def _pack_one(
    lanes: Sequence[int],
    firsts: Sequence[int],
    meta: Meta,
    body: bytes,
    length: int,
    flags: int,
    now_ms: int,
) -> list[bytes]:
    """The same as `pack_run`, for one message without a due time."""
    packed = meta.packed
    digest = xxh3_64_intdigest(body, record_seed(meta.packed_hash, now_ms, MESSAGE, flags))
    head = (length, len(packed), MESSAGE, flags, 0, len(lanes), now_ms, digest)
    if len(lanes) == 1:
        header = _PACK_ONE(*head, lanes[0], firsts[0])
    else:
        header = _record_packer(len(lanes), False)(
            *head, *itertools.chain.from_iterable(zip(lanes, firsts, strict=True))
        )
    return [header, packed, body]


def is_uniform(lengths: "array[int]") -> bool:
    """Whether all are the same."""
    return lengths == array("I", (lengths[0],)) * len(lengths)


def _alike(metas: Sequence[Meta]) -> bool:
    """Whether all metas are the same object."""
    return metas[0] is metas[-1] and metas.count(metas[0]) == len(metas)


class Alike(NamedTuple):
    """Messages of one lane with consecutive qseqs and one meta."""

    lane_id: int
    first_qseq: int
    packed: bytes
    bodies: tuple[bytes, ...]
    times_ms: tuple[int, ...]
    dues_ms: tuple[int, ...] | None  # None: none has a due time


def unpack_alike(data: bytes, count: int, length: int) -> Alike | None:
    """Verify and unpack `count` records of this length that stand one behind the other in `data`.

    None if the records differ in more than body, qseq, time and due time, or if anything is wrong
    with them: the caller then has to look at them one by one. No Python code runs for each message
    here.
    """
    if len(data) < count * length or length < _ALIKE_HEAD.size:
        return None
    actual, meta_bytes, kind, flags, _, target_count, time, _ = RECORD_HEADER.unpack_from(data)
    head = _ALIKE_DUE_HEAD if flags & DUE else _ALIKE_HEAD
    body_bytes = length - head.size - meta_bytes
    if body_bytes < 0 or (actual, kind, target_count) != (length, MESSAGE, 1):
        return None
    layout = struct.Struct(f"{head.format}{meta_bytes}s{body_bytes}s")
    records = layout.iter_unpack(memoryview(data)[: count * length])
    fronts, times, digests, *dues, lanes, qseqs, packed, bodies = zip(*records, strict=True)
    if (
        fronts.count(fronts[0]) < count
        or lanes.count(lanes[0]) < count
        or qseqs != tuple(range(qseqs[0], qseqs[0] + count))
        or packed.count(packed[0]) < count
    ):
        return None
    packed_hash = xxh3_64_intdigest(packed[0])
    seeds: Iterable[int]
    if times.count(time) == count:
        seeds = repeat(record_seed(packed_hash, time, MESSAGE, flags))
    else:
        seeds = [record_seed(packed_hash, time, MESSAGE, flags) for time in times]
    if dues:
        seeds = map(xxh3_64_intdigest, map(DUE_TIME.pack, dues[0]), seeds)
    if tuple(map(xxh3_64_intdigest, bodies, seeds)) != digests:
        return None
    return Alike(lanes[0], qseqs[0], packed[0], bodies, times, dues[0] if dues else None)


# A record's header, the fields that messages like each other share as one, and one target.
_ALIKE_HEAD = struct.Struct("<16sQQIQ")
_ALIKE_DUE_HEAD = struct.Struct("<16sQQQIQ")  # and a due time between them


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
    due_ms: int = 0  # 0: it has no due time


def unpack_record(data: bytes, offset: int) -> Record | None:
    """The record at `offset`; None when its lengths do not fit in the data."""
    if len(data) - offset < RECORD_HEADER_BYTES:
        return None
    length, meta_bytes, kind, flags, _, target_count, timestamp_ms, digest = (
        RECORD_HEADER.unpack_from(data, offset)
    )
    meta_at = offset + fixed_bytes(flags, target_count)
    body_at = meta_at + meta_bytes
    end = offset + length
    if not (meta_at <= body_at <= end <= len(data)):
        return None
    due_ms = DUE_TIME.unpack_from(data, offset + RECORD_HEADER_BYTES)[0] if flags & DUE else 0
    targets_at = meta_at - TARGET_BYTES * target_count
    targets = struct.unpack_from("<" + "IQ" * target_count, data, targets_at)
    meta = data[meta_at:body_at]
    body = data[body_at:end]
    seed = record_seed(xxh3_64_intdigest(meta), timestamp_ms, kind, flags, due_ms)
    whole = xxh3_64_intdigest(body, seed) == digest
    return Record(offset, length, kind, flags, timestamp_ms, targets, meta, body, whole, due_ms)


class Measured(NamedTuple):
    """What a footer needs to know of records that stand one behind the other."""

    sizes: "array[int]"  # of the bodies
    dues_ms: "array[int] | None"  # None: the records have no due times
    earliest_ms: int
    latest_ms: int


def measure(data: bytes, lengths: "array[int]") -> Measured:
    """Read the headers of whole records, all or none of which have due times."""
    sizes = array("I")
    dues = array("Q")
    times = []
    offset = 0
    for length in lengths:
        _, meta_bytes, _, flags, _, target_count, timestamp_ms, _ = RECORD_HEADER.unpack_from(
            data, offset
        )
        sizes.append(length - fixed_bytes(flags, target_count) - meta_bytes)
        if flags & DUE:
            dues.append(DUE_TIME.unpack_from(data, offset + RECORD_HEADER_BYTES)[0])
        times.append(timestamp_ms)
        offset += length
    assert len(dues) in (0, len(lengths))
    return Measured(sizes, dues or None, min(times), max(times))


def unpack_records(data: bytes) -> Iterator[Record]:
    """The records in `data`; stops at a record that does not fit."""
    offset = 0
    while offset < len(data):
        record = unpack_record(data, offset)
        if record is None:
            return
        yield record
        offset += record.length
