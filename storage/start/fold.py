"""What the ledger says, record by record: definitions, settlements, and which segments must exist.

Pure: records in, state out, in their order. Recovery folds them into lanes, and the tools into
something simpler. Whether these are all records that were written is for judge.py to say.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from qlog.storage.catalog import Definition
from qlog.storage.lanes.attempts import Attempts
from qlog.storage.write.ledger import (
    ACK,
    ATTEMPTS,
    DEFINED,
    DELIVERED,
    LANE,
    LANE_DELETED,
    RESTORED,
    SEGMENT_DROPPED,
    SEGMENT_REPLACED,
    SEGMENTS,
    SNAPSHOT_END,
    Record,
    ack_ranges,
    attempts_ranges,
    lane_bitmaps,
)

COMPACTED = 1 << 30  # ids of segments that compaction wrote begin here


class Settlements(Protocol):
    """Where the settlements of one lane go."""

    delivered: int
    attempts: Attempts

    def mark(self, first: int, end: int) -> object:
        """The messages [first, end) are settled."""

    def add_settled(self, block: int, bits: int) -> None:
        """The messages of a block whose bits are set are settled."""

    def restore(self, first: int, end: int) -> None:
        """The messages [first, end) are not settled any more."""


S = TypeVar("S", bound=Settlements)


@dataclass(slots=True)
class SegmentFacts:
    """Which segments a ledger file says must exist, which were given up, and which replaced."""

    listed: set[int] = field(default_factory=set)  # segments that must exist, below `listed_end`
    listed_end: int = 0
    listed_end_lsn: int = 0  # where the records of the segments below `listed_end` end
    dropped: dict[int, int] = field(default_factory=dict)  # id -> end LSN
    replaced: dict[int, int] = field(default_factory=dict)  # id -> the segment it went into
    complete: bool = False  # the snapshot at the file's head is there

    def apply(self, record: Record) -> None:
        """Take in one record. Records of lanes and definitions are ignored here."""
        kind = record[0]
        if kind == SEGMENTS:
            _, self.listed_end, self.listed_end_lsn, *listed = record
            self.listed = set(listed)
        elif kind == SEGMENT_DROPPED:
            self.dropped[record[1]] = record[2]
        elif kind == SEGMENT_REPLACED:
            self.replaced.update(dict.fromkeys(record[2:], record[1]))
        elif kind == SNAPSHOT_END:
            self.complete = True

    @property
    def end_lsn(self) -> int:
        """The highest end LSN of the segments that were given up; 0 if none was."""
        ends = list(self.dropped.values())
        if self.listed_end - 1 not in self.listed:
            ends.append(self.listed_end_lsn)
        return max(ends, default=0)

    @property
    def next_id(self) -> int:
        """The id above all segments that are named here, compacted ones aside."""
        ids = [id_ for id_ in self.dropped.keys() | self.replaced.keys() if id_ < COMPACTED]
        return max([*(id_ + 1 for id_ in ids), self.listed_end, 1])

    @property
    def next_compacted_id(self) -> int:
        """The id above all compacted segments that are named here."""
        return 1 + max([COMPACTED - 1, *self.dropped, *self.listed, *self.replaced.values()])

    def given_up(self, present: Iterable[int]) -> set[int]:
        """Segments whose files count no more, and compacted segments that never came to count."""
        named = self.listed | set(self.replaced) | set(self.replaced.values())
        return {
            id_
            for id_ in present
            if id_ in self.dropped
            or (id_ not in named and (self.complete if id_ >= COMPACTED else id_ < self.listed_end))
        }

    def missing(self, present: Collection[int], needed: Iterable[int] = ()) -> list[int]:
        """The ids of segments that must exist, or are `needed`, and have no file."""
        plain = [id_ for id_ in present if id_ < COMPACTED]
        expected = self.listed | set(self.replaced.values()) | set(needed)
        expected.update(range(max(self.listed_end, 1), max(plain, default=0)))
        return sorted(expected - self.dropped.keys() - set(present))

    def sources(self, segment_id: int) -> set[int]:
        """All segments that went into this one, directly or by another."""
        found: set[int] = set()
        fresh = {segment_id}
        while fresh:
            fresh = {old for old, new in self.replaced.items() if new in fresh}
            found |= fresh
        return found


@dataclass(slots=True)
class DefinitionFacts:
    """What a ledger file says of definitions. Its snapshot carries all that there were."""

    entries: dict[Definition, bytes] = field(default_factory=dict)
    said: dict[Definition, int] = field(default_factory=dict)  # the batch that said it last

    def apply(self, record: Record, number: int) -> None:
        """Take in one record of the batch with this number. All but definitions are ignored."""
        if record[0] == DEFINED:
            _, kind, name, value = record
            self.said[kind, name] = number
            if value is None:
                self.entries.pop((kind, name), None)
            else:
                self.entries[kind, name] = value

    def over(self, entries: Mapping[Definition, bytes], number: int) -> dict[Definition, bytes]:
        """All definitions, when `entries` are those that there were before the batch `number`."""
        found = dict(entries)
        for key, at in self.said.items():
            if at >= number:
                found.pop(key, None)
                if key in self.entries:
                    found[key] = self.entries[key]
        return found


@dataclass(slots=True)
class LaneFacts(Generic[S]):
    """What a ledger says of lanes. `of` gives the lane of an id, made when it is new."""

    of: Callable[[int], S]
    deleted: set[int] = field(default_factory=set)
    named_upto: dict[int, int] = field(default_factory=dict)  # lane -> above all qseqs named

    def apply(self, record: Record) -> None:
        """Take in one record. Records of segments and definitions are ignored here."""
        kind = record[0]
        if kind == LANE_DELETED:
            self.deleted.add(record[1])
        if kind not in (ACK, LANE, DELIVERED, ATTEMPTS, RESTORED) or record[1] in self.deleted:
            return
        lane_id = record[1]
        lane = self.of(lane_id)
        named = 0
        if kind == ACK:
            for first, end in ack_ranges(record):
                lane.mark(first, end)
                named = max(named, end)
        elif kind == RESTORED:
            for first, end in ack_ranges(record):
                lane.restore(first, end)
                named = max(named, end)
        elif kind == DELIVERED:
            named = record[2]
            lane.delivered = max(lane.delivered, named)
        elif kind == ATTEMPTS:
            for first, end, attempts in attempts_ranges(record):
                lane.attempts.note(first, end, attempts)
                named = max(named, end)
        else:
            _, _, named, floor, delivered, *_ = record
            lane.attempts.forget()  # the ones that count follow in the snapshot
            lane.delivered = max(lane.delivered, delivered)
            for block, bits in lane_bitmaps(record).items():
                lane.add_settled(block, bits)
            lane.mark(0, floor)
        self.named_upto[lane_id] = max(self.named_upto.get(lane_id, 0), named)
