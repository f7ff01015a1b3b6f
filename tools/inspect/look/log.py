"""The log, segment by segment: what is in each, what is damaged, what waits in it.

A sealed segment's footer says where each record is. Without a footer the batches are walked, and
in a damaged batch the records, one by one. storage/start/judge.py says what a start is refused
for, and how far the log must reach. This file finds everything else that is not as it was written,
and tells damage message by message.

Segments are in the order of their LSNs. Segments that compaction wrote are sparse: the LSNs of
settled messages are missing between their batches. The segments that they replace are still there
for a while, but do not count; nor do segments that were given up.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import compress

from qlog.storage.bytes.batch import FILE_HEADER_BYTES
from qlog.storage.bytes.datadir import check_format
from qlog.storage.bytes.footer import Columns
from qlog.storage.errors import DirectoryUnreadable
from qlog.storage.start.examine import FileView, Verdict
from qlog.storage.start.fold import COMPACTED
from qlog.storage.start.judge import Finding
from qlog.storage.write.segment import columns_of
from qlog.tools.inspect.look.directory import Directory, look_again
from qlog.tools.inspect.look.reader import (
    Entry,
    Gap,
    base_lsn,
    ends_due,
    entries_in,
    is_sparse,
    walk,
)
from qlog.tools.inspect.rows import Damage, progress

_BITS = bytes.maketrans(b"01", b"\0\1")


@dataclass(slots=True)
class Segment:
    """One segment. `records` counts the records found, or in the footer of a sealed segment."""

    segment_id: int
    file: str
    # sealed, compacted, active, reserved (nothing written yet), blank, missing; or of no account
    # any more: given up, replaced, unfinished
    state: str
    size_bytes: int = 0
    used_bytes: int = 0  # of them by messages and headers
    base_lsn: int | None = None
    end_lsn: int | None = None
    verified: bool = False  # every checksum was looked at
    columns: Columns = field(default_factory=Columns)
    damage: list[Damage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    counts: bool = True  # else nothing in it is needed, and damage is no damage
    whole: bool = False  # it is sealed, and nothing in it is damaged

    @property
    def records(self) -> int:
        return len(self.columns.positions)

    def find(self, what: str, position: int | None = None, end: int | None = None) -> None:
        self.damage.append(Damage(self.file, what, position, end))


@dataclass(slots=True)
class Survey:
    """All segments in order, and what is wrong with the log as a whole."""

    views: list[FileView]
    segments: list[Segment] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def views_of(directory: Directory) -> list[FileView]:
    """The segments that have a file, in the order of their LSNs. Raises OtherFormat."""
    views: dict[int, FileView] = {}
    bases: dict[int, int | None] = {}
    for segment_id in directory.segment_ids():
        try:
            view = directory.segment(segment_id)
        except FileNotFoundError:  # given up since it was listed
            continue
        if view.header is not None:
            check_format(view.path, view.header.version)
        views[segment_id] = view
        bases[segment_id] = _first_lsn(directory, view)
    # Without any message it comes behind its neighbour, and the newest ones come last.
    end = 1 + max((base for base in bases.values() if base is not None), default=0)
    plain = [segment_id for segment_id in bases if segment_id < COMPACTED]
    while plain and bases[plain[-1]] is None:
        bases[plain.pop()] = end
    placed = []
    before = 0
    for segment_id, base in bases.items():
        before = before if base is None else base
        placed.append((before, segment_id))
    return [views[segment_id] for _, segment_id in sorted(placed)]


def _first_lsn(directory: Directory, view: FileView) -> int | None:
    """The first LSN of a segment; without header and footer it may be a little too high."""
    base = base_lsn(view)
    if base is not None:
        return base
    batches = (stretch.batch for stretch in directory.stretches(view))
    return next((batch.header.base for batch in batches if batch is not None), None)


def survey(directory: Directory, *, verify: bool = False) -> Survey:
    """Look at every segment; with `verify`, at every byte, else at no more than is needed."""
    found = Survey(views_of(directory))
    ends = ends_due(directory, found.views)
    findings = directory.judge_log().findings
    standings = directory.standings([view.file_id for view in found.views])
    due: int | None = None  # the LSN that a segment without a header should begin with
    size = sum(view.size for view in found.views)
    with progress("verifying", size if verify else 0) as advance:
        for view in found.views:
            standing = standings.get(view.file_id)
            end_due = 0 if standing else ends[view.file_id]
            ours = [item for item in findings if item.path == view.path]
            is_blank = any(not item.what for item in ours)
            look = _Look(directory, view, due, end_due, is_blank, verify, advance)
            try:
                segment = look_again(directory.in_use, look, lambda found: found.damage)
            except DirectoryUnreadable:  # it is gone: given up by a running broker
                continue
            ours = [item for item in ours if item.position is None and not item.disagrees]
            segment.damage[:0] = map(directory.damage_of, ours)
            segment.damage += directory.unreadable(view.path)
            segment.whole = view.sealed and not segment.damage
            _add(found, segment, standing, due)
            due = due if standing else segment.end_lsn
    for finding in findings:
        _list(found, finding, directory.damage_of(finding))
    return found


def _add(found: Survey, segment: Segment, standing: str | None, due: int | None) -> None:
    """Put a segment into the survey."""
    found.segments.append(segment)
    if standing is not None:
        segment.state = standing
        segment.counts = False
        lost = f" (but it is {standing}: nothing is lost)"
        found.notes += [f"{item}{lost}" for item in segment.damage]
        segment.damage.clear()
        return
    found.damage += segment.damage
    found.notes += segment.notes
    base = segment.base_lsn
    if base is not None and due is not None and base < due:
        what = f"it has messages {base} to {due - 1}, and so has the one before it"
        found.damage.append(Damage(segment.file, what))


def _list(found: Survey, finding: Finding, item: Damage) -> None:
    """Put a finding of the judge where it belongs, unless what it means was told already."""
    if any(_covers(other, item) for other in found.damage):
        return
    found.damage.append(item)
    if finding.disagrees:
        return
    for segment in found.segments:
        if segment.file == item.file:
            segment.damage.append(item)
            return
    if finding.path.suffix == ".qseg":
        segment_id = int(finding.path.stem)
        place = sum(other.segment_id < segment_id for other in found.segments)
        found.segments.insert(place, Segment(segment_id, item.file, "missing", damage=[item]))


def _covers(told: Damage, item: Damage) -> bool:
    """Whether the judge's finding is what was already told, message by message."""
    if told.file != item.file:
        return False
    if item.position is None or told.position is None:
        return item.what == told.what
    return told.position <= item.position < max(told.end or 0, told.position + 1)


