"""The batches of a ledger file, decoded: what was settled and delivered, and about when.

Damage is passed on as a batch without records, never left out. Times are those of the broker's
clock. A batch without a time happened within a second after the last time in the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from qlog.storage import journal
from qlog.storage.lanes.settled import BLOCK
from qlog.storage.start.examine import FileView, Verdict
from qlog.storage.write.ledger import (
    Record,
    SegmentDropped,
    SegmentReplaced,
    Segments,
    SnapshotEnd,
    Unknown,
    unpack_body,
)
from qlog.tools.inspect.look.directory import Directory


@dataclass(slots=True)
class LedgerBatch:
    """A batch; or, with `damage`, the bytes where batches should be."""

    position: int
    end: int
    number: int | None = None
    epoch: int | None = None
    log_durable_lsn: int | None = None  # the log had been synced up to here
    synced_number: int | None = None  # and the ledger's batches below this one
    time_ms: int | None = None  # the last time in the file
    is_snapshot: bool = False  # part of what the file begins with
    records: list[Record] = field(default_factory=list)
    damage: str | None = None


def batches_of(directory: Directory, view: FileView) -> Iterator[LedgerBatch]:
    """All of a ledger file, in order."""
    time_ms: int | None = None
    is_snapshot = True
    for stretch in directory.stretches(view):
        if stretch.verdict is Verdict.BLANK:
            continue
        item = LedgerBatch(stretch.position, stretch.end)
        batch = stretch.batch
        if batch is None:
            item.damage = "the checksum is wrong, or it is torn"
            if stretch.header is not None:
                item.number = stretch.header.base
            yield item
            continue
        item.number = batch.header.base
        item.epoch = batch.header.epoch
        item.synced_number = batch.header.durable
        item.log_durable_lsn, item.records = unpack_body(batch.body)
        for record in item.records:
            if isinstance(record, journal.Time):
                time_ms = record.ms
        item.time_ms = time_ms
        item.is_snapshot = is_snapshot
        if any(isinstance(record, SnapshotEnd) for record in item.records):
            is_snapshot = False
        yield item


def lane_of(record: Record) -> int | None:
    """The lane that a record is about."""
    return record.lane_id if isinstance(record, journal.OfLane) else None


def settled_ranges(record: Record) -> list[tuple[int, int]]:
    """The (first, end) of the messages of its lane that a record settles."""
    if isinstance(record, journal.Settled):
        return sorted(_pairs(record.ranges))
    if not isinstance(record, journal.LaneState):
        return []
    floor = record.floor
    ranges = [(0, floor)] if floor else []
    for block, bits in sorted(record.bits.items()):
        for first, end in _runs(bits):
            first, end = max(first + block * BLOCK, floor), end + block * BLOCK
            if first >= end:
                continue
            if ranges and ranges[-1][1] == first:
                ranges[-1] = (ranges[-1][0], end)
            else:
                ranges.append((first, end))
    return ranges


def _pairs(flat: Sequence[int]) -> Iterator[tuple[int, int]]:
    return zip(flat[0::2], flat[1::2], strict=True)


def _runs(bits: int) -> Iterator[tuple[int, int]]:
    at = 0
    while bits:
        zeros = (bits & -bits).bit_length() - 1
        at += zeros
        bits >>= zeros
        ones = ((bits + 1) & ~bits).bit_length() - 1
        yield at, at + ones
        at += ones
        bits >>= ones


def described(record: Record) -> dict[str, Any]:
    """A record for JSON; what is not known is passed on raw."""
    match record:
        case journal.Settled(lane):
            return {"kind": "ack", "lane": lane, "ranges": _inclusive(settled_ranges(record))}
        case journal.LaneDeleted(lane):
            return {"kind": "lane_deleted", "lane": lane}
        case journal.Delivered(lane, below):
            return {"kind": "delivered", "lane": lane, "delivered_below": below}
        case journal.Restored(lane, flat):
            return {"kind": "restored", "lane": lane, "ranges": _inclusive(_pairs(flat))}
        case journal.Attempts(lane, flat):
            triples = zip(flat[0::3], flat[1::3], flat[2::3], strict=True)
            ranges = [[first, end - 1, number] for first, end, number in triples]
            return {"kind": "attempts", "lane": lane, "ranges": ranges}
        case journal.LaneState(lane, next_qseq, floor, delivered):
            return {
                "kind": "lane",
                "lane": lane,
                "next_offset": next_qseq,
                "floor": floor,
                "delivered_below": delivered,
                "ranges": _inclusive(settled_ranges(record)),
            }
        case Segments(next_id, next_lsn, ids):
            return {"kind": "segments", "next_id": next_id, "next_lsn": next_lsn, "ids": ids}
        case SegmentDropped(segment_id, end_lsn):
            return {"kind": "segment_given_up", "id": segment_id, "end_lsn": end_lsn}
        case SegmentReplaced(segment_id, ids):
            return {"kind": "segments_replaced", "id": segment_id, "ids": ids}
        case journal.Time(time_ms):
            return {"kind": "time", "timestamp_ms": time_ms}
        case SnapshotEnd():
            return {"kind": "snapshot_end"}
        case journal.Defined(what, name, value):  # the value may have a secret in it
            return {"kind": "defined", "what": what, "name": name, "deleted": value is None}
        case Unknown(packed):
            return {"kind": "unknown", "raw": repr(packed)}


def _inclusive(ranges: Iterable[tuple[int, int]]) -> list[list[int]]:
    return [[first, end - 1] for first, end in ranges]


def ranges_text(ranges: list[tuple[int, int]], shown_max: int = 8) -> str:
    """Ranges for people, both ends counting."""
    texts = [str(first) if end == first + 1 else f"{first}-{end - 1}" for first, end in ranges]
    more = len(texts) - shown_max
    return ", ".join(texts[:shown_max]) + (f" and {more} more ranges" if more > 0 else "")
