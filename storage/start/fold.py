"""What the ledger says, record by record: definitions, settlements, and which segments must exist.

Pure: records in (as write/ledger.py unpacks them), state out, in their order. Recovery folds them
into lanes, and the tools into something simpler. Whether these are all records that were written is
for judge.py to say.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from qlog.storage import journal
from qlog.storage.catalog import Definition
from qlog.storage.lanes.attempts import Attempts
from qlog.storage.write.ledger import (
    Local,
    SegmentDropped,
    SegmentReplaced,
    Segments,
    SnapshotEnd,
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

    def forget(self) -> None:
        """What is settled above the floor, and what came back, is said anew."""


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

    def apply(self, record: Local) -> None:
        """Take in one fact of the directory."""
        match record:
            case Segments(next_id, next_lsn, ids):
                self.listed_end, self.listed_end_lsn = next_id, next_lsn
                self.listed = set(ids)
            case SegmentDropped(segment_id, end_lsn):
                self.dropped[segment_id] = end_lsn
            case SegmentReplaced(segment_id, old_ids):
                self.replaced.update(dict.fromkeys(old_ids, segment_id))
            case SnapshotEnd():
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

    def apply(self, entry: journal.Defined, number: int) -> None:
        """Take in one definition, of the batch with this number."""
        kind, name, value = entry
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

    def apply(self, entry: journal.OfLane) -> None:
        """Take in what happened to a lane."""
        lane_id = entry.lane_id
        if lane_id in self.deleted:
            return
        if isinstance(entry, journal.LaneDeleted):
            self.deleted.add(lane_id)
            return
        lane = self.of(lane_id)
        named = 0
        if isinstance(entry, journal.Settled):
            ranges = entry.ranges
            for first, end in zip(ranges[0::2], ranges[1::2], strict=True):
                lane.mark(first, end)
                named = max(named, end)
        elif isinstance(entry, journal.Delivered):
            named = entry.upto
            lane.delivered = max(lane.delivered, named)
        elif isinstance(entry, journal.Attempts):
            ranges = entry.ranges
            for first, end, number in zip(ranges[0::3], ranges[1::3], ranges[2::3], strict=True):
                lane.attempts.note(first, end, number)
                named = max(named, end)
        elif isinstance(entry, journal.Restored):
            ranges = entry.ranges
            for first, end in zip(ranges[0::2], ranges[1::2], strict=True):
                lane.restore(first, end)
                named = max(named, end)
        else:
            named = entry.next_qseq
            # The index may be older: what it has as settled can have been restored since.
            lane.forget()
            lane.delivered = max(lane.delivered, entry.delivered)
            for block, bits in entry.bits.items():
                lane.add_settled(block, bits)
            lane.mark(0, entry.floor)
        self.named_upto[lane_id] = max(self.named_upto.get(lane_id, 0), named)
