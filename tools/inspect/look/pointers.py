"""The index, read whole, and compared with log and ledger.

Every message must have a pointer, to its record, if the log had it at the checkpoint, the index
calls itself complete up to it, and the ledger does not count it as settled. And every pointer to
such a message must have a record. A message that was settled since the checkpoint may have a
pointer or not. The comparison goes block by block, so that millions of pointers are compared in
seconds.
"""

import struct
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

import msgpack

from qlog.storage.bytes.footer import PlacedRun
from qlog.storage.index.due_rows import DUE_KEY, Due, length_of
from qlog.storage.index.index import SPILL, Checkpoint, LaneRow, Live, Usage, unpack_checkpoint
from qlog.storage.lanes.settled import BLOCK, FULL, Settled
from qlog.tools.inspect.look.decode import lane_text
from qlog.tools.inspect.look.directory import Directory, look_again
from qlog.tools.inspect.look.environment import open_index, read
from qlog.tools.inspect.look.log import Segment, Survey, selected_bytes, survey
from qlog.tools.inspect.rows import counted, picked, progress

_KEY = struct.Struct(">IQ")
_NO_POINTERS = array("I")


@dataclass(slots=True)
class IndexContents:
    """All that is in the index, as of one moment."""

    usage: Usage
    file_bytes: int
    checkpoint: Checkpoint | None = None
    lanes: dict[int, LaneRow] = field(default_factory=dict)
    live: dict[int, Live] = field(default_factory=dict)
    settled: dict[int, Settled] = field(default_factory=dict)  # by lane
    # (lane, block) -> segment, position, length, body size of each message, one behind the other
    blocks: dict[tuple[int, int], "array[int]"] = field(default_factory=dict)
    dues: set[Due] = field(default_factory=set)  # of messages that wait
    damaged: list[str] = field(default_factory=list)  # rows

    def settled_bits(self, lane_id: int, block: int) -> int:
        """Which messages of a block are settled, by the index."""
        lane = self.settled.get(lane_id)
        return 0 if lane is None else FULL & ~lane.unsettled(block * BLOCK, BLOCK)


def read_contents(directory: Path) -> IndexContents:
    """Raises Unreadable, Forbidden."""
    return read(directory, _contents)


def _contents(directory: Path, lock: bool) -> IndexContents:
    with closing(open_index(directory, lock)) as index:
        contents = IndexContents(index.usage(), (directory / "data.mdb").stat().st_size)
        for database, key, value in index.rows():
            if value is None:
                contents.damaged.append(_row_text(database, key))
            else:
                _take(contents, database, key, value)
        return contents


