"""The log, segment by segment: what is in each, what is damaged, and every message that decodes.

A sealed segment's footer says where each record is; without one the batches are walked, and where
a batch is damaged, its records one by one as far as their lengths hold together. The tail rule is
recovery's: bytes that do not verify are damage when anything whole says that the log had been
synced beyond them, and else what a crash left of a write that nobody was told of.

Segments are in the order of their LSNs. Those that compaction wrote are sparse: between their
batches LSNs are missing, of messages that were settled. What they replace is still there for a
while, but does not count, no more than what was given up.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import compress, count

from qlog.storage.bytes.batch import (
    BATCH_HEADER_BYTES,
    BATCH_MAGIC_BYTES,
    FILE_HEADER_BYTES,
    unpack_batch_header,
)
from qlog.storage.bytes.footer import Columns
from qlog.storage.bytes.record import Record, unpack_record
from qlog.storage.start.examine import FileView, Verdict
from qlog.storage.start.fold import COMPACTED
from qlog.storage.write.segment import BatchFile, columns_of
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.rows import Damage

_LOOKS_MAX = 3
_BITS = bytes.maketrans(b"01", b"\0\1")


@dataclass(slots=True)
class Entry:
    """One message as it lies in the log, or a stretch in which messages cannot be told apart.

    `damage` is None when it is what was written. Of a damaged message `record` is what decodes.
    `lsn_end` (exclusive) is None when how many messages a stretch held cannot be known.
    """

    lsn: int
    lsn_end: int | None
    position: int
    length: int
    record: Record | None
    damage: str | None = None


@dataclass(slots=True)
class Segment:
    """One segment. `records` counts those found, or in the footer of a sealed one."""

    segment_id: int
    file: str
    # sealed, compacted, active, reserved (nothing written yet), blank, damaged, missing; or of no
    # account any more: given up, replaced, unfinished
    state: str
    size_bytes: int = 0
    used_bytes: int = 0  # of them by messages and headers
    base_lsn: int | None = None
    end_lsn: int | None = None
    records: int = 0
    verified: bool = False  # every checksum was looked at
    columns: Columns = field(default_factory=Columns)
    damage: list[Damage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    counts: bool = True  # else nothing in it is needed


@dataclass(frozen=True, slots=True)
class Survey:
    """All segments in order, and what is wrong with the log as a whole."""

    segments: list[Segment]
    damage: list[Damage]
    notes: list[str]


def views_of(directory: Directory) -> list[FileView]:
    """The segments that have a file, in the order of their LSNs. Raises OtherFormat."""
    placed = []
    base = 0
    for segment_id in directory.segment_ids():
        try:
            view = directory.segment(segment_id)
        except FileNotFoundError:  # given up since it was listed
            continue
        directory.check_version(view)
        if view.header_verdict is Verdict.WHOLE and view.header is not None:
            base = view.header.base
        else:  # by its messages; without any it comes behind its neighbour
            base = _first_lsn(directory, view) or base
        placed.append((base, segment_id, view))
    return [view for _, _, view in sorted(placed, key=lambda item: item[:2])]


def _first_lsn(directory: Directory, view: FileView) -> int | None:
    """Where a segment without a header begins, or a little behind that."""
    if view.trailer is not None and view.footer_verdict is Verdict.WHOLE:
        return view.trailer.base_lsn
    batches = (stretch.batch for stretch in directory.stretches(view))
    return next((batch.header.base for batch in batches if batch is not None), None)


def survey(
    directory: Directory, views: list[FileView], *, verify: bool, advance: Callable[[int], None]
) -> Survey:
    """Look at every segment; with `verify`, at every byte, else at no more than is needed."""
    segments: list[Segment] = []
    damage: list[Damage] = []
    notes: list[str] = []
    attested = directory.attested_lsn
    present = [view.file_id for view in views]
    missing = directory.missing_segments(present)
    standings = directory.standings(present)
    followers = _followers(view for view in views if view.file_id not in standings)
    due: int | None = None  # the LSN that a segment without a header should begin with
    for view in views:
        standing = standings.get(view.file_id)
        following = followers.get(view.file_id)
        try:
            segment = _survey_one(
                directory, view, following, 0 if standing else attested, due, verify, advance
            )
            for _ in range(_LOOKS_MAX if directory.in_use else 0):
                if not segment.damage:
                    break  # else the broker may have gone on with the file since it was looked at
                view = directory.segment(view.file_id)
                segment = _survey_one(
                    directory, view, following, attested, due, verify, lambda size: None
                )
        except FileNotFoundError:
            continue
        except PermissionError:
            raise
        except OSError as error:
            segment = Segment(view.file_id, directory.relative(view.path), "damaged", view.size)
            segment.damage.append(Damage(segment.file, f"it cannot be read: {error.strerror}"))
        segment.damage += directory.unreadable(view.path)
        segments.append(segment)
        if standing is not None:
            segment.state = standing
            segment.counts = False
            notes += [f"{item} (but it is {standing}: nothing is lost)" for item in segment.damage]
            segment.damage.clear()
            continue
        damage += segment.damage
        notes += segment.notes
        if segment.base_lsn is not None and segment.base_lsn < (due or 0):
            what = f"messages {segment.base_lsn} to {(due or 0) - 1} are in the one before it, too"
            damage.append(Damage(segment.file, what))
        due = segment.end_lsn
    for segment_id in missing:
        file = directory.relative(directory.paths.segment(segment_id))
        item = Damage(file, "the file is missing, and it was never given up")
        damage.append(item)
        place = sum(other.segment_id < segment_id for other in segments)
        segments.insert(place, Segment(segment_id, file, "missing", damage=[item]))
    # The last file that is sealed says nothing of what should come behind it; others were judged.
    last = [item for item in segments if item.counts and item.state != "reserved"]
    given_up_lsn = directory.ledger.segments.end_lsn
    if attested > max(due or 0, given_up_lsn) and directory.in_use:
        directory.refresh()  # given up since the ledger was read?
        given_up_lsn = directory.ledger.segments.end_lsn
    end_lsn = max(due or 0, given_up_lsn)
    sealed_last = not last or last[-1].state in ("sealed", "compacted")
    if attested > end_lsn and not missing and sealed_last:
        damage.append(
            Damage(
                "log",
                f"messages {end_lsn} to {attested - 1} had been confirmed and are not there",
                None,
                None,
                end_lsn,
                attested,
                attested - end_lsn,
            )
        )
    return Survey(segments, damage, notes)


def _followers(views: Iterable[FileView]) -> dict[int, FileView]:
    """Of each segment the next that was written to; strange files at the end are none."""
    found = {}
    following: FileView | None = None
    for view in reversed(list(views)):
        if following is not None:
            found[view.file_id] = following
        if view.header_verdict is not Verdict.BLANK and (following or not view.is_strange):
            following = view
    return found


def _survey_one(
    directory: Directory,
    view: FileView,
    following: FileView | None,
    attested: int,
    due: int | None,
    verify: bool,
    advance: Callable[[int], None],
) -> Segment:
    segment = Segment(view.file_id, directory.relative(view.path), "active", view.size)
    trailer = view.trailer
    footer = None
    sparse = _is_sparse(view)
    if trailer is not None:
        segment.state = "compacted" if sparse else "sealed"
        segment.used_bytes = trailer.log_end
        footer = directory.columns(view)
        if footer is None:
            segment.damage.append(
                Damage(segment.file, "the footer is damaged", trailer.log_end, view.size)
            )
    segment.base_lsn = _base_lsn(view, footer)
    if trailer is None or footer is None or verify:
        walk = _Walk(directory, view, segment.base_lsn, due)
        walked = Columns()
        for columns in walk.columns(advance):
            walked.extend(columns)
        segment.columns = walked
        segment.verified = True
        segment.end_lsn = due if walk.lsn is None else walk.lsn
        if walk.first_lsn is None and trailer is None and not view.is_strange:
            segment.state = "reserved"
            segment.base_lsn = None
            what = None
            if following is not None:
                what = "it is blank, and messages behind it are not"
            elif view.file_id in directory.ledger.segments.listed or view.file_id >= COMPACTED:
                what = "it is blank, and was not when the ledger was written"
            if what is not None:
                segment.state = "blank"
                segment.damage.append(Damage(segment.file, what, 0))
        else:
            segment.base_lsn = walk.first_lsn if segment.base_lsn is None else segment.base_lsn
            closed_lsn = directory.identity.closed_lsn
            attested = max(attested, walk.durable)
            _judge(segment, view, following, walk, attested, closed_lsn, directory.in_use)
        segment.used_bytes = segment.used_bytes or walk.used_end
    if trailer is not None and footer is not None:
        if segment.verified and not segment.damage and not _same(footer, segment.columns):
            what = "the footer is whole, and is not of these messages"
            segment.damage.append(Damage(segment.file, what, trailer.log_end, view.size))
        segment.columns = footer
        segment.end_lsn = trailer.end_lsn
    segment.records = len(segment.columns.positions)
    return segment


def _is_sparse(view: FileView) -> bool:
    """LSNs may be missing between its batches."""
    if view.header_verdict is Verdict.WHOLE and view.header is not None:
        return view.header.sparse
    return view.file_id >= COMPACTED


def _same(footer: Columns, walked: Columns) -> bool:
    """Whether they place the same messages; what one calls two runs may be one run to the other."""
    return (
        footer.positions == walked.positions
        and footer.lengths == walked.lengths
        and footer.sizes == walked.sizes
        and footer.dues_ms == walked.dues_ms
        and _joined(footer) == _joined(walked)
    )


def _joined(columns: Columns) -> list[tuple[array[int], array[int], int]]:
    """(lanes, first qseqs, count) of runs as long as they can be."""
    runs: list[tuple[array[int], array[int], int]] = []
    for lanes, firsts, positions, *_ in columns.runs():
        count = len(positions)
        if runs:
            before_lanes, before_firsts, before_count = runs[-1]
            if before_lanes == lanes and firsts == array(
                "Q", [first + before_count for first in before_firsts]
            ):
                runs[-1] = (lanes, before_firsts, before_count + count)
                continue
        runs.append((lanes, firsts, count))
    return runs


def _base_lsn(view: FileView, footer: Columns | None) -> int | None:
    """The LSN of the first record, if anything whole says it."""
    if view.header_verdict is Verdict.WHOLE and view.header is not None:
        return view.header.base
    return view.trailer.base_lsn if footer is not None and view.trailer is not None else None


def _judge(
    segment: Segment,
    view: FileView,
    following: FileView | None,
    walk: _Walk,
    attested: int,
    closed_lsn: int,
    in_use: bool,
) -> None:
    """What of that which is not whole is damage, and what is a torn tail."""
    sealed = view.trailer is not None
    end_due: int | None = None  # up to here something says that the messages were there
    if sealed and view.trailer is not None and view.footer_verdict is Verdict.WHOLE:
        end_due = view.trailer.end_lsn
    elif following is not None and following.header_verdict is Verdict.WHOLE:
        assert following.header is not None
        end_due = following.header.base
    elif following is None:
        end_due = attested
    what = None
    if view.is_strange:
        what = "the file belongs to another directory, or has another's name"
    elif view.header_verdict is not Verdict.WHOLE and (sealed or walk.lsn != walk.first_lsn):
        what = "the file's header is damaged"
    if what is not None:
        segment.damage.append(Damage(segment.file, what, 0, FILE_HEADER_BYTES))
    for gap in walk.gaps:
        lsn_end = gap.lsn_end
        if lsn_end is None:  # nothing whole comes after it in this file
            if not sealed and (end_due is None or end_due <= gap.lsn_first):
                if not view.is_strange:
                    _judge_tail(segment, gap, following is not None, closed_lsn, in_use)
                continue
            lsn_end = end_due
        elif not sealed and attested <= gap.lsn_first and following is None:
            segment.notes.append(
                f"{segment.file} has unconfirmed messages from byte {gap.position} on, not all "
                "whole; the next start cuts them"
            )
            continue
        segment.damage.append(gap.damage(segment.file, lsn_end))
        if gap.lsn_end is None:
            segment.columns.extend(_columns_of_entries(gap.entries))
    if walk.sparse:
        return  # what comes last in it may be anywhere before its end
    end = segment.end_lsn or 0
    if end_due is not None and end < end_due and not (walk.gaps and walk.gaps[-1].lsn_end is None):
        segment.damage.append(
            Damage(
                segment.file,
                f"messages {end} to {end_due - 1} had been confirmed and are not there",
                walk.used_end,
                None,
                end,
                end_due,
                end_due - end,
            )
        )


def _judge_tail(
    segment: Segment, gap: _Gap, is_followed: bool, closed_lsn: int, in_use: bool
) -> None:
    """Bytes behind the last message that anything speaks of: a footer, or a torn write."""
    if closed_lsn >= gap.lsn_first:  # the broker had stopped in good order: it was sealed
        what = "the footer is damaged; no message is lost"
        segment.damage.append(Damage(segment.file, what, gap.position, gap.end))
    elif not in_use:
        size = gap.end - gap.position
        segment.notes.append(
            f"{segment.file} ends in {size} bytes (from byte {gap.position}) of a footer that was "
            "being written or is damaged; no message is lost, and the next start writes it anew"
            if is_followed
            else f"{segment.file} ends in {size} bytes (from byte {gap.position}) of a write that "
            "was never confirmed; the next start cuts them"
        )


@dataclass(slots=True)
class _Gap:
    """Bytes in the place of messages that do not verify, or messages for which there are none."""

    position: int
    end: int
    lsn_first: int
    lsn_end: int | None
    entries: list[Entry]
    sparse: bool = False

    def damage(self, file: str, lsn_end: int | None) -> Damage:
        """How it is reported. `lsn_end`: by whatever says it."""
        broken = [entry for entry in self.entries if entry.damage is not None]
        whole = len(self.entries) - len(broken)
        total = None if lsn_end is None else lsn_end - self.lsn_first
        if self.sparse:  # of what is between two LSNs, only so much was there
            total = len(self.entries)
            if any(entry.record is None for entry in broken):
                total = None
        lost = None if total is None else total - whole
        if self.end == self.position:
            what = f"messages {self.lsn_first} to {(lsn_end or 0) - 1} are not there"
        elif lost == 0:
            what = "a batch's checksum is wrong; its messages are whole each by itself"
        else:
            one = [entry for entry in broken if entry.record is not None]
            named = ", ".join(f"{entry.lsn} at byte {entry.position}" for entry in one[:5])
            named += ", …" if len(one) > 5 else ""
            many = "?" if lost is None else lost
            of = "?" if total is None else total
            what = f"a checksum is wrong; {many} of {of} messages from LSN {self.lsn_first} on "
            what += "cannot be read whole"
            what += f": LSN {named}" if named else ""
        return Damage(file, what, self.position, self.end, self.lsn_first, lsn_end, lost)


class _Walk:
    """Through a segment batch by batch. Afterwards: `gaps`, `lsn` behind the last message."""

    def __init__(
        self, directory: Directory, view: FileView, base_lsn: int | None, due: int | None
    ) -> None:
        self.gaps: list[_Gap] = []
        self.lsn = base_lsn
        self.first_lsn: int | None = None  # None: no batch and no other bytes were found
        self.durable = 0  # the log had been synced up to here, by the batches
        self.used_end = FILE_HEADER_BYTES
        self.sparse = _is_sparse(view)
        self._directory = directory
        self._view = view
        self._due = due

    def columns(self, advance: Callable[[int], None]) -> Iterator[Columns]:
        """Where the messages that verify are and where they go, but for those of a bad tail."""
        for part in self.parts(advance):
            if not isinstance(part, _Gap):
                yield part[1]
            elif part.lsn_end is not None:
                yield _columns_of_entries(part.entries)

    def parts(self, advance: Callable[[int], None]) -> Iterator[_Gap | tuple[int, Columns]]:
        """Gaps, and (LSN, columns) of batches, in order."""
        bad: tuple[int, int] | None = None
        for stretch in self._directory.stretches(self._view):
            advance(stretch.end - stretch.position)
            if stretch.verdict is Verdict.DAMAGED:
                bad = stretch.position, stretch.end
                self.used_end = stretch.end
            batch = stretch.batch
            if batch is None:
                continue
            header = batch.header
            if self.lsn is None:
                self.lsn = header.base if bad is None or self._due is None else self._due
            if self.first_lsn is None:
                self.first_lsn = self.lsn
            if bad is None and self.sparse and header.base > self.lsn:
                self.lsn = header.base
            if bad is not None or header.base != self.lsn:
                position, end = bad or (batch.position, batch.position)
                yield self._gap(position, end, header.base)
                bad = None
            yield header.base, columns_of(batch)
            self.lsn = header.base + header.count
            self.durable = max(self.durable, header.durable)
            self.used_end = stretch.end
        if bad is not None:
            if self.lsn is None:
                self.lsn = self._due or 0
            if self.first_lsn is None:
                self.first_lsn = self.lsn
            yield self._gap(*bad, None)

    def _gap(self, position: int, end: int, lsn_end: int | None) -> _Gap:
        assert self.lsn is not None
        entries = []
        if end > position and self._directory.is_foreign(self._view):
            what = "nothing in it is this directory's"
            entries = [Entry(self.lsn, lsn_end, position, end - position, None, what)]
        elif end > position:
            with self._directory.opened(self._view) as file:
                data = file.read(end - position, position)
            entries = list(_salvage(data, position, self.lsn, lsn_end, self.sparse))
        gap = _Gap(position, end, self.lsn, lsn_end, entries, self.sparse)
        self.gaps.append(gap)
        return gap


def _salvage(
    data: bytes, position: int, lsn: int, lsn_end: int | None, sparse: bool
) -> Iterator[Entry]:
    """The records of damaged batches, which stand at `position`; the last entry is the rest."""
    first = unpack_batch_header(data) if sparse else None
    if first is not None and lsn <= first.base and (lsn_end is None or first.base < lsn_end):
        lsn = first.base
    offset = BATCH_HEADER_BYTES
    while offset < len(data) and (lsn_end is None or lsn < lsn_end):
        if data.startswith(BATCH_MAGIC_BYTES, offset):
            header = unpack_batch_header(data, offset)
            if header is not None and header.base >= lsn:
                lsn = header.base
                offset += BATCH_HEADER_BYTES
                continue
        record = unpack_record(data, offset)
        if record is None:
            break
        damage = None if record.whole else "the message's checksum is wrong"
        yield Entry(lsn, lsn + 1, position + offset, record.length, record, damage)
        lsn += 1
        offset += record.length
    if offset < len(data) and lsn != lsn_end:
        rest = len(data) - offset
        yield Entry(
            lsn, lsn_end, position + offset, rest, None, "no message can be told from the next here"
        )


def _columns_of_entries(entries: list[Entry]) -> Columns:
    columns = Columns()
    for entry in entries:
        record = entry.record
        if record is not None and record.whole:
            columns.add(
                record.targets[0::2],
                record.targets[1::2],
                array("I", (entry.position,)),
                array("I", (entry.length,)),
                array("I", (len(record.body),)),
                array("Q", (record.due_ms,)) if record.due_ms else None,
            )
    return columns


# -- counting


@dataclass(slots=True)
class LaneTally:
    """The messages of a lane that are in the log and not settled."""

    unsettled: int = 0
    handed_out: int = 0  # of them below the delivered high-water
    stored_bytes: int = 0
    first_qseq: int | None = None
    next_qseq: int = 0  # behind the last that the log has, settled or not


@dataclass(slots=True)
class SegmentTally:
    """The messages of a segment for which some queue still waits."""

    live: int = 0
    live_bytes: int = 0


def tally(
    directory: Directory, columns: Columns, lanes: dict[int, LaneTally] | None = None
) -> SegmentTally:
    """Count what is not settled; into `lanes` too, if they are given."""
    result = SegmentTally()
    known = directory.ledger.lanes
    for lane_ids, firsts, _, lengths, *_ in columns.runs():
        many = len(lengths)
        live = 0
        for lane_id, first in zip(lane_ids, firsts, strict=True):
            bits = directory.unsettled(lane_id, first, many)
            live |= bits
            if lanes is None:
                continue
            lane = lanes.setdefault(lane_id, LaneTally())
            lane.next_qseq = max(lane.next_qseq, first + many)
            if not bits:
                continue
            lane.unsettled += bits.bit_count()
            lane.stored_bytes += selected_bytes(lengths, bits)
            lowest = first + (bits & -bits).bit_length() - 1
            if lane.first_qseq is None or lowest < lane.first_qseq:
                lane.first_qseq = lowest
            state = known.get(lane_id)
            if state is not None and state.delivered > first:
                lane.handed_out += (bits & ((1 << (state.delivered - first)) - 1)).bit_count()
        if live:
            result.live += live.bit_count()
            result.live_bytes += selected_bytes(lengths, live)
    return result


def selected_bytes(lengths: array[int], bits: int) -> int:
    """The sum of the lengths at these bits."""
    many = len(lengths)
    if bits.bit_count() == many:
        return sum(lengths)
    select = format(bits, f"0{many}b")[::-1].encode().translate(_BITS)
    return sum(compress(lengths, select))


# -- walking


def entries(
    directory: Directory,
    view: FileView,
    from_lsn: int,
    lane_ids: frozenset[int] | None,
    attested_lsn: int,
    offsets: tuple[int, int] | None = None,
) -> Iterator[Entry]:
    """The messages of a segment in order, from an LSN on; of these lanes only, or of all.

    With `offsets` (first, end), those with others may be left out. Damaged ones are among them; with `lane_ids` as far as they can be known to go there. A torn
    tail, beyond `attested_lsn`, is not.
    """
    footer = directory.columns(view)
    found = (
        _entries_walked(directory, view, from_lsn, lane_ids, attested_lsn)
        if footer is None or view.trailer is None or _is_sparse(view)
        else _entries_by_footer(
            directory, view, footer, view.trailer.base_lsn, from_lsn, lane_ids, offsets
        )
    )
    yield from found


def _entries_by_footer(
    directory: Directory,
    view: FileView,
    footer: Columns,
    lsn: int,
    from_lsn: int,
    lane_ids: frozenset[int] | None,
    offsets: tuple[int, int] | None,
) -> Iterator[Entry]:
    with directory.opened(view) as file:
        for lanes, firsts, positions, lengths, *_ in footer.runs():
            skipped = max(from_lsn - lsn, 0)
            ours = lane_ids is None or not lane_ids.isdisjoint(lanes)
            if ours and offsets is not None:
                wanted, end = offsets
                ours = any(first < end and first + len(positions) > wanted for first in firsts)
            if ours and skipped < len(positions):
                for at in range(skipped, len(positions)):
                    targets = [
                        part
                        for lane, first in zip(lanes, firsts, strict=True)
                        for part in (lane, first + at)
                    ]
                    yield _entry_at(file, lsn + at, positions[at], lengths[at], tuple(targets))
            lsn += len(positions)


def _entry_at(
    file: BatchFile, lsn: int, position: int, length: int, targets: tuple[int, ...]
) -> Entry:
    """The record that a footer places here; the footer's word counts for where it goes."""
    record = unpack_record(file.read(length, position), 0)
    damage = None
    if record is None:
        damage = "the message's lengths are wrong"
    elif not record.whole:
        damage = "the message's checksum is wrong"
    elif record.length != length or record.targets != targets:
        damage = "the message's targets are not what the footer says"
    return Entry(lsn, lsn + 1, position, length, record, damage)


def _entries_walked(
    directory: Directory,
    view: FileView,
    from_lsn: int,
    lane_ids: frozenset[int] | None,
    attested_lsn: int,
) -> Iterator[Entry]:
    walk = _Walk(directory, view, _base_lsn(view, None), None)
    with directory.opened(view) as file:
        for part in walk.parts(lambda size: None):
            if isinstance(part, _Gap):
                if part.lsn_end is None and attested_lsn <= part.lsn_first:
                    return
                for entry in part.entries:
                    targets = () if entry.record is None else entry.record.targets[0::2]
                    ours = lane_ids is None or not targets or not lane_ids.isdisjoint(targets)
                    if ours and (entry.lsn_end is None or entry.lsn_end > from_lsn):
                        yield entry
                continue
            lsn, columns = part
            if lsn + len(columns.positions) <= from_lsn:
                continue
            for at, position, length in zip(count(lsn), columns.positions, columns.lengths):
                if at < from_lsn:
                    continue
                record = unpack_record(file.read(length, position), 0)
                assert record is not None  # the batch was whole
                if lane_ids is None or not lane_ids.isdisjoint(record.targets[0::2]):
                    yield Entry(at, at + 1, position, length, record)