def untold(found: Survey, told: Iterable[Damage], from_lsn: int = 0) -> list[Damage]:
    """The damage from an LSN on of which the place was not told yet."""
    places = {(item.file, item.position) for item in told}
    return [
        item
        for item in found.damage
        if (item.file, item.position) not in places
        and (item.lsn_end is None or item.lsn_end > from_lsn)
    ]


@dataclass(frozen=True, slots=True)
class _Look:
    """A look at one segment. `end_due`: evidence says that it had messages up to this LSN."""

    directory: Directory
    view: FileView
    due: int | None
    end_due: int
    is_blank: bool
    verify: bool
    advance: Callable[[int], None]

    def __call__(self, again: bool) -> Segment:
        view = self.directory.segment(self.view.file_id) if again else self.view
        segment = Segment(view.file_id, self.directory.relative(view.path), "active", view.size)
        trailer = view.trailer
        footer = self.directory.columns(view)
        segment.base_lsn = base_lsn(view)
        if trailer is not None:
            segment.state = "compacted" if is_sparse(view) else "sealed"
            segment.used_bytes = trailer.log_end
            if footer is None:
                segment.find("the footer is damaged", trailer.log_end, view.size)
        if footer is None or self.verify:
            self._walk(view, segment)
        if trailer is not None and footer is not None:
            if segment.verified and not segment.damage and not _same(footer, segment.columns):
                what = "the footer is whole, and is not of these messages"
                segment.find(what, trailer.log_end, view.size)
            segment.columns = footer
            segment.end_lsn = trailer.end_lsn
        return segment

    def _walk(self, view: FileView, segment: Segment) -> None:
        """Fill in what the batches of a segment say, and what is damaged."""
        gaps: list[tuple[Gap, list[Entry]]] = []
        lsn = segment.base_lsn
        used_end = FILE_HEADER_BYTES
        for part in walk(self.directory, view, lsn, due=self.due):
            self.advance(part.end - part.position)
            used_end = part.end
            if isinstance(part, Gap):
                entries = entries_in(self.directory, view, part)
                gaps.append((part, entries))
                if part.lsn_end is not None:
                    segment.columns.extend(_columns_of(entries))
                first, lsn = part.lsn_first, part.lsn_end or part.lsn_first
            else:
                segment.columns.extend(columns_of(part))
                first, lsn = part.header.base, part.header.base + part.header.count
            segment.base_lsn = first if segment.base_lsn is None else segment.base_lsn
        segment.verified = True
        segment.end_lsn = self.due if lsn is None else lsn
        segment.used_bytes = segment.used_bytes or used_end
        if gaps or segment.records or view.trailer is not None or view.is_strange:
            self._tell(view, segment, gaps)
            return
        segment.state = "reserved"
        segment.base_lsn = None
        if self.is_blank or view.file_id in self.directory.ledger.segments.listed:
            segment.state = "blank"
            segment.find("it is blank, and was not when other files were written", 0)

    def _tell(self, view: FileView, segment: Segment, gaps: list[tuple[Gap, list[Entry]]]) -> None:
        """Sort what is not whole into damage and torn tail."""
        sealed = view.trailer is not None
        has_messages = segment.end_lsn != segment.base_lsn
        named = view.header_verdict is Verdict.WHOLE or view.is_strange
        if not named and (sealed or has_messages):
            segment.find("the file's header is damaged", 0, FILE_HEADER_BYTES)
        for gap, entries in gaps:
            if not sealed and self.end_due <= gap.lsn_first:
                if not view.is_strange:
                    self._tell_tail(segment, gap)
                continue
            lsn_end = self.end_due if gap.lsn_end is None else gap.lsn_end
            segment.damage.append(_damage_of(segment.file, gap, entries, lsn_end, is_sparse(view)))
            if gap.lsn_end is None:
                segment.columns.extend(_columns_of(entries))

    def _tell_tail(self, segment: Segment, gap: Gap) -> None:
        """Bytes behind the last message that any evidence names: a footer, or a torn write."""
        if gap.lsn_end is not None:
            segment.notes.append(
                f"{segment.file} has unconfirmed messages from byte {gap.position} on, not all "
                "whole; the next start cuts them"
            )
        elif self.directory.ledger.closed_lsn >= gap.lsn_first:  # sealed at an orderly stop
            segment.find("the footer is damaged; no message is lost", gap.position, gap.end)
        elif not self.directory.in_use:
            size = gap.end - gap.position
            segment.notes.append(
                f"{segment.file} ends in {size} bytes (from byte {gap.position}) of a write that "
                "was never confirmed, or of a footer: no message is lost, and the next start cuts "
                "them"
            )


