"""Which messages a damage of the log concerns: one by one, and summed up by queue."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from itertools import chain

from qlog.storage.bytes.batch import BATCH_HEADER_BYTES, unpack_batch_header
from qlog.storage.lanes.settled import BLOCK
from qlog.storage.start.examine import FileView
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.look.environment import Unreadable
from qlog.tools.inspect.look.pointers import read_contents
from qlog.tools.inspect.look.reader import Gap, base_lsn, casualties_in, is_sparse, walk
from qlog.tools.inspect.look.salvage import Casualty, Known
from qlog.tools.inspect.rows import Concern, Damage

Pointers = dict[int, dict[int, Known]]  # by segment and position: what the index says is there


def pointers_into(directory: Directory, segment_ids: Collection[int]) -> Pointers:
    """What the index says is in these segments; nothing when the index cannot be read."""
    found: Pointers = {segment_id: {} for segment_id in segment_ids}
    if not directory.index_facts.readable or not found:
        return found
    try:
        contents = read_contents(directory.paths.index)
    except Unreadable:
        return found
    for (lane_id, block), columns in contents.blocks.items():
        if found.keys().isdisjoint(columns[0::4]):
            continue
        for slot in range(len(columns) // 4):
            segment_id, position, length, _ = columns[4 * slot : 4 * slot + 4]
            if segment_id in found:
                known = found[segment_id].setdefault(position, Known(length, ()))
                targets = (*known.targets, (lane_id, block * BLOCK + slot))
                found[segment_id][position] = replace(known, targets=targets)
    return found


def known_of(directory: Directory, view: FileView, pointers: dict[int, Known]) -> dict[int, Known]:
    """Where a segment's messages are, by its footer, or else by the index's pointers into it."""
    footer = directory.columns(view)
    if footer is None or view.trailer is None:
        return pointers
    known: dict[int, Known] = {}
    lsn: int | None = view.trailer.base_lsn
    sparse = is_sparse(view)
    end = 0
    with directory.opened(view) as file:
        for lanes, firsts, positions, lengths, *_ in footer.runs():
            for at, (position, length) in enumerate(zip(positions, lengths, strict=True)):
                if sparse and position != end:  # a new batch, which says its own LSN
                    head = file.read(BATCH_HEADER_BYTES, position - BATCH_HEADER_BYTES)
                    header = unpack_batch_header(head)
                    lsn = None if header is None else header.base
                places = zip(lanes, firsts, strict=True)
                targets = tuple((lane, first + at) for lane, first in places)
                known[position] = Known(length, targets, lsn)
                lsn = None if lsn is None else lsn + 1
                end = position + length
    return known


def missing(pointers: dict[int, Known]) -> Iterator[Casualty]:
    """The messages of a segment that has no file, as far as the index knows them."""
    for position, known in sorted(pointers.items()):
        yield Casualty(position, known.length, None, known.targets, None, False)


def with_concerns(directory: Directory, damage: list[Damage]) -> list[Damage]:
    """The same damage, with the queues that each damage of the log concerns."""
    by_file: dict[str, int] = {}
    for item in damage:
        name = item.file.removeprefix("log/").removesuffix(".qseg")
        if name.isdecimal():
            by_file[item.file] = int(name)
    pointers = pointers_into(directory, by_file.values())
    lost: dict[str, list[Casualty]] = {}
    for file, segment_id in by_file.items():
        try:
            view = directory.segment(segment_id)
        except OSError:
            lost[file] = list(missing(pointers[segment_id]))
        else:
            known = known_of(directory, view, pointers[segment_id])
            gaps = (part for part in walk(directory, view, base_lsn(view)) if isinstance(part, Gap))
            found = chain.from_iterable(casualties_in(directory, view, gap, known) for gap in gaps)
            lost[file] = [one for one in found if not one.whole]
    return [
        replace(item, queues=_sum(directory, _within(item, lost.get(item.file, ()))))
        for item in damage
    ]


def _within(item: Damage, lost: Iterable[Casualty]) -> Iterator[Casualty]:
    begin, end = item.position or 0, 1 << 64 if item.end is None else item.end
    for casualty in lost:
        inside = casualty.position + casualty.length > begin and casualty.position < end
        if item.position is None or inside:
            yield casualty


def _sum(directory: Directory, lost: Iterable[Casualty]) -> tuple[Concern, ...]:
    known = set(directory.lanes())  # where a message went may be damaged, too
    lanes: dict[int, list[int]] = {}
    for casualty in lost:
        for lane_id, qseq in casualty.targets:
            if lane_id in known:
                lanes.setdefault(lane_id, []).append(qseq)
    return tuple(
        Concern(
            **directory.named(lane_id),
            messages=len(qseqs),
            unsettled=sum(directory.unsettled(lane_id, qseq, 1) for qseq in qseqs),
            offset_first=min(qseqs),
            offset_end=max(qseqs) + 1,
        )
        for lane_id, qseqs in sorted(lanes.items())
    )
