"""Reads a segment from beginning to end, damaged or not: the only reader of damaged segments.

`walk` gives whole batches and the gaps between them. In a gap, `entries_in` and `casualties_in`
tell the messages apart, as far as that is possible. `messages` gives all messages of the log, or
those that were asked for, whole or not. Whether a gap is damage or a torn tail is not decided
here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest

from qlog.storage.bytes.footer import Columns
from qlog.storage.bytes.record import Record, unpack_record
from qlog.storage.start.examine import Examination, FileView, Verdict
from qlog.storage.start.fold import COMPACTED
from qlog.storage.write.segment import Batch, BatchFile
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.look.salvage import Casualty, Known, salvage
from qlog.tools.inspect.rows import Damage


@dataclass(slots=True)
class Entry:
    """One message as it lies in the log, or a stretch in which messages cannot be told apart.

    `damage` is None when the bytes are what was written. `record` is what decodes of a damaged
    message. `lsn_end` (exclusive) is None when the number of messages in a stretch is unknown.
    """

    view: FileView
    lsn: int
    lsn_end: int | None
    position: int
    length: int
    record: Record | None
    damage: str | None = None

    @property
    def end(self) -> int:
        return self.position + self.length

    @property
    def file(self) -> str:
        """How the file is named in reports."""
        return f"{self.view.path.parent.name}/{self.view.path.name}"

    def as_damage(self, what: str) -> Damage:
        """How a report lists it, when it is damaged."""
        lost = None if self.lsn_end is None else self.lsn_end - self.lsn
        text = f"LSN {self.lsn}{what}"
        return Damage(self.file, text, self.position, self.end, self.lsn, self.lsn_end, lost)


@dataclass(frozen=True, slots=True)
class Gap:
    """Bytes that do not verify where messages should be, or messages that have no bytes.

    `lsn_end` is None when nothing whole follows in the file.
    """

    position: int
    end: int
    lsn_first: int
    lsn_end: int | None


def is_sparse(view: FileView) -> bool:
    """LSNs may be missing between its batches."""
    if view.header_verdict is Verdict.WHOLE and view.header is not None:
        return view.header.sparse
    return view.file_id >= COMPACTED


def base_lsn(view: FileView) -> int | None:
    """The LSN of the first record, if anything whole says it."""
    if view.header_verdict is Verdict.WHOLE and view.header is not None:
        return view.header.base
    if view.footer_verdict is Verdict.WHOLE and view.trailer is not None:
        return view.trailer.base_lsn
    return None


def walk(
    directory: Directory,
    view: FileView,
    lsn: int | None,
    *,
    due: int | None = None,
) -> Iterator[Batch | Gap]:
    """Batches and gaps in order, from the beginning of the file.

    `lsn` is that of the first message, None when nothing says it; `due` is what it should be then.
    A batch whose LSNs an earlier batch has had is left out.
    """
    sparse = is_sparse(view)
    bad: tuple[int, int] | None = None
    for stretch in directory.stretches(view):
        if stretch.verdict is Verdict.DAMAGED:
            bad = stretch.position, stretch.end
        batch = stretch.batch
        if batch is None:
            continue
        base = batch.header.base
        if lsn is None:
            lsn = base if bad is None or due is None else due
        if base < lsn:
            continue
        if bad is None and sparse:
            lsn = base
        if bad is not None or base != lsn:
            yield Gap(*(bad or (batch.position, batch.position)), lsn, base)
            bad = None
        yield batch
        lsn = base + batch.header.count
    if bad is not None:
        yield Gap(*bad, (due or 0) if lsn is None else lsn, None)


def casualties_in(
    directory: Directory, view: FileView, gap: Gap, known: Mapping[int, Known]
) -> list[Casualty]:
    """The messages in a gap, whole or not, and bytes in which none can be told. See `salvage`."""
    if gap.end == gap.position or directory.is_foreign(view):
        return []  # of a foreign file, what looks like messages of ours is none
    data = directory.read(view, gap.end - gap.position, gap.position)
    return list(salvage(data, gap.position, known, gap.lsn_first, gap.lsn_end))


def entries_in(directory: Directory, view: FileView, gap: Gap) -> list[Entry]:
    """The messages in a gap, as far as each has an LSN; the last entry is the rest."""

    def rest(lsn: int, position: int, what: str) -> Entry:
        return Entry(view, lsn, gap.lsn_end, position, gap.end - position, None, what)

    if gap.end > gap.position and directory.is_foreign(view):
        return [rest(gap.lsn_first, gap.position, "nothing in it is this directory's")]
    entries: list[Entry] = []
    lsn = gap.lsn_first
    for one in casualties_in(directory, view, gap, {}):
        if lsn == gap.lsn_end:
            break
        if one.record is None or one.lsn is None:
            what = "no message can be told from the next here"
            entries.append(rest(lsn, one.position, what))
            break
        why = None if one.whole else "the message's checksum is wrong"
        lsn = one.lsn + 1
        entries.append(Entry(view, one.lsn, lsn, one.position, one.length, one.record, why))
    return entries


def entries_of(view: FileView, batch: Batch) -> Iterator[Entry]:
    """The messages of a whole batch."""
    for lsn, position, record in Examination.records(batch):
        yield Entry(view, lsn, lsn + 1, position, record.length, record)


# -- messages one by one


def messages(
    directory: Directory,
    views: list[FileView],
    from_lsn: int = 0,
    lane_ids: frozenset[int] | None = None,
    offsets: tuple[int, int] | None = None,
) -> Iterator[Entry]:
    """The messages of the log from an LSN on; of these lanes, or of all. Damaged ones too.

    With `offsets` (first, end), messages with other offsets may be left out. Damaged messages are
    included; with `lane_ids`, if they are known to go there. A torn tail is not included.
    """
    views = _readable(directory, views)
    ends = ends_due(directory, views)
    for view, following in zip_longest(views, map(base_lsn, views[1:])):
        if following is not None and following <= from_lsn:
            continue
        try:
            footer = directory.columns(view)
            if footer is None or view.trailer is None or is_sparse(view):
                yield from _walked(directory, view, from_lsn, lane_ids, ends[view.file_id])
            else:
                yield from _by_footer(directory, view, footer, from_lsn, lane_ids, offsets)
        except FileNotFoundError:  # given up by a running broker
            continue


def ends_due(directory: Directory, views: list[FileView]) -> dict[int, int]:
    """By segment, the LSN up to which evidence says that it had messages (the tail rule)."""
    scan = directory.judge_log()
    counting = {item.segment.segment_id for item in scan.found if item.segment.log_end}
    ends = {}
    following = scan.attested
    for view in reversed(views):
        ends[view.file_id] = following
        if view.footer_verdict is Verdict.WHOLE and view.trailer is not None:
            ends[view.file_id] = view.trailer.end_lsn
        if view.file_id in counting and view.header is not None:
            following = view.header.base
    return ends


def _readable(directory: Directory, views: list[FileView]) -> list[FileView]:
    """The segments to be read: also those given up, unless another segment has their messages."""
    standings = directory.standings([view.file_id for view in views])
    counting = [view for view in views if view.file_id not in standings]
    ends = (view.trailer.end_lsn for view in counting if view.file_id >= COMPACTED and view.trailer)
    compacted_end = max(ends, default=0)

    def is_left(view: FileView) -> bool:
        given_up = standings[view.file_id] == "given up"
        return given_up and view.header is not None and view.header.base >= compacted_end

    return [view for view in views if view.file_id not in standings or is_left(view)]


def _by_footer(
    directory: Directory,
    view: FileView,
    footer: Columns,
    from_lsn: int,
    lane_ids: frozenset[int] | None,
    offsets: tuple[int, int] | None,
) -> Iterator[Entry]:
    assert view.trailer is not None
    lsn = view.trailer.base_lsn
    with directory.opened(view) as file:
        for lanes, firsts, positions, lengths, *_ in footer.runs():
            ours = lane_ids is None or not lane_ids.isdisjoint(lanes)
            if ours and offsets is not None:
                wanted, end = offsets
                ours = any(first < end and first + len(positions) > wanted for first in firsts)
            for at in range(max(from_lsn - lsn, 0), len(positions)) if ours else ():
                pairs = zip(lanes, firsts, strict=True)
                targets = tuple(part for lane, first in pairs for part in (lane, first + at))
                record, damage = _record_at(file, positions[at], lengths[at], targets)
                yield Entry(
                    view, lsn + at, lsn + at + 1, positions[at], lengths[at], record, damage
                )
            lsn += len(positions)


def _record_at(
    file: BatchFile, position: int, length: int, targets: tuple[int, ...]
) -> tuple[Record | None, str | None]:
    """The record that a footer places here, and what is wrong with it.

    The footer's word counts for where the message goes.
    """
    record = unpack_record(file.read(length, position), 0)
    damage = None
    if record is None:
        damage = "the message's lengths are wrong"
    elif not record.whole:
        damage = "the message's checksum is wrong"
    elif record.length != length or record.targets != targets:
        damage = "the message's targets are not what the footer says"
    return record, damage


def _walked(
    directory: Directory,
    view: FileView,
    from_lsn: int,
    lane_ids: frozenset[int] | None,
    end_due: int,
) -> Iterator[Entry]:
    for part in walk(directory, view, base_lsn(view)):
        if isinstance(part, Gap):
            if part.lsn_end is None and end_due <= part.lsn_first:
                return
            entries: Iterator[Entry] = iter(entries_in(directory, view, part))
        else:
            entries = entries_of(view, part)
        for entry in entries:
            targets = () if entry.record is None else entry.record.targets[0::2]
            ours = lane_ids is None or not targets or not lane_ids.isdisjoint(targets)
            if ours and (entry.lsn_end is None or entry.lsn_end > from_lsn):
                yield entry
