"""The batches of a ledger file, decoded: what was settled and delivered, and about when.

Damage is passed on as a batch without records, never left out. Times are those of the broker's
clock. A batch without a time happened within a second after the last time in the file.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from qlog.storage import journal
from qlog.storage.lanes.settled import BLOCK, Settled
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
from qlog.tools.inspect.look.decode import time_text
from qlog.tools.inspect.look.definitions import entry_text
from qlog.tools.inspect.look.directory import Directory


@dataclass(slots=True)
class LedgerBatch:
    """A batch; or, with `damage`, the bytes where batches should be."""

    file: str
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

    @property
    def time(self) -> str | None:
        return time_text(self.time_ms)

    @property
    def record_count(self) -> int:
        return len(self.records)


def batches_of(directory: Directory, view: FileView) -> Iterator[LedgerBatch]:
    """All of a ledger file, in order."""
    time_ms: int | None = None
    is_snapshot = True
    for stretch in directory.stretches(view):
        if stretch.verdict is Verdict.BLANK:
            continue
        item = LedgerBatch(directory.relative(view.path), stretch.position, stretch.end)
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
    match record:
        case journal.Settled(_, flat):
            return sorted(_pairs(flat))
        case journal.LaneState(_, _, floor, _, bits_of):
            settled = Settled()
            for block, bits in bits_of.items():
                settled.add_settled(block, bits)
            settled.mark(0, floor)
            end = max([floor, *((block + 1) * BLOCK for block in bits_of)])
            ranges = []
            at = 0
            while at < end:
                start, stop = settled.stretch(at, end, end)
                if start > at:
                    ranges.append((at, start))
                at = stop
            return ranges
    return []


def _pairs(flat: Sequence[int]) -> Iterator[tuple[int, int]]:
    return zip(flat[0::2], flat[1::2], strict=True)


# How records and their fields are called in JSON, and what is said of them.
_KINDS = {
    journal.Settled: "ack",
    journal.LaneState: "lane",
    journal.LaneDeleted: "lane_deleted",
    journal.Delivered: "delivered",
    journal.Attempts: "attempts",
    journal.Restored: "restored",
    journal.Defined: "defined",
    journal.Time: "time",
    Segments: "segments",
    SegmentDropped: "segment_given_up",
    SegmentReplaced: "segments_replaced",
    SnapshotEnd: "snapshot_end",
    Unknown: "unknown",
}
_KEYS = {
    "lane_id": "lane",
    "upto": "delivered_below",
    "delivered": "delivered_below",
    "next_qseq": "next_offset",
    "bits": "ranges",
    "old_ids": "ids",
    "ms": "timestamp_ms",
    "kind": "what",
    "value": "deleted",
    "packed": "raw",
}
_TEXTS = {
    "ack": "settled {ranges}",
    "lane": "next {next_offset}, delivered below {delivered_below}, settled {ranges}",
    "lane_deleted": "the queue was deleted",
    "delivered": "delivered below {delivered_below}",
    "restored": "restored {ranges}",
    "segments": "segments there: {ids}; the next is {next_id}",
    "segment_given_up": "segment {id} was given up",
    "segments_replaced": "segment {id} replaces {ids}",
    "snapshot_end": "the snapshot is complete",
    "time": "",  # it is shown beside the batch
    "unknown": "unknown: {raw}",
}


def described(record: Record) -> dict[str, Any]:
    """A record for JSON; what is not known is passed on raw."""
    item = {_KEYS.get(key, key): value for key, value in record._asdict().items()}
    match record:
        case journal.Settled() | journal.LaneState():
            item["ranges"] = _inclusive(settled_ranges(record))
        case journal.Restored(_, flat):
            item["ranges"] = _inclusive(_pairs(flat))
        case journal.Attempts(_, flat):
            triples = zip(flat[0::3], flat[1::3], flat[2::3], strict=True)
            item["ranges"] = [[first, end - 1, number] for first, end, number in triples]
        case journal.Defined(_, _, value):  # which may have a secret in it
            item["deleted"] = value is None
        case Unknown(packed):
            item["raw"] = repr(packed)
    return {"kind": _KINDS[type(record)], **item}


def told(item: dict[str, Any]) -> str:
    """A record of JSON in words; empty when it is shown otherwise."""
    match item["kind"]:
        case "attempts":
            return "; ".join(
                f"came back {number} times: {ranges_text([[first, last]])}"
                for first, last, number in item["ranges"]
            )
        case "defined":
            done = "deleted" if item["deleted"] else "defined"
            return f"{entry_text(item['what'], item['name'])} was {done}"
        case kind:
            ids = _ranges_of(sorted(item.get("ids", ())))
            ranges = {"ranges": item.get("ranges", ()), "ids": ids}
            texts = {key: ranges_text(value) or "none" for key, value in ranges.items()}
            return _TEXTS[kind].format(**item | texts)


def _inclusive(ranges: Iterable[tuple[int, int]]) -> list[list[int]]:
    return [[first, end - 1] for first, end in ranges]


def _ranges_of(ids: Iterable[int]) -> list[list[int]]:
    """Ids in order as ranges."""
    ranges: list[list[int]] = []
    for id_ in ids:
        if ranges and ranges[-1][1] == id_ - 1:
            ranges[-1][1] = id_
        else:
            ranges.append([id_, id_])
    return ranges


def ranges_text(ranges: Sequence[Sequence[int]], shown_max: int = 8) -> str:
    """Ranges of which both ends count, for people."""
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in ranges]
    more = len(texts) - shown_max
    return ", ".join(texts[:shown_max]) + (f" and {more} more ranges" if more > 0 else "")
