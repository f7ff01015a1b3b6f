"""The index, read whole, and compared with log and ledger.

A pointer is due for every message that the log had at the checkpoint, that the index says to be
complete for, and that the ledger does not count as settled; it must lie where the record does. And
each pointer to such a message must have its record. What was settled since the checkpoint may
or may not have one. Block by block, so that millions of pointers are compared in seconds.
"""

from __future__ import annotations

import struct
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack

from qlog.storage.index.index import SPILL, Checkpoint, LaneRow, Live, Usage, unpack_checkpoint
from qlog.storage.lanes.settled import BLOCK, FULL, contains
from qlog.tools.inspect.look.decode import lane_text
from qlog.tools.inspect.look.directory import Directory, look_again
from qlog.tools.inspect.look.environment import open_index, read
from qlog.tools.inspect.look.log import Segment, Survey, selected_bytes, survey, views_of
from qlog.tools.inspect.rows import progress

_KEY = struct.Struct(">IQ")


@dataclass(slots=True)
class IndexContents:
    """All that is in the index, as of one moment."""

    usage: Usage
    file_bytes: int
    checkpoint: Checkpoint | None = None
    lanes: dict[int, LaneRow] = field(default_factory=dict)
    live: dict[int, Live] = field(default_factory=dict)
    settled: dict[tuple[int, int], int] = field(default_factory=dict)  # (lane, block) -> bits
    blocks: dict[tuple[int, int], bytes] = field(default_factory=dict)  # and their columns
    damaged: list[str] = field(default_factory=list)  # rows

    def settled_bits(self, lane_id: int, block: int) -> int:
        """Which messages of a block are settled, by the index."""
        bits = self.settled.get((lane_id, block), 0)
        lane = self.lanes.get(lane_id)
        if lane is not None and contains(lane.full, block):
            return FULL
        if lane is not None and lane.floor > block * BLOCK:
            bits |= (1 << min(lane.floor - block * BLOCK, BLOCK)) - 1
        return bits


def read_contents(directory: Path) -> IndexContents:
    """Raises Unreadable, Forbidden."""
    return read(directory, _contents)


def _contents(directory: Path, lock: bool) -> IndexContents:
    index = open_index(directory, lock)
    try:
        contents = IndexContents(index.usage(), (directory / "data.mdb").stat().st_size)
        for database, key, value in index.rows():
            if value is None:
                contents.damaged.append(_row_text(database, key))
            else:
                _take(contents, database, key, value)
        return contents
    finally:
        index.close()