def _take(contents: IndexContents, database: str, key: bytes, value: bytes) -> None:
    match database:
        case "checkpoint":
            contents.checkpoint = unpack_checkpoint(value)
        case "lanes":
            lane_id, row = struct.unpack(">I", key)[0], LaneRow(*msgpack.unpackb(value))
            contents.lanes[lane_id] = row
            lane = contents.settled.setdefault(lane_id, Settled())
            lane.floor, lane.full = row.floor, row.full
        case "segments":
            contents.live[struct.unpack(">I", key)[0]] = Live(*msgpack.unpackb(value))
        case "acked":
            lane_id, base = _KEY.unpack(key)
            lane = contents.settled.setdefault(lane_id, Settled())
            lane.bits[base // BLOCK] = int.from_bytes(value, "little")
        case "due":
            due_ms, lane_id, qseq = DUE_KEY.unpack(key)
            contents.dues.update(Due(due_ms, lane_id, qseq, length_of(value)).each())
        case "blocks":
            lane_id, base = _KEY.unpack(key)
            contents.blocks[lane_id, base // BLOCK] = array("I", value)


def _row_text(database: str, key: bytes) -> str:
    if database in ("blocks", "acked") and len(key) == _KEY.size:
        lane_id, base = _KEY.unpack(key)
        what = "pointers" if database == "blocks" else "settled bits"
        return f"the {what} of lane {lane_id} from offset {base} on are damaged"
    return f"the row {key.hex()} of `{database}` is damaged"


@dataclass(slots=True)
class Difference:
    """Index and log do not agree about messages [first, end) of a lane."""

    lane_id: int
    first: int
    end: int
    what: str
    lsn: int | None  # of the first, where the log has it
    segment_id: int
    position: int

    def document(self, directory: Directory) -> dict[str, Any]:
        """For JSON; `text` is for people."""
        which = f"#{self.first}" + (f"-{self.end - 1}" if self.end > self.first + 1 else "")
        where = f"segment {self.segment_id} byte {self.position}"
        if self.lsn is not None:
            where = f"LSN {self.lsn}, {where}"
        return {
            **directory.named(self.lane_id),
            **picked(
                self, "offset_first=first offset_end=end what lsn segment=segment_id position"
            ),
            "text": f"{lane_text(directory, self.lane_id)} {which}: {self.what} ({where})",
        }


@dataclass(slots=True)
class Comparison:
    pointers: int = 0  # to messages that are not settled
    spilled: int = 0  # of them to messages that are not in the log
    differences: list[Difference] = field(default_factory=list)
    counts: list[str] = field(default_factory=list)  # counters that are wrong

    @property
    def differs(self) -> bool:
        return bool(self.differences or self.counts)

    def add(
        self, lane_id: int, qseq: int, what: str, lsn: int | None, segment_id: int, position: int
    ) -> None:
        """A message about which index and log differ; it may go on the difference before."""
        last = self.differences[-1] if self.differences else None
        if last and (last.lane_id, last.end, last.what, last.segment_id) == (
            *(lane_id, qseq, what, segment_id),
        ):
            last.end += 1
        else:
            difference = Difference(lane_id, qseq, qseq + 1, what, lsn, segment_id, position)
            self.differences.append(difference)


def compare(
    directory: Directory,
    contents: IndexContents,
    segments: Iterable[Segment],
    advance: Callable[[int], None] = lambda size: None,
) -> Comparison:
    """Compare the index with a survey of the log; `advance` is told how many bytes are done."""
    if contents.checkpoint is None:
        return Comparison()
    comparing = _Comparing(directory, contents, contents.checkpoint.lsn)
    for segment in segments:
        if segment.state != "missing":
            comparing.take(segment)
            advance(segment.size_bytes)
    for key, columns in contents.blocks.items():
        comparing.count(*key, columns)
    result = comparing.result
    result.spilled = sum(comparing.spilled.values())
    result.pointers = sum(comparing.alive.values()) + result.spilled
    if not contents.damaged:  # else they cannot be right
        result.counts = list(comparing.wrong_counts())
    return result


class _Comparing:
    """Log and index side by side: first each segment, then each block of pointers."""

    def __init__(self, directory: Directory, contents: IndexContents, end_lsn: int) -> None:
        """`end_lsn`: every waiting message below this LSN must have a pointer."""
        self.directory = directory
        self.contents = contents
        self.end_lsn = end_lsn
        self.result = Comparison()
        self.found: dict[tuple[int, int], int] = {}  # (lane, block) -> bits of those with a record
        self.ids: set[int] = set()  # of the segments
        self.damaged: set[int] = set()
        self.alive: Counter[int] = Counter()  # by lane
        self.alive_bytes: Counter[int] = Counter()
        self.spilled: Counter[int] = Counter()
        self.live: defaultdict[int, Live] = defaultdict(Live)  # by segment
        self.dues: set[Due] = set()  # by the log, of messages that wait and have a pointer

    def take(self, segment: Segment) -> None:
        """Check that every waiting message of a segment has its pointer."""
        self.ids.add(segment.segment_id)
        if segment.damage:
            self.damaged.add(segment.segment_id)
        lsn = segment.base_lsn or 0  # in a sparse one that is too low, but far below the checkpoint
        for run in segment.columns.runs():
            for lane_id, first in zip(run.lanes, run.firsts, strict=True):
                if segment.state != "given up" and not self.directory.is_gone(lane_id):
                    self._compare(segment.segment_id, lane_id, first, run, lsn)
            lsn += len(run.positions)

    def count(self, lane_id: int, block: int, columns: "array[int]") -> None:
        """Check that every pointer of a block has its message, and count them."""
        ours, positions, lengths, sizes = (columns[at::4] for at in range(4))
        bits = ~self.contents.settled_bits(lane_id, block) & ((1 << len(ours)) - 1)
        strays = bits & ~self.found.get((lane_id, block), 0)
        for segment_id in set(ours) - {0}:
            of_it = bits
            if ours.count(segment_id) < len(ours):
                of_it &= sum(1 << at for at, other in enumerate(ours) if other == segment_id)
            if not of_it:
                continue
            tally = self.live[segment_id]
            tally.count += of_it.bit_count()
            tally.size += selected_bytes(lengths, of_it)
            if segment_id >= SPILL:
                self.spilled[lane_id] += of_it.bit_count()
                continue
            self.alive[lane_id] += of_it.bit_count()
            self.alive_bytes[lane_id] += selected_bytes(sizes, of_it)
            if segment_id in self.damaged:
                continue
            what = "record" if segment_id in self.ids else "segment"
            what = f"a pointer to a {what} that is not there"
            for slot in _slots(strays & of_it):
                qseq = block * BLOCK + slot
                if self.directory.unsettled(lane_id, qseq, 1):
                    self.result.add(lane_id, qseq, what, None, segment_id, positions[slot])

    def wrong_counts(self) -> Iterator[str]:
        """Counts of the index that differ from what was found."""
        for lane_id, row in self.contents.lanes.items():
            for count, found, text in (
                (row.alive, self.alive, "unsettled messages, and has {} pointers"),
                (row.spilled, self.spilled, "unsettled spilled messages, and has {} pointers"),
                (
                    row.alive_bytes,
                    self.alive_bytes,
                    "bytes of unsettled messages, and the pointers say {}",
                ),
            ):
                if count != found[lane_id]:
                    yield f"lane {lane_id} counts {count} {text.format(found[lane_id])}"
        for segment_id in sorted(self.contents.live.keys() | self.live.keys()):
            said, is_ = self.contents.live.get(segment_id, Live()), self.live[segment_id]
            if said != is_:
                yield (
                    f"segment {segment_id} counts {said.count} unsettled messages "
                    f"({said.size} bytes), and {is_.count} ({is_.size} bytes) point to it"
                )
        yield from self._wrong_dues()

    def _wrong_dues(self) -> Iterator[str]:
        """Due times that are wrong. Those without a message in the log go by pointers."""
        found = self.found
        known = {
            row
            for row in self.contents.dues
            if found.get((row.lane_id, row.qseq // BLOCK), 0) >> row.qseq % BLOCK & 1
        }
        wrong = Counter(due.lane_id for due in known ^ self.dues)
        for lane_id, count in sorted(wrong.items()):
            yield f"lane {lane_id} differs from the log in {counted(count, 'due time')}"

    def _compare(self, segment_id: int, lane_id: int, first: int, run: PlacedRun, lsn: int) -> None:
        """Compare one run in one of its lanes, block by block; `lsn` is the first message's."""
        row = self.contents.lanes.get(lane_id)
        placed_upto = 0 if row is None else row.placed_upto
        at = 0
        while at < len(run.positions):
            block, slot = divmod(first + at, BLOCK)
            count = min(len(run.positions) - at, BLOCK - slot)
            columns = self.contents.blocks.get((lane_id, block), _NO_POINTERS)
            matched = _matched(columns, slot, segment_id, run, at, count)
            if matched:
                before = self.found.get((lane_id, block), 0)
                self.found[lane_id, block] = before | matched << slot
            every = (1 << count) - 1
            settled = self.contents.settled_bits(lane_id, block) >> slot & every
            for offset in _slots(matched & ~settled if run.dues_ms is not None else 0):
                assert run.dues_ms is not None
                self.dues.add(Due(run.dues_ms[at + offset], lane_id, first + at + offset))
            wait = 0
            if settled or matched != every:
                wait = self.directory.unsettled(lane_id, first + at, count)
            for offset in _slots(wait & (settled | ~matched)):
                place, qseq = at + offset, first + at + offset
                what = "settled by the index, and not by the ledger"
                if not settled >> offset & 1:
                    if lsn + place >= self.end_lsn or qseq >= placed_upto:
                        continue
                    theirs = (*columns[4 * (slot + offset) :], 0)[0]
                    if theirs not in (0, segment_id):
                        continue  # to a copy elsewhere, which is judged where it lies
                    what = "a pointer to another place in the segment"
                    if not theirs:
                        what = "no pointer to a message that waits"
                position = run.positions[place]
                self.result.add(lane_id, qseq, what, lsn + place, segment_id, position)
            at += count


def _matched(
    columns: "array[int]", slot: int, segment_id: int, run: PlacedRun, at: int, count: int
) -> int:
    """Bits: which of a run's messages from `at` on the pointers from `slot` on lead to."""
    ours = columns[4 * slot : 4 * (slot + count)]
    theirs = [column[at : at + count] for column in (run.positions, run.lengths, run.sizes)]
    if ours[0::4].count(segment_id) == count and theirs == [ours[one::4] for one in (1, 2, 3)]:
        return (1 << count) - 1
    pointers = zip(ours[0::4], ours[1::4], ours[2::4], ours[3::4], strict=True)
    expected = zip(repeat(segment_id), *theirs)
    pairs = enumerate(zip(pointers, expected, strict=False))
    return sum(1 << offset for offset, (pointer, wanted) in pairs if pointer == wanted)


def _slots(bits: int) -> Iterator[int]:
    while bits:
        yield (bits & -bits).bit_length() - 1
        bits &= bits - 1


# -- with the log


def look_at_index(directory: Directory) -> tuple[IndexContents, Survey, Comparison]:
    """Index and log, and how they agree. Raises Unreadable, Forbidden.

    The index is read first: so ledger and log know at least as much. While a broker runs, a
    checkpoint or a compaction may come in between: then everything is looked at again.
    """

    def look(again: bool) -> tuple[IndexContents, Survey, Comparison]:
        contents = read_contents(directory.paths.index)
        directory.refresh()
        found = survey(directory)
        with progress("comparing", sum(view.size for view in found.views)) as advance:
            return contents, found, compare(directory, contents, found.segments, advance)

    return look_again(directory.in_use, look, lambda found: found[2].differs)
