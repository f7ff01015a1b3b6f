"""What a repair would do, and what would be lost: found out by reading alone.

A repair keeps all sound segments, every whole batch of damaged ones, and every whole message of
damaged batches. The rest is lost, and is named message by message, as far as a footer, the index,
or the rest of the message itself tells.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

from qlog.server.amqp.envelope import Envelope
from qlog.storage.bytes.batch import FILE_HEADER_BYTES
from qlog.storage.lanes.settled import BLOCK
from qlog.storage.lanes.settled import Settled as StoredSettled
from qlog.storage.start.examine import FileView, Verdict
from qlog.storage.start.fold import COMPACTED
from qlog.storage.write.segment import Batch, columns_of
from qlog.tools.inspect.look.casualties import Pointers, known_of, missing, pointers_into
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.look.environment import Unreadable
from qlog.tools.inspect.look.log import Segment, Survey, survey
from qlog.tools.inspect.look.pointers import IndexContents, compare, read_contents
from qlog.tools.inspect.look.reader import Gap, casualties_in, walk
from qlog.tools.inspect.look.salvage import Casualty, Known, Target
from qlog.tools.inspect.repair.definitions import Mend, collect
from qlog.tools.inspect.rows import Damage, counted, well_formed

_QSEQ_MARGIN = 4096  # what a damaged message may name above all others
_LANE_IDS_MARGIN = 1024


@dataclass(frozen=True, slots=True)
class Loss:
    """A lost message; or several, of which only the greatest possible number is known."""

    file: str
    position: int | None
    count: int | None  # None: cannot be known
    lsn: int | None
    body_bytes: int | None
    exchange: str | None
    routing_key: str | None
    targets: tuple[Target, ...]

    def item(self, directory: Directory) -> dict[str, Any]:
        """For JSON."""
        return {
            "file": self.file,
            "position": self.position,
            "messages": self.count,
            "lsn": self.lsn,
            "body_bytes": self.body_bytes,
            "exchange": self.exchange,
            "routing_key": self.routing_key,
            "queues": [directory.target(*target) for target in self.targets],
        }

    def waits(self, directory: Directory) -> bool:
        """Whether some queue still had the message, as far as can be known."""
        if not self.targets:
            return True
        return any(directory.state_of(*target) == "unsettled" for target in self.targets)


@dataclass(frozen=True, slots=True)
class Kept:
    """Messages that stay: consecutive LSNs, records as they are."""

    lsn: int
    lanes: tuple[int, ...]
    firsts: tuple[int, ...]
    lengths: array[int]
    data: bytes


@dataclass(slots=True)
class Rewrite:
    """A segment that is written again, with what is left of it."""

    view: FileView
    base_lsn: int
    end_lsn: int
    known: dict[int, Known]
    sparse: bool
    parts: Iterable[Kept | Loss] = ()  # what stays and what does not, in order
    kept: int = 0
    kept_bytes: int = 0

    def keep(self, part: Kept) -> None:
        """Count what stays."""
        self.kept += len(part.lengths)
        self.kept_bytes += len(part.data)


@dataclass(slots=True)
class Plan:
    """All that a repair does. `actions` are for people, in the order in which it is done."""

    actions: list[str] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    settled_losses: int = 0  # messages that nobody waited for any more
    notes: list[str] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)  # why
    rewrites: list[Rewrite] = field(default_factory=list)
    discarded: list[FileView] = field(default_factory=list)
    segment_ids: list[int] = field(default_factory=list)  # that count afterwards
    next_segment_id: int = 1
    end_lsn: int = 0
    lanes: dict[int, tuple[int, StoredSettled]] = field(default_factory=dict)  # next qseq, settled
    mends_log: bool = False  # segments or ledger: then there is a new ledger, and no index
    moves_index: bool = False
    moves_catalog: bool = False
    ledger_number: int = 0
    definitions: Mend = field(default_factory=Mend)
    uuid: bytes = b""
    epoch: int = 0
    lane_ids_reserved: int = 1

    @property
    def needed(self) -> bool:
        return self.mends_log or self.moves_index or self.moves_catalog

    @property
    def written_bytes(self) -> int:
        """At least so much is written to the log before anything is given back."""
        return sum(rewrite.kept_bytes for rewrite in self.rewrites)


def make_plan(directory: Directory) -> Plan:
    """Look at everything once. Raises OtherFormat, Forbidden, PermissionError."""
    return _Planner(directory).run()


class _Planner:
    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self.plan = Plan()
        self.contents: IndexContents | None = None
        self.pointers: Pointers = {}
        # lane -> (first, end, LSN, end LSN) of whole runs; these LSNs are rough
        self.placed: dict[int, list[tuple[int, int, int, int]]] = {}
        self.next_qseqs: dict[int, int] = {}
        self.waiting: dict[int, int] = {}  # lane -> the highest LSN, or above, of one that waits
        self.lost_count = 0  # messages of which nothing says where they went

    def run(self) -> Plan:
        directory, plan = self.directory, self.plan
        if directory.index_facts.readable:
            try:
                self.contents = read_contents(directory.paths.index)
            except Unreadable:
                pass
        found = survey(directory, verify=True)
        views = found.views
        segments = {segment.segment_id: segment for segment in found.segments}
        ledger_damaged = directory.ledger.damaged
        plan.definitions = collect(directory)
        plan.mends_log = bool(found.damage or ledger_damaged or plan.definitions.actions)
        counting = self._counting(views, segments)
        self._note_what_is_known(found.segments, {view.file_id for view in counting})
        plan.damage = directory.damage + found.damage
        if plan.mends_log:
            plan.discarded = [view for view in views if view not in counting]
            damaged = [one.segment_id for one in found.segments if one.damage]
            self.pointers = pointers_into(directory, damaged)
            self._plan_log(counting, segments)
            if ledger_damaged:
                self._plan_ledger()
            else:
                plan.actions.append(
                    "write a new ledger with all that was settled, which says which segments count"
                )
            self._fold_lanes(ledger_damaged)
            self._plan_definitions(ledger_damaged)
        derived = (
            ("index", directory.paths.index, self._index_is_wrong),
            ("catalog", directory.paths.catalog, self._catalog_is_wrong),
        )
        for name, path, is_wrong in derived:
            wrong = path.exists() and is_wrong(found)
            if wrong or (plan.mends_log and path.exists()):
                why = "it is damaged, and the next start" if wrong else "the next start"
                plan.actions.append(f"move the {name} out: {why} makes it anew")
                setattr(plan, f"moves_{name}", True)
                if not plan.damage:
                    plan.damage.append(Damage(path.name, "it does not agree with log and ledger"))
        if plan.definitions.actions and not plan.damage:
            what = "definitions name what is not there"
            plan.damage.append(Damage(directory.ledger_file_name, what))
        return plan

    def _catalog_is_wrong(self, found: Survey) -> bool:
        directory = self.directory
        damaged = any(item.file == "catalog.lmdb" for item in directory.damage)
        return damaged or bool(directory.catalog_differs())

    def _index_is_wrong(self, found: Survey) -> bool:
        """Whether the index is damaged, or contradicts a log and a ledger that are sound."""
        contents = self.contents
        if contents is None or contents.damaged:
            return True
        if any(item.file.startswith("index.lmdb") for item in self.directory.damage):
            return True
        if self.plan.mends_log:
            return False
        comparison = compare(self.directory, contents, found.segments, lambda size: None)
        return bool(comparison.differences or comparison.counts)

    # -- what is known

    def _note_what_is_known(self, segments: list[Segment], counting: Collection[int]) -> None:
        directory, plan = self.directory, self.plan
        facts = directory.ledger.segments
        ends = [directory.attested_lsn, facts.listed_end_lsn, *facts.dropped.values()]
        plan.uuid = directory.identity.uuid
        epochs = [directory.identity.epoch]
        views = [directory.ledger_file(one) for one in directory.ledger_ids()]
        for segment in segments:
            ends.append(segment.end_lsn or 0)
            whole = not segment.damage
            if segment.state != "missing":
                view = directory.segment(segment.segment_id)
                views.append(view)
                whole = whole or view.footer_verdict is Verdict.WHOLE
            if not whole:
                continue  # what decodes of damaged messages is no evidence
            lsns = segment.base_lsn or 0, segment.end_lsn or 0
            for lanes, firsts, positions, *_ in segment.columns.runs():
                self._place(lanes, firsts, len(positions), *lsns, segment.segment_id in counting)
        for view in views:
            for stretch in directory.stretches(view) if view.path.suffix == ".qack" else ():
                if stretch.batch is not None:
                    epochs.append(stretch.batch.header.epoch)
                    number = stretch.batch.header.base + 1
                    plan.ledger_number = max(plan.ledger_number, number)
            if view.header is not None and view.header_verdict is Verdict.WHOLE:
                epochs.append(view.header.epoch)
        plan.epoch = max(epochs)
        for lane_id in directory.ledger.lanes:
            self._name(lane_id, directory.ledger.next_qseq(lane_id))
        if self.contents is not None:
            for lane_id, row in self.contents.lanes.items():
                self._name(lane_id, row.next_qseq)
            if self.contents.checkpoint is not None:
                ends.append(self.contents.checkpoint.lsn)
                number = self.contents.checkpoint.ledger.number
                plan.ledger_number = max(plan.ledger_number, number)
        by_catalog = directory.catalog_facts.checkpoint
        if by_catalog is not None:
            plan.ledger_number = max(plan.ledger_number, by_catalog.ledger.number)
        plan.end_lsn = max(ends)

    def _place(
        self,
        lanes: Iterable[int],
        firsts: Iterable[int],
        count: int,
        lsn: int,
        lsn_end: int,
        counts: bool = True,
    ) -> None:
        """A whole run is in the log, somewhere from one LSN to another."""
        for lane_id, first in zip(lanes, firsts, strict=True):
            self._name(lane_id, first + count)
            if counts:
                insort(self.placed.setdefault(lane_id, []), (first, first + count, lsn, lsn_end))
                if self.directory.unsettled(lane_id, first, count):
                    self.waiting[lane_id] = max(self.waiting.get(lane_id, 0), lsn_end)

    def _name(self, lane_id: int, end: int) -> None:
        """All qseqs of the lane below this one were given, as far as is known."""
        self.next_qseqs[lane_id] = max(self.next_qseqs.get(lane_id, 0), end)

    def _index_knows(self, lsn_end: int) -> bool:
        """Every message below it that waits has a pointer in the index."""
        contents = self.contents
        if contents is None or contents.checkpoint is None or contents.damaged:
            return False
        return contents.checkpoint.lsn >= lsn_end

    # -- segments

    def _counting(self, views: list[FileView], segments: Mapping[int, Segment]) -> list[FileView]:
        """The segments whose messages count. A message that is in two segments counts in one."""
        directory, plan = self.directory, self.plan
        facts = directory.ledger.segments
        standings = directory.standings([view.file_id for view in views])
        by_id = {view.file_id: view for view in views}
        for segment_id in sorted(set(facts.replaced.values())):
            sources = {one for one, into in facts.replaced.items() if into == segment_id}
            lost = segment_id not in by_id or bool(segments[segment_id].damage)
            if (
                lost
                and sources <= by_id.keys()
                and all(map(self._is_whole, map(by_id.get, sources)))
            ):
                plan.notes.append(
                    f"what had been put together in segment {segment_id} is still there in those "
                    "that it was made of"
                )
                standings[segment_id] = "damaged"
                for source in sources:
                    standings.pop(source, None)
        if directory.ledger.damaged:  # that one of them came to count may be what is lost
            standings = {id_: why for id_, why in standings.items() if why != "unfinished"}
        counting = [view for view in views if view.file_id not in standings]
        for view in [one for one in counting if one.file_id >= COMPACTED]:
            segment = segments[view.file_id]
            for other in list(counting):  # what it is made of does not count beside it
                base = None if other.header is None else other.header.base
                if (
                    other.file_id < view.file_id
                    and base is not None
                    and not segment.damage
                    and (segment.base_lsn or 0) <= base < (segment.end_lsn or 0)
                ):
                    counting.remove(other)
        return counting

    def _is_whole(self, view: FileView | None) -> bool:
        return (
            view is not None
            and view.header_verdict is Verdict.WHOLE
            and view.footer_verdict is Verdict.WHOLE
            and all(one.verdict is Verdict.WHOLE for one in self.directory.stretches(view))
        )

    def _plan_log(self, counting: list[FileView], segments: Mapping[int, Segment]) -> None:
        directory, plan = self.directory, self.plan
        lsn = 0
        kept: list[tuple[FileView, int, int, bool]] = []  # base and end LSN, sealed
        bases = self._bases(counting, segments)
        counting = sorted(counting, key=lambda view: (bases[view.file_id], view.file_id))
        for view, following in zip_longest(counting, counting[1:]):
            segment = segments[view.file_id]
            if segment.state == "reserved" and segment.damage:
                plan.discarded.append(view)
                plan.actions.append(f"give {segment.file} up: nothing was written to it")
            if segment.state == "reserved":
                continue
            sealed = view.footer_verdict is Verdict.WHOLE
            if not segment.damage:
                lsn = segment.end_lsn or lsn
                kept.append((view, segment.base_lsn or 0, lsn, sealed))
                continue
            base = max(bases[view.file_id], lsn)
            end = plan.end_lsn
            if sealed and view.trailer is not None:
                end = view.trailer.end_lsn
            elif (
                following is not None
                and segments[following.file_id].state != "reserved"
                and base < bases[following.file_id]  # else its place is not known either
            ):
                end = bases[following.file_id]
            rewrite = self._rewrite(view, base, end)
            losses = self._take(rewrite)
            if rewrite.kept:
                plan.rewrites.append(rewrite)
                kept.append((view, base, end, True))
                plan.actions.append(
                    f"write {segment.file} again with the {counted(rewrite.kept, 'message')} that "
                    f"are whole{_lost_text(losses)}; the damaged file is moved out"
                )
            else:
                plan.discarded.append(view)
                why = "is of use here" if view.is_strange else "is whole"
                plan.actions.append(
                    f"give {segment.file} up: no message in it {why}{_lost_text(losses)}; the "
                    "file is moved out"
                )
            lsn = max(lsn, end)
        self._plan_missing(segments, kept)
        self._seal(kept)
        sealed_ends = [rewrite.end_lsn for rewrite in plan.rewrites]
        gone = plan.end_lsn - max([lsn, *sealed_ends, directory.ledger.segments.end_lsn])
        if gone > 0 and not any(one.state == "missing" for one in segments.values()):
            self._lose(Loss("log", None, gone, plan.end_lsn - gone, None, None, None, ()))
        plan.segment_ids = sorted(view.file_id for view, _, _, _ in kept)
        plain = [id_ for id_ in segments if id_ < COMPACTED]
        # One id is left out, so that `following_lsn` says where the log goes on: see act.py.
        plan.next_segment_id = 2 + max([*plain, directory.ledger.segments.next_id])

    def _bases(self, counting: list[FileView], segments: Mapping[int, Segment]) -> dict[int, int]:
        """Where each segment begins, by its header, its footer, or its first whole batch."""
        bases: dict[int, int] = {}
        before = 0  # where the last one ended whose place is known
        for view in counting:
            batches = (one.batch for one in self.directory.stretches(view) if one.batch)
            first = None if view.header_verdict is Verdict.WHOLE else next(batches, None)
            if view.header is not None and view.header_verdict is Verdict.WHOLE:
                bases[view.file_id] = view.header.base
            elif view.trailer is not None and view.footer_verdict is Verdict.WHOLE:
                bases[view.file_id] = view.trailer.base_lsn
            elif first is not None and first.position == FILE_HEADER_BYTES:
                bases[view.file_id] = first.header.base
            elif first is not None:  # it follows on the one before it
                ends = (
                    one.end_lsn
                    for one in segments.values()
                    if (one.segment_id < view.file_id or one.segment_id >= COMPACTED)
                    and one.end_lsn
                    and not one.damage
                )
                limit = first.header.base
                bases[view.file_id] = max((end for end in ends if end <= limit), default=before)
            elif segments[view.file_id].damage:  # it fills the place that no other one has
                bases[view.file_id] = self._free_place(segments)
            else:
                bases[view.file_id] = before
            before = segments[view.file_id].end_lsn or before
        return bases

    def _free_place(self, segments: Mapping[int, Segment]) -> int:
        """Where the LSNs begin that no segment has of which the place is known."""
        facts = self.directory.ledger.segments
        lsn = max(
            (end for id_, end in facts.dropped.items() if id_ not in facts.replaced), default=0
        )
        places = [
            (one.base_lsn, one.end_lsn)
            for one in segments.values()
            if one.base_lsn is not None and one.end_lsn is not None and one.records
        ]
        for base, end in sorted(places):
            if base > lsn:
                break
            lsn = max(lsn, end)
        return lsn

    def _rewrite(self, view: FileView, base: int, end: int) -> Rewrite:
        known = known_of(self.directory, view, self.pointers.get(view.file_id, {}))
        sparse = view.file_id >= COMPACTED or (view.header is not None and view.header.sparse)
        rewrite = Rewrite(view, base, end, known, sparse)
        rewrite.parts = _Pieces(self.directory, rewrite, self._is_credible, self._index_knows)
        return rewrite

    def _take(self, rewrite: Rewrite) -> list[Loss]:
        """Find out what a segment still has, and note what it has not."""
        for stretch in self.directory.stretches(rewrite.view):
            if stretch.batch is not None:
                header = stretch.batch.header
                for lanes, firsts, positions, *_ in columns_of(stretch.batch).runs():
                    end = header.base + header.count
                    self._place(lanes, firsts, len(positions), header.base, end)
        losses = []
        for part in rewrite.parts:
            if isinstance(part, Kept):
                rewrite.keep(part)
                for lane_id, first in zip(part.lanes, part.firsts, strict=True):
                    self._name(lane_id, first + len(part.lengths))
                    if self.directory.unsettled(lane_id, first, len(part.lengths)):
                        self.waiting[lane_id] = max(self.waiting.get(lane_id, 0), part.lsn + 1)
            else:
                self._lose(part)
                losses.append(part)
        return losses

    def _lose(self, loss: Loss) -> None:
        for lane_id, qseq in loss.targets:
            if qseq < self.next_qseqs.get(lane_id, -_QSEQ_MARGIN) + _QSEQ_MARGIN:
                self._name(lane_id, qseq + 1)
        if not loss.targets:
            self.lost_count += loss.count or 0
        if loss.waits(self.directory):
            self.plan.losses.append(loss)
        else:
            self.plan.settled_losses += loss.count or 0

    def _is_credible(self, casualty: Casualty, lsn: int, lsn_end: int) -> bool:
        """Whether the targets of a message can be right, by all that is whole.

        The message's hash does not cover its targets. The message lies somewhere in [lsn, lsn_end),
        and within a lane LSNs go up with the qseqs.
        """
        for lane_id, qseq in casualty.targets:
            if qseq >= self.next_qseqs.get(lane_id, -_QSEQ_MARGIN) + _QSEQ_MARGIN:
                return False
            runs = self.placed.get(lane_id, [])
            at = bisect_right(runs, (qseq, 1 << 64))
            if at and (runs[at - 1][1] > qseq or runs[at - 1][2] >= lsn_end):
                return False
            if at < len(runs) and runs[at][3] <= lsn:
                return False
        return bool(casualty.targets)

    def _plan_missing(
        self, segments: Mapping[int, Segment], kept: list[tuple[FileView, int, int, bool]]
    ) -> None:
        directory, plan = self.directory, self.plan
        needed = {} if self.contents is None else self.contents.live
        accounted = 0  # up to this LSN
        for segment in sorted(segments.values(), key=lambda one: one.segment_id):
            if segment.state != "missing":
                continue
            segment_id = segment.segment_id
            before = [end for view, _, end, _ in kept if view.file_id < segment_id]
            after = [base for view, base, _, _ in kept if segment_id < view.file_id < COMPACTED]
            first = max([accounted, *before, *directory.ledger.segments.dropped.values()])
            end = min(after, default=plan.end_lsn)
            covered = any(base <= first and end <= stop for _, base, stop, _ in kept)
            alive = segment_id in needed and needed[segment_id].count
            if directory.ledger.damaged and not alive and (covered or first >= end):
                continue  # it was given up, and the ledger does not know it any more
            losses = [
                _loss_of(segment.file, casualty)
                for casualty in missing(self.pointers.get(segment_id, {}))
            ]
            rest = max(end - first, 0) - len(losses)
            accounted = max(accounted, end)
            if rest > 0 and not self._index_knows(end):
                losses.append(Loss(segment.file, None, rest, None, None, None, None, ()))
            for loss in losses:
                self._lose(loss)
            plan.actions.append(f"give {segment.file} up, which is missing{_lost_text(losses)}")

    def _seal(self, kept: list[tuple[FileView, int, int, bool]]) -> None:
        """Have segments sealed that come before a gap in the LSNs: a start accepts no others."""
        plan = self.plan
        rewritten = {rewrite.view.file_id for rewrite in plan.rewrites}
        for at, (view, base, end, sealed) in enumerate(kept):
            following = kept[at + 1] if at + 1 < len(kept) else None
            next_base = plan.end_lsn if following is None else following[1]
            next_to_it = following is not None and following[0].file_id == view.file_id + 1
            if view.file_id in rewritten or end >= next_base or (sealed and not next_to_it):
                continue
            if sealed and following is None:
                continue
            rewrite = self._rewrite(view, base, next_base if next_to_it else end)
            for part in rewrite.parts:
                if isinstance(part, Kept):
                    rewrite.keep(part)
            plan.rewrites.append(rewrite)
            plan.actions.append(
                f"seal {self.directory.relative(view.path)}: messages behind it are lost"
            )

    # -- ledger, lanes, definitions

    def _plan_ledger(self) -> None:
        plan = self.plan
        source = "what is left of it"
        if self.contents is not None and self.contents.checkpoint is not None:
            source += " and from the index, which has what was settled until its last checkpoint"
        plan.actions.append(f"write a new ledger from {source}; the damaged one is moved out")
        plan.notes.append(
            "settlements are lost: messages that had been acknowledged come back, marked as "
            "redelivered, and so are all others that wait"
        )

    def _fold_lanes(self, ledger_damaged: bool) -> None:
        directory, plan = self.directory, self.plan
        contents = self.contents
        lane_ids = self.next_qseqs.keys() | plan.definitions.lanes.keys()
        for lane_id in sorted(lane_ids - directory.ledger.deleted):
            settled = directory.ledger.lanes.get(lane_id) or StoredSettled()
            # No qseq is given twice: all that any file names counts, and each message that is lost
            # without a trace may have had one more.
            next_qseq = self.next_qseqs.get(lane_id, 0) + self.lost_count
            if ledger_damaged:
                if contents is not None and lane_id in contents.lanes:
                    newer = list(settled.attempts.ranges())
                    settled.attempts.load(contents.lanes[lane_id].attempts)
                    for range_ in newer:
                        settled.attempts.note(*range_)
                    indexed = contents.settled[lane_id]
                    for block, bits in indexed.bits.items():
                        settled.add_settled(block, bits)
                    for start, end in zip(indexed.full[0::2], indexed.full[1::2], strict=True):
                        settled.mark(start * BLOCK, end * BLOCK)
                    settled.mark(0, indexed.floor)
                settled.delivered = next_qseq
            plan.lanes[lane_id] = (next_qseq, settled)

    def _plan_definitions(self, ledger_damaged: bool) -> None:
        directory, plan = self.directory, self.plan
        mend = plan.definitions
        lane_end = max(
            directory.identity.lane_ids_reserved,
            max([*self.next_qseqs, *mend.lanes, *directory.ledger.deleted, 0]) + 1,
        )
        if ledger_damaged:
            lane_end += _LANE_IDS_MARGIN  # some may have been given, and never used
            mend.adopt(self._orphans())
            mend.actions.append(
                f"make the directory's identity again: {plan.uuid.hex()}, epoch {plan.epoch}, new "
                f"lanes from {lane_end} on"
            )
        plan.lane_ids_reserved = lane_end
        plan.actions += mend.actions
        plan.notes += mend.notes

    def _orphans(self) -> set[int]:
        """Lanes with messages that wait, and whose queue is not known."""
        deleted = self.directory.ledger.deleted
        orphans = self.waiting.keys() - self.plan.definitions.lanes.keys() - deleted
        if self.contents is None:
            return orphans
        indexed = self.contents.lanes  # it would have those whose queue was not deleted
        return {
            lane_id
            for lane_id in orphans
            if lane_id in indexed or not self._index_knows(self.waiting[lane_id])
        }


# -- a damaged segment, piece by piece


@dataclass(frozen=True, slots=True)
class _Pieces:
    """What is kept and what is lost of a segment, in order. It can be iterated several times."""

    directory: Directory
    rewrite: Rewrite
    is_credible: Callable[[Casualty, int, int], bool]
    index_knows: Callable[[int], bool]

    def __iter__(self) -> Iterator[Kept | Loss]:
        rewrite = self.rewrite
        lsn, end = rewrite.base_lsn, 0
        last: Gap | None = None
        for part in walk(self.directory, rewrite.view, lsn, sparse=rewrite.sparse):
            if isinstance(part, Gap) and part.lsn_end is None:
                last = part
            elif isinstance(part, Gap):
                yield from self._between(part, part.lsn_end or 0)
            else:
                yield from _whole(part)
                lsn = part.header.base + part.header.count
                end = part.end
        if lsn < rewrite.end_lsn or any(place >= end for place in rewrite.known):
            gap = last or Gap(end, end, lsn, None)
            yield from self._between(gap, rewrite.end_lsn, last=True)

    def _between(self, gap: Gap, lsn_end: int, *, last: bool = False) -> Iterator[Kept | Loss]:
        """The messages up to this LSN were in the gap; `last`: the file ends here."""
        view, known = self.rewrite.view, self.rewrite.known
        file = self.directory.relative(view.path)
        lsn = gap.lsn_first
        is_foreign = self.directory.is_foreign(view)
        found = casualties_in(self.directory, view, replace(gap, lsn_end=lsn_end), known)
        found = [one for one in found if one.record is not None or one.position in known]
        whole = {
            one.position
            for one in _in_order(one for one in found if one.whole)
            if one.position in known or self.is_credible(one, lsn, lsn_end)
        }
        next_lsn = lsn
        for at, one in enumerate(found):
            # LSNs go up, and leave enough for those that follow.
            next_lsn = min(max(next_lsn, one.lsn or 0), max(lsn_end - (len(found) - at), next_lsn))
            if one.position in whole:
                yield Kept(
                    next_lsn,
                    tuple(lane_id for lane_id, _ in one.targets),
                    tuple(qseq for _, qseq in one.targets),
                    array("I", (one.length,)),
                    self.directory.read(view, one.length, one.position),
                )
            elif not one.whole and (one.position in known or self.is_credible(one, lsn, lsn_end)):
                yield _loss_of(file, one)
            else:  # where it went is damaged, too
                yield replace(_loss_of(file, one), targets=())
            next_lsn += 1
        beyond = sorted(
            place
            for place in known
            if (last and place >= gap.end) or (is_foreign and gap.position <= place < gap.end)
        )
        for place in beyond:  # the file was cut, or another one is in its place
            yield Loss(file, place, 1, known[place].lsn, None, None, None, known[place].targets)
        rest = lsn_end - lsn - len(found) - len(beyond)
        if self.index_knows(lsn_end):
            return  # all that waited is known
        if self.rewrite.sparse:  # how many there were cannot be told from LSNs
            has_bytes = gap.end > gap.position and not is_foreign
            if has_bytes or view.footer_verdict is not Verdict.WHOLE:
                yield Loss(file, gap.position, None, None, None, None, None, ())
        elif rest > 0:
            yield Loss(file, gap.position, rest, None, None, None, None, ())


def _whole(batch: Batch) -> Iterator[Kept]:
    lsn = batch.header.base
    start = batch.end - len(batch.body)
    for lanes, firsts, positions, lengths, *_ in columns_of(batch).runs():
        data = batch.body[positions[0] - start : positions[-1] + lengths[-1] - start]
        yield Kept(lsn, tuple(lanes), tuple(firsts), lengths, data)
        lsn += len(lengths)


def _in_order(casualties: Iterable[Casualty]) -> list[Casualty]:
    """The longest sequence in which the qseqs of each lane go up; messages outside are wrong."""
    kept = list(casualties)
    for lane_id in {lane_id for one in kept for lane_id, _ in one.targets}:
        places = [
            (at, qseq)
            for at, one in enumerate(kept)
            for lane, qseq in one.targets
            if lane == lane_id
        ]
        tails: list[int] = []  # the lowest qseq in which a sequence of each length ends,
        ends: list[int] = []  # where that is,
        before: dict[int, int | None] = {}  # and what comes before each in its sequence
        for at, qseq in places:
            length = bisect_left(tails, qseq)
            tails[length : length + 1] = [qseq]
            ends[length : length + 1] = [at]
            before[at] = ends[length - 1] if length else None
        fitting = set()
        last = ends[-1] if ends else None
        while last is not None:
            fitting.add(last)
            last = before[last]
        kept = [one for at, one in enumerate(kept) if at not in before or at in fitting]
    return kept


def _loss_of(file: str, casualty: Casualty) -> Loss:
    """What can be told of a message that is lost."""
    exchange = routing_key = None
    body_bytes = None
    if casualty.record is not None:
        body_bytes = len(casualty.record.body)
        try:
            envelope = Envelope.unpack(casualty.record.meta, body_bytes)
            exchange, routing_key = (
                well_formed(envelope.exchange),
                well_formed(envelope.routing_key),
            )
        except (ValueError, TypeError, AttributeError):
            pass
    return Loss(
        file,
        casualty.position,
        1,
        casualty.lsn,
        body_bytes,
        exchange,
        routing_key,
        casualty.targets,
    )


def _lost_text(losses: list[Loss]) -> str:
    count = sum(loss.count or 0 for loss in losses)
    if any(loss.count is None for loss in losses):
        return f", {counted(count, 'message')} or more are lost" if count else ""
    return f", {counted(count, 'message')} lost" if count else ""
