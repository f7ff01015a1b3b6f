"""The frame that log and ledger share: file headers and batches. Pure: bytes in, values out.

All integers are little-endian. A batch's header has a check of its own: bodies of messages can be
full of what looks like headers, and the check tells these apart before any body is read.

    file     = file header (64) , batch* , [ footer , trailer (64) ]      (footer: sealed segments)
    batch    = batch header (48) , body

This file does not know what is in a body: see record.py and write/ledger.py.
"""

import struct
from dataclasses import dataclass

from xxhash import xxh3_64, xxh3_64_intdigest

from qlog.storage.bytes.checks import U32

# Format 1, before the first release: batch headers had no check of their own. Format 2, qlog 0.1.0:
# records had no due times, and nothing knew the sizes of bodies.
FORMAT_VERSION = 3

# magic 8s, version u16, header length u16, flags u32, directory uuid 16s, file id u32, 0 u32, base
# u64 (segment: LSN of the first record; ledger: number of the first batch), epoch u64, xxh3 u64
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
_BATCH_FIELDS = struct.Struct("<IIQQQ")  # the fields that the check covers
_BATCH_CHECK = struct.Struct("<4xI32s")
BATCH_MAGIC = 0x8F51_B47C
BATCH_MAGIC_BYTES = struct.pack("<I", BATCH_MAGIC)


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
        """LSNs are missing between batches: their messages are settled, or lost and reported."""
        return bool(self.flags & SPARSE)


def pack_file_header(
    magic: bytes, uuid: bytes, file_id: int, base: int, epoch: int, flags: int = 0
) -> bytes:
    head = FILE_HEADER.pack(
        magic, FORMAT_VERSION, FILE_HEADER_BYTES, flags, uuid, file_id, 0, base, epoch, 0
    )[:-8]
    return head + struct.pack("<Q", xxh3_64_intdigest(head, file_id))


def unpack_file_header(data: bytes) -> FileHeader | None:
    """The header at the start of `data`; None when it is damaged, or no header is there."""
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
    """The header of a batch. Write the body, in any number of pieces, right behind it."""
    size = sum(map(len, body))
    fields = _BATCH_FIELDS.pack(size, count, epoch, base, durable)
    check = xxh3_64_intdigest(fields, seed) & U32
    head = struct.pack("<II", BATCH_MAGIC, check) + fields
    digest = xxh3_64(head, seed)
    for piece in body:
        digest.update(piece)
    return head + struct.pack("<Q", digest.intdigest())


def unpack_batch_header(data: bytes, offset: int = 0) -> BatchHeader | None:
    """The header at `offset`; None without its magic.

    Other bytes can look like a header: see `batch_header_is_whole`.
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
    """Whether the header at `offset` was written there as a header.

    Nobody who does not know the directory's uuid can make bytes that pass. Says nothing of the
    body.
    """
    if len(data) - offset < BATCH_HEADER_BYTES:
        return False
    check, fields = _BATCH_CHECK.unpack_from(data, offset)
    return bool(xxh3_64_intdigest(fields, seed) & U32 == check)


def batch_is_whole(seed: int, header_data: bytes, body: bytes, digest: int) -> bool:
    """Whether header and body are what was written; `header_data` are the header's 48 bytes."""
    actual = xxh3_64(header_data[: BATCH_HEADER_BYTES - 8], seed)
    actual.update(body)
    return actual.intdigest() == digest
