"""The bytes of a stream's segments. Pure: bytes in, values out.

    segment  = file header (64) , batch* , [ footer , trailer (64) ]     (footer: sealed segments)
    batch    = batch header (48) , body                                   (as bytes/batch.py has them)
    body     = head (16) , meta length u32 * metas , [ meta number u32 * messages ] ,
               size u32 * messages , time u64 * messages , metas , bodies
    footer   = place (24) *

In the header of a file `base` is the offset that the file begins with, and the id is that of the
stream's lane. In the header of a batch `base` is the offset of the first message, and `durable` is
the latest time of any message up to its end, in ms: it never falls from one batch to the next. The
batches of a file follow one another without a gap in their offsets. Meta numbers are left out if there is one meta. All integers are little-endian. Each hash
is seeded with directory, lane, file and position.
"""

import struct
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from qlog.storage.bytes.batch import BATCH_HEADER_BYTES, pack_batch
from qlog.storage.bytes.checks import BIG_ENDIAN, U64, little_endian
from qlog.storage.lanes.run import M, Slice

STREAM_MAGIC = b"QLOGSTR\n"
# The number of metas u32, flags u32, 0 u64.
BODY_HEAD = struct.Struct("<IIQ")
# The offset of a batch, its position in the file, and the latest time up to its end.
PLACE = struct.Struct("<QQQ")
# magic 8s, 0 u64, the offset behind the last message u64, latest time u64, position of the footer
# u64, number of places u64, xxh3 u64 of the footer, xxh3 u64 of what stands before it here
TRAILER = struct.Struct("<8sQQQQQQQ")
TRAILER_BYTES = TRAILER.size
assert TRAILER_BYTES == 64
TRAILER_MAGIC = b"QLOGSTE\n"
_LANE_AND_BASE = struct.Struct("<QQ")


class Place(NamedTuple):
    """Where a batch begins, and the latest time (ms) of any message up to its end."""

    offset: int
    position: int
    latest_ms: int


@dataclass(frozen=True, slots=True)
class Trailer:
    """The end of a sealed segment: what it has, and where its footer is."""

    end: int
    latest_ms: int
    footer_position: int
    count: int
    footer_hash: int


def file_seed(uuid: bytes, lane_id: int, base: int) -> int:
    """What all hashes of one segment are seeded with, beside their positions."""
    return xxh3_64_intdigest(_LANE_AND_BASE.pack(lane_id, base), xxh3_64_intdigest(uuid))


def seed_at(seed: int, position: int) -> int:
    """The seed of a hash at a position of the file."""
    return (seed ^ position) & U64


def pack_messages(
    seed: int, position: int, epoch: int, messages: Slice[M], latest_ms: int
) -> list[bytes]:
    """A batch at a position of a file, as buffers. `latest_ms`: see the head of this file."""
    metas, bodies = messages.metas, messages.bodies
    numbers: dict[bytes, int] = {}
    which = [numbers.setdefault(meta.packed, len(numbers)) for meta in metas]
    packed = list(numbers)
    columns = [
        BODY_HEAD.pack(len(packed), 0, 0),
        little_endian(array("I", map(len, packed))),
        little_endian(array("I", which)) if len(packed) > 1 else b"",
        little_endian(messages.sizes),
        little_endian(messages.times_ms),
    ]
    body = b"".join(chain(columns, packed, bodies))
    base = messages.first_qseq
    header = pack_batch(seed_at(seed, position), len(bodies), epoch, base, latest_ms, body)
    return [header, body]


def unpack_messages(
    body: bytes, base: int, count: int, decode: Callable[[bytes, int, int], M]
) -> Slice[M]:
    """The messages of a batch that is whole. `decode` is that of `Store.open`."""
    meta_count, _, _ = BODY_HEAD.unpack_from(body)
    at = BODY_HEAD.size
    lengths, at = _column("I", body, at, meta_count)
    which = None
    if meta_count > 1:
        which, at = _column("I", body, at, count)
    sizes, at = _column("I", body, at, count)
    times, at = _column("Q", body, at, count)
    packed, at = _cut(body, at, lengths)
    bodies, at = _cut(body, at, sizes)
    assert at == len(body)
    hashes = list(map(xxh3_64_intdigest, packed))
    known: dict[tuple[int, int], M] = {}
    metas: list[M] = []
    numbers: Sequence[int] = [0] * count if which is None else which
    for key in zip(numbers, sizes, strict=True):
        meta = known.get(key)
        if meta is None:
            number, size = key
            meta = known[key] = decode(packed[number], size, hashes[number])
        metas.append(meta)
    return Slice(base, metas, bodies, times, sizes)


def batch_bytes(messages: Slice[M]) -> int:
    """About how many bytes the batch of these messages takes: not fewer."""
    count = len(messages.bodies)
    metas = {meta.packed for meta in messages.metas}
    fixed = BATCH_HEADER_BYTES + BODY_HEAD.size
    return fixed + 16 * count + sum(map(len, metas)) + 4 * len(metas) + sum(messages.sizes)


def pack_footer(
    seed: int, position: int, places: Sequence[Place], end: int, latest_ms: int
) -> bytes:
    """Footer and trailer of a segment whose batches end at `position`."""
    footer = b"".join(PLACE.pack(*place) for place in places)
    digest = xxh3_64_intdigest(footer, seed_at(seed, position))
    head = TRAILER.pack(TRAILER_MAGIC, 0, end, latest_ms, position, len(places), digest, 0)[:-8]
    at = position + len(footer)
    return footer + head + struct.pack("<Q", xxh3_64_intdigest(head, seed_at(seed, at)))


def unpack_trailer(seed: int, data: bytes, position: int) -> Trailer | None:
    """The trailer that stands at `position`; None: there is none, or it is damaged."""
    if len(data) != TRAILER_BYTES:
        return None
    magic, _, end, latest_ms, footer, count, digest, own = TRAILER.unpack(data)
    if magic != TRAILER_MAGIC or xxh3_64_intdigest(data[:-8], seed_at(seed, position)) != own:
        return None
    if footer + count * PLACE.size != position:
        return None
    return Trailer(end, latest_ms, footer, count, digest)


def unpack_footer(seed: int, trailer: Trailer, data: bytes) -> list[Place] | None:
    """The places of a footer; None: it is damaged."""
    if len(data) != trailer.count * PLACE.size:
        return None
    if xxh3_64_intdigest(data, seed_at(seed, trailer.footer_position)) != trailer.footer_hash:
        return None
    return [Place(*place) for place in PLACE.iter_unpack(data)]


def _column(kind: str, body: bytes, at: int, count: int) -> "tuple[array[int], int]":
    column: array[int] = array(kind)
    end = at + column.itemsize * count
    column.frombytes(body[at:end])
    if BIG_ENDIAN:
        column.byteswap()
    return column, end


def _cut(body: bytes, at: int, lengths: "array[int]") -> tuple[list[bytes], int]:
    ends = list(accumulate(lengths, initial=at))
    return [body[start:end] for start, end in pairwise(ends)], ends[-1]