def _damage_of(file: str, gap: Gap, entries: list[Entry], lsn_end: int, sparse: bool) -> Damage:
    """How a gap is reported. `lsn_end`: by whatever says it."""
    broken = [entry for entry in entries if entry.damage is not None]
    total: int | None = lsn_end - gap.lsn_first
    if sparse:  # of what is between two LSNs, only so much was there
        total = None if any(entry.record is None for entry in broken) else len(entries)
    lost = None if total is None else total - (len(entries) - len(broken))
    if gap.end == gap.position:
        what = f"messages {gap.lsn_first} to {lsn_end - 1} are not there"
    elif lost == 0:
        what = "a batch's checksum is wrong; its messages are whole each by itself"
    else:
        one = [entry for entry in broken if entry.record is not None]
        named = ", ".join(f"{entry.lsn} at byte {entry.position}" for entry in one[:5])
        named += ", …" if len(one) > 5 else ""
        many, of = ("?" if count is None else count for count in (lost, total))
        what = f"a checksum is wrong; {many} of {of} messages from LSN {gap.lsn_first} on "
        what += "cannot be read whole"
        what += f": LSN {named}" if named else ""
    return Damage(file, what, gap.position, gap.end, gap.lsn_first, lsn_end, lost)


def _columns_of(entries: Iterable[Entry]) -> Columns:
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
            columns.note_times(record.timestamp_ms, record.timestamp_ms)
    return columns


def _same(footer: Columns, walked: Columns) -> bool:
    """Whether both place the same messages. Two runs of one may be one run of the other."""
    columns = ("positions", "lengths", "sizes", "dues_ms")
    alike = all(getattr(footer, column) == getattr(walked, column) for column in columns)
    return alike and _joined(footer) == _joined(walked)


def _joined(columns: Columns) -> list[tuple[int, "array[int]", list[int]]]:
    """Runs as long as they can be: where each begins, its lanes, its first qseqs less the place."""
    runs: list[tuple[int, array[int], list[int]]] = []
    place = 0
    for lanes, firsts, positions, *_ in columns.runs():
        less = [first - place for first in firsts]
        if not runs or runs[-1][1:] != (lanes, less):
            runs.append((place, lanes, less))
        place += len(positions)
    return runs


# -- counting


@dataclass(slots=True)
class LaneTally:
    """The messages of a lane that are in the log and not settled."""

    unsettled: int = 0
    handed_out: int = 0  # of them below the delivered high-water
    stored_bytes: int = 0
    first_qseq: int | None = None
    next_qseq: int = 0  # behind the last that the log has, settled or not


def tally(
    directory: Directory, segment: Segment, lanes: dict[int, LaneTally] | None = None
) -> tuple[int, int]:
    """Count what is not settled, if the segment counts; into `lanes` too, if they are given.

    Returns the number and the bytes of the messages for which some queue still waits.
    """
    messages = size = 0
    known = directory.ledger.lanes
    for lane_ids, firsts, _, lengths, *_ in segment.columns.runs() if segment.counts else ():
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
        messages += live.bit_count()
        size += selected_bytes(lengths, live) if live else 0
    return messages, size


def tallied(
    directory: Directory, segments: list[Segment]
) -> tuple[dict[int, LaneTally], Counter[int]]:
    """The messages that wait, by lane; and how many there are in each segment."""
    lanes: dict[int, LaneTally] = {}
    live: Counter[int] = Counter()
    with progress("counting", sum(segment.size_bytes for segment in segments)) as advance:
        for segment in segments:
            live[segment.segment_id] += tally(directory, segment, lanes)[0]
            advance(segment.size_bytes)
    return lanes, live


def selected_bytes(lengths: "array[int]", bits: int) -> int:
    """The sum of the lengths at these bits."""
    many = len(lengths)
    if bits.bit_count() == many:
        return sum(lengths)
    select = format(bits, f"0{many}b")[::-1].encode().translate(_BITS)
    return sum(compress(lengths, select))
