"""What is left of damaged batches: every message that can be told from its neighbours, whole or
not.

A segment's footer, pointers of the index, and the lengths in the records themselves say where
messages lie. Where a length is damaged, the next record is searched for: its hash proves it. The
hash of a record does not cover where the message went; a repair must compare that with other
evidence.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from qlog.storage.bytes.batch import BATCH_HEADER_BYTES, BATCH_MAGIC_BYTES, unpack_batch_header
from qlog.storage.bytes.record import (
    DUE,
    MESSAGE,
    PERSISTENT,
    RECORD_HEADER_BYTES,
    Record,
    unpack_record,
)

Target = tuple[int, int]  # lane, qseq

# Where a record begins there are kind, flags and two zeros eight bytes later.
_KIND_AT = 8
_KINDS = re.compile(rb"(?=\x01[\x00-\x03]\x00\x00)")
assert MESSAGE == 1 and PERSISTENT | DUE == 3


@dataclass(frozen=True, slots=True)
class Known:
    """A message by a footer, or by the index (some of its targets, then)."""

    length: int
    targets: tuple[Target, ...]
    lsn: int | None = None


@dataclass(frozen=True, slots=True)
class Casualty:
    """A message in damaged bytes, or bytes in which none can be told.

    `record` is what decodes of it. `whole`: everything in it is right, by all that is known. `lsn`
    is None when it is unknown.
    """

    position: int
    length: int
    lsn: int | None
    targets: tuple[Target, ...]
    record: Record | None
    whole: bool


def pairs(targets: Sequence[int]) -> tuple[Target, ...]:
    """(lane, qseq) of each, from lane, qseq, lane, qseq, …"""
    return tuple(zip(targets[0::2], targets[1::2], strict=True))


def salvage(
    data: bytes, position: int, known: Mapping[int, Known], lsn: int | None, lsn_end: int | None
) -> Iterator[Casualty]:
    """The messages of damaged batches that stand at `position` of a file, and fill `data`.

    `known`: by position in the file. `lsn`: of the first message; `lsn_end`: behind the last.
    """
    facts = {place - position: fact for place, fact in known.items()}  # by place in the data
    offset = 0
    if not data.startswith(BATCH_MAGIC_BYTES):  # a record stands behind the damaged header
        first = min((place for place in facts if 0 <= place < len(data)), default=1 << 32)
        offset = min(first, BATCH_HEADER_BYTES)
    while offset < len(data):
        at = position + offset
        header = unpack_batch_header(data, offset)
        if header is not None and offset not in facts:
            if (lsn is None or header.base >= lsn) and (lsn_end is None or header.base < lsn_end):
                lsn = header.base
            offset += BATCH_HEADER_BYTES
            continue
        record = unpack_record(data, offset)
        targets = () if record is None else pairs(record.targets)
        fact = facts.get(offset)
        if fact is not None:
            whole = (
                record is not None
                and record.whole
                and record.length == fact.length
                and set(fact.targets) <= set(targets)
            )
            lsn = fact.lsn if fact.lsn is not None else lsn
            yield Casualty(at, fact.length, lsn, targets if whole else fact.targets, record, whole)
            offset += fact.length
        elif record is not None and (
            record.whole or _is_boundary(data, offset + record.length, facts)
        ):
            yield Casualty(at, record.length, lsn, targets, record, record.whole)
            offset += record.length
        else:  # a damaged length, or bytes that are no message at all
            end = _next(data, offset + 1, facts)
            yield Casualty(at, end - offset, lsn, (), record, False)
            offset = end
            lsn = None  # how many there were cannot be known
        lsn = None if lsn is None else lsn + 1


def _is_boundary(data: bytes, offset: int, facts: Mapping[int, Known]) -> bool:
    if offset == len(data) or offset in facts or unpack_batch_header(data, offset) is not None:
        return True
    record = unpack_record(data, offset)
    return record is not None and record.whole


def _next(data: bytes, start: int, facts: Mapping[int, Known]) -> int:
    """Where the next record or batch begins that can be told; the end when there is none."""
    end = min([*(place for place in facts if place >= start), len(data)])
    magic = data.find(BATCH_MAGIC_BYTES, start, end)
    if magic >= 0:
        end = magic
    for match in _KINDS.finditer(data, start + _KIND_AT, end + _KIND_AT):
        offset = match.start() - _KIND_AT
        record = unpack_record(data, offset)
        if record is not None and record.whole and record.length >= RECORD_HEADER_BYTES:
            return offset
    return end