def _take(contents: IndexContents, database: str, key: bytes, value: bytes) -> None:
    match database:
        case "checkpoint":
            contents.checkpoint = unpack_checkpoint(value)
        case "lanes":
            contents.lanes[struct.unpack(">I", key)[0]] = LaneRow(*msgpack.unpackb(value))
        case "segments":
            contents.live[struct.unpack(">I", key)[0]] = Live(*msgpack.unpackb(value))
        case "acked":
            lane_id, base = _KEY.unpack(key)
            contents.settled[lane_id, base // BLOCK] = int.from_bytes(value, "little")
        case "blocks":
            lane_id, base = _KEY.unpack(key)
            contents.blocks[lane_id, base // BLOCK] = value


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
    lsn: int | None = None  # of the first, where the log has it
    segment_id: int | None = None
    position: int | None = None

    def continues(self, other: Difference) -> bool:
        return (
            self.lane_id == other.lane_id
            and self.first == other.end
            and self.what == other.what
            and self.segment_id == other.segment_id
        )


@dataclass(slots=True)
class Comparison:
    """What came of it."""

    pointers: int = 0  # to messages that are not settled
    spilled: int = 0  # of them to messages that are not in the log
    differences: list[Difference] = field(default_factory=list)
    counts: list[str] = field(default_factory=list)  # counters that are wrong

    @property
    def differs(self) -> bool:
        """Something does not agree."""
        return bool(self.differences or self.counts)

    def add(self, item: Difference) -> None:
        if self.differences and item.continues(self.differences[-1]):
            self.differences[-1].end = item.end
        else:
            self.differences.append(item)


def compare(
    directory: Directory,
    contents: IndexContents,
    segments: Iterable[Segment],
    advance: Callable[[int], None] = lambda size: None,
) -> Comparison:
    """Hold the index against a survey of the log; `advance` hears of the bytes that are done."""
    checkpoint = contents.checkpoint
    result = Comparison()
    if checkpoint is None:
        return result
    blocks = {key: _columns(value) for key, value in contents.blocks.items()}
    found: dict[tuple[int, int], int] = {}  # (lane, block) -> bits of pointers with their record
    ids = set()
    present = [segment for segment in segments if segment.state != "missing"]
    for segment in present:
        ids.add(segment.segment_id)
        lsn = segment.base_lsn or 0  # in a sparse one that is too low, but far below the checkpoint
        for placed in segment.columns.runs():
            positions = placed.positions
            for lane_id, first in zip(placed.lanes, placed.firsts, strict=True):
                if segment.state != "given up" and not directory.is_gone(lane_id):
                    run = _Run(
                        segment.segment_id,
                        lane_id,
                        first,
                        positions,
                        placed.lengths,
                        placed.sizes,
                        lsn,
                    )
                    _compare_run(directory, contents, blocks, found, run, checkpoint, result)
            lsn += len(positions)
        advance(segment.size_bytes)
    damaged = {segment.segment_id for segment in present if segment.damage}
    alive: Counter[int] = Counter()
    alive_bytes: Counter[int] = Counter()
    spilled: Counter[int] = Counter()
    live: dict[int, Live] = {}
    for (lane_id, block), columns in blocks.items():
        ours = columns[0::4]
        lengths = columns[2::4]
        sizes = columns[3::4]
        bits = ~contents.settled_bits(lane_id, block) & ((1 << len(ours)) - 1)
        strays = bits & ~found.get((lane_id, block), 0)
        for segment_id in set(ours):
            if not segment_id:
                continue
            of_it = bits
            if ours.count(segment_id) < len(ours):
                of_it &= _bits(other == segment_id for other in ours)
            if not of_it:
                continue
            tally = live.setdefault(segment_id, Live())
            tally.count += of_it.bit_count()
            tally.size += selected_bytes(lengths, of_it)
            (spilled if segment_id >= SPILL else alive)[lane_id] += of_it.bit_count()
            if segment_id < SPILL:
                alive_bytes[lane_id] += selected_bytes(sizes, of_it)
            if segment_id < SPILL and segment_id not in damaged:
                what = "a pointer to a record that is not there"
                if segment_id not in ids:
                    what = "a pointer to a segment that is not there"
                for slot in _slots(strays & of_it):
                    qseq = block * BLOCK + slot
                    if directory.unsettled(lane_id, qseq, 1):
                        position = columns[4 * slot + 1]
                        result.add(
                            Difference(lane_id, qseq, qseq + 1, what, None, segment_id, position)
                        )
    result.pointers = sum(alive.values()) + sum(spilled.values())
    result.spilled = sum(spilled.values())
    result.counts = list(_wrong_counts(contents, alive, alive_bytes, spilled, live))
    return result


def _bits(flags: Iterable[bool]) -> int:
    return sum(1 << at for at, flag in enumerate(flags) if flag)


def _slots(bits: int) -> Iterator[int]:
    while bits:
        yield (bits & -bits).bit_length() - 1
        bits &= bits - 1


def _wrong_counts(
    contents: IndexContents,
    alive: Counter[int],
    alive_bytes: Counter[int],
    spilled: Counter[int],
    live: dict[int, Live],
) -> Iterator[str]:
    if contents.damaged:
        return  # they cannot be right
    for lane_id, row in contents.lanes.items():
        for name, said, is_ in (
            ("messages", row.alive, alive[lane_id]),
            ("spilled messages", row.spilled, spilled[lane_id]),
        ):
            if said != is_:
                yield f"lane {lane_id} counts {said} unsettled {name}, and has {is_} pointers"
        if row.alive_bytes != alive_bytes[lane_id]:
            yield (
                f"lane {lane_id} counts {row.alive_bytes} bytes of unsettled messages, and the "
                f"pointers say {alive_bytes[lane_id]}"
            )
    for segment_id in sorted(contents.live.keys() | live.keys()):
        said_live = contents.live.get(segment_id, Live())
        is_live = live.get(segment_id, Live())
        if said_live != is_live:
            yield (
                f"segment {segment_id} counts {said_live.count} unsettled messages "
                f"({said_live.size} bytes), and {is_live.count} ({is_live.size} bytes) point to it"
            )


@dataclass(slots=True)
class _Run:
    segment_id: int
    lane_id: int
    first: int
    positions: Any  # arrays
    lengths: Any
    sizes: Any  # of the bodies
    lsn: int  # of the first


def _compare_run(
    directory: Directory,
    contents: IndexContents,
    blocks: dict[tuple[int, int], array[int]],
    found: dict[tuple[int, int], int],
    run: _Run,
    checkpoint: Checkpoint,
    result: Comparison,
) -> None:
    lane_id = run.lane_id
    row = contents.lanes.get(lane_id)
    placed_upto = 0 if row is None else row.placed_upto
    at = 0
    many = len(run.positions)
    while at < many:
        block, slot = divmod(run.first + at, BLOCK)
        count = min(many - at, BLOCK - slot)
        columns = blocks.get((lane_id, block))
        positions = run.positions[at : at + count]
        lengths = run.lengths[at : at + count]
        sizes = run.sizes[at : at + count]
        end = slot + count
        matched = 0
        if (
            columns is not None
            and columns[4 * slot : 4 * end : 4].count(run.segment_id) == count
            and columns[4 * slot + 1 : 4 * end : 4] == positions
            and columns[4 * slot + 2 : 4 * end : 4] == lengths
            and columns[4 * slot + 3 : 4 * end : 4] == sizes
        ):
            matched = (1 << count) - 1
        if columns is not None and not matched:
            for offset in range(min(count, len(columns) // 4 - slot)):
                place = 4 * (slot + offset)
                pointer = (run.segment_id, positions[offset], lengths[offset], sizes[offset])
                if tuple(columns[place : place + 4]) == pointer:
                    matched |= 1 << offset
        if matched:
            found[lane_id, block] = found.get((lane_id, block), 0) | matched << slot
        every = (1 << count) - 1
        settled = contents.settled_bits(lane_id, block) >> slot & every
        if settled or matched != every:
            wait = directory.unsettled(lane_id, run.first + at, count)
            for offset in _slots(settled & wait):
                what = "settled by the index, and not by the ledger"
                _note(run, at + offset, what, result)
            for offset in _slots(wait & ~settled & ~matched):
                qseq = run.first + at + offset
                if run.lsn + at + offset < checkpoint.lsn and qseq < placed_upto:
                    _note_missing(columns, run, at + offset, result)
        at += count


def _note_missing(columns: array[int] | None, run: _Run, offset: int, result: Comparison) -> None:
    """A message of the run waits, and has no pointer to its record."""
    slot = (run.first + offset) % BLOCK
    what = "no pointer to a message that waits"
    if columns is not None and len(columns) > 4 * slot and columns[4 * slot]:
        if columns[4 * slot] != run.segment_id:
            return  # to a copy elsewhere, which is judged where it lies
        what = "a pointer to another place in the segment"
    _note(run, offset, what, result)


def _note(run: _Run, offset: int, what: str, result: Comparison) -> None:
    qseq = run.first + offset
    lsn = run.lsn + offset
    position = run.positions[offset]
    result.add(Difference(run.lane_id, qseq, qseq + 1, what, lsn, run.segment_id, position))


def _columns(value: bytes) -> array[int]:
    columns = array("I")
    columns.frombytes(value)
    return columns


# -- with the log


def look_at_index(directory: Directory) -> tuple[IndexContents, Survey, Comparison]:
    """Index and log, and how they agree. Raises Unreadable, Forbidden.

    The index comes first: ledger and log, read after it, then know at least as much. While a
    broker runs, a checkpoint or a compaction may come in between: then it is looked at again.
    """

    def look(again: bool) -> tuple[IndexContents, Survey, Comparison]:
        contents = read_contents(directory.paths.index)
        directory.refresh()
        views = views_of(directory)
        found = survey(directory, views, verify=False)
        with progress("comparing", sum(view.size for view in views)) as bar:
            return contents, found, compare(directory, contents, found.segments, bar.advance)

    return look_again(directory.in_use, look, lambda found: found[2].differs)


def described(directory: Directory, difference: Difference) -> dict[str, Any]:
    """A difference for JSON; its `text` is for people."""
    which = f"#{difference.first}"
    if difference.end > difference.first + 1:
        which += f"-{difference.end - 1}"
    text = f"{lane_text(directory, difference.lane_id)} {which}: {difference.what}"
    where = []
    if difference.lsn is not None:
        where.append(f"LSN {difference.lsn}")
    if difference.segment_id is not None:
        where.append(f"segment {difference.segment_id} byte {difference.position}")
    if where:
        text += f" ({', '.join(where)})"
    return {
        **directory.named(difference.lane_id),
        "offset_first": difference.first,
        "offset_end": difference.end,
        "what": difference.what,
        "lsn": difference.lsn,
        "segment": difference.segment_id,
        "position": difference.position,
        "text": text,
    }
