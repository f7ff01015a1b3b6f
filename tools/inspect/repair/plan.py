"""What a repair would do, and what would be lost: found out by reading alone.

A repair keeps all sound segments, every whole batch of damaged ones, and every whole message of
damaged batches. The rest is lost, and is named message by message, as far as a footer, the index,
or the rest of the message itself tells.
"""

from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from qlog.server.amqp.envelope import Envelope
from qlog.storage.lanes.settled import BLOCK, Settled
from qlog.storage.start.examine import FileView, Verdict
from qlog.storage.start.fold import COMPACTED
from qlog.storage.write.segment import Batch, columns_of
from qlog.tools.inspect.look.casualties import Pointers, known_of, missing, pointers_into
from qlog.tools.inspect.look.decode import UNDECODABLE
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
    position: int | None = None
    messages: int | None = 1  # None: cannot be known
    lsn: int | None = None
    body_bytes: int | None = None
    exchange: str | None = None
    routing_key: str | None = None
    targets: tuple[Target, ...] = ()

    def document(self, directory: Directory) -> dict[str, Any]:
        document = asdict(self)
        targets = document.pop("targets")
        return document | {"queues": [directory.target(*target) for target in targets]}

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
    lengths: "array[int]"
    data: bytes


@dataclass(slots=True)
class Rewrite:
    """A segment that is written again, with what is left of it.

    `parts` reads what stays and what does not, in order, each time anew: it may be large.
    """

    view: FileView
    base_lsn: int
    end_lsn: int
    parts: Callable[[], Iterator[Kept | Loss]] = lambda: iter(())
    kept: int = 0
    kept_bytes: int = 0

    def keep(self, part: Kept) -> None:
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
    lanes: dict[int, tuple[int, Settled]] = field(default_factory=dict)  # next qseq, settled
    mends_log: bool = False  # segments or ledger: then there is a new ledger, and no index
    moved: list[Path] = field(default_factory=list)  # index and catalog
    ledger_number: int = 0
    definitions: Mend = field(default_factory=Mend)
    uuid: bytes = b""
    epoch: int = 0
    lane_ids_reserved: int = 1

    @property
    def needed(self) -> bool:
        return self.mends_log or bool(self.moved)

    @property
    def written_bytes(self) -> int:
        """At least so much is written to the log before anything is given back."""
        return sum(rewrite.kept_bytes for rewrite in self.rewrites)


def make_plan(directory: Directory) -> Plan:
    """Look at everything once. Raises OtherFormat, Forbidden, PermissionError."""
    return _Planner(directory, survey(directory, verify=True)).run()


@dataclass(frozen=True, slots=True)
class _Placed:
    view: FileView
    base: int
    end: int
    sealed: bool


class _Planner:
    def __init__(self, directory: Directory, found: Survey) -> None:
        self.directory = directory
        self.plan = Plan()
        self.found = found
        self.segments = {segment.segment_id: segment for segment in found.segments}
        self.contents: IndexContents | None = None
        self.pointers: Pointers = {}
        # lane -> (first, end, LSN, end LSN) of whole runs; these LSNs are rough
        self.placed: dict[int, list[tuple[int, int, int, int]]] = {}
        self.next_qseqs: dict[int, int] = {}
        self.waiting: dict[int, int] = {}  # lane -> the highest LSN, or above, of one that waits
        self.lost_count = 0  # messages of which nothing says where they went
        if directory.index_facts.readable:
            with suppress(Unreadable):
                self.contents = read_contents(directory.paths.index)

    def run(self) -> Plan:
        directory, plan, found = self.directory, self.plan, self.found
        plan.definitions = collect(directory)
        plan.mends_log = bool(found.damage or directory.ledger.damaged or plan.definitions.actions)
        counting = self._counting()
        self._note_what_is_known({view.file_id for view in counting})
        plan.damage = directory.damage + found.damage
        if plan.mends_log:
            plan.discarded = [view for view in found.views if view not in counting]
            damaged = [segment.segment_id for segment in found.segments if segment.damage]
            self.pointers = pointers_into(directory, damaged)
            self._plan_log(counting)
            self._plan_ledger()
            self._fold_lanes()
            self._plan_definitions()
        wrong_of = {directory.paths.index: self._index_is_wrong()}
        wrong_of[directory.paths.catalog] = self._catalog_is_wrong()
        for path, wrong in wrong_of.items():
            if path.exists() and (wrong or plan.mends_log):
                why = "it is damaged, and the next start" if wrong else "the next start"
                plan.actions.append(f"move the {path.stem} out: {why} makes it anew")
                plan.moved.append(path)
                if not plan.damage:
                    plan.damage.append(Damage(path.name, "it does not agree with log and ledger"))
        if plan.definitions.actions and not plan.damage:
            what = "definitions name what is not there"
            plan.damage.append(Damage(directory.ledger_file_name, what))
        return plan

    def _catalog_is_wrong(self) -> bool:
        return self._is_damaged("catalog.lmdb") or bool(self.directory.catalog_differs())

    def _index_is_wrong(self) -> bool:
        """Whether the index is damaged, or contradicts a log and a ledger that are sound."""
        contents = self.contents
        if contents is None or contents.damaged or self._is_damaged("index.lmdb"):
            return True
        if self.plan.mends_log:
            return False
        return compare(self.directory, contents, self.found.segments).differs

    def _is_damaged(self, file: str) -> bool:
        return any(item.file == file for item in self.directory.damage)

    # -- what is known

    def _note_what_is_known(self, counting: set[int]) -> None:
        directory, plan = self.directory, self.plan
        facts = directory.ledger.segments
        plan.uuid = directory.identity.uuid
        ends = [directory.attested_lsn, facts.listed_end_lsn, *facts.dropped.values()]
        epochs = [directory.identity.epoch]
        numbers = [0]  # of batches of the ledger
        views = {view.file_id: view for view in self.found.views}
        for segment in self.found.segments:
            base, end = segment.base_lsn or 0, segment.end_lsn or 0
            ends.append(end)
            view = views.get(segment.segment_id)
            if segment.damage and (view is None or view.footer_verdict is not Verdict.WHOLE):
                continue  # what decodes of damaged messages is no evidence
            for lanes, firsts, positions, *_ in segment.columns.runs():
                if segment.segment_id in counting:
                    self._place(lanes, firsts, len(positions), base, end)
                else:
                    self._name_all(lanes, firsts, len(positions))
        ledgers = [directory.ledger_file(id_) for id_ in directory.ledger_ids()]
        for stretch in chain.from_iterable(map(directory.stretches, ledgers)):
            if stretch.batch is not None:
                epochs.append(stretch.batch.header.epoch)
                numbers.append(stretch.batch.header.base + 1)
        for view in (*views.values(), *ledgers):
            if view.header is not None and view.header_verdict is Verdict.WHOLE:
                epochs.append(view.header.epoch)
        for lane_id in directory.ledger.lanes:
            self._name(lane_id, directory.ledger.next_qseq(lane_id))
        if directory.catalog_facts.checkpoint is not None:
            numbers.append(directory.catalog_facts.checkpoint.ledger.number)
        if self.contents is not None:
            for lane_id, row in self.contents.lanes.items():
                self._name(lane_id, row.next_qseq)
            if self.contents.checkpoint is not None:
                ends.append(self.contents.checkpoint.lsn)
                numbers.append(self.contents.checkpoint.ledger.number)
        plan.epoch, plan.end_lsn, plan.ledger_number = max(epochs), max(ends), max(numbers)

    def _place(
        self, lanes: Iterable[int], firsts: Iterable[int], count: int, lsn: int, lsn_end: int
    ) -> None:
        """A whole run is in the log and counts, somewhere from one LSN to another."""
        self._keep(lanes, firsts, count, lsn_end)
        for lane_id, first in zip(lanes, firsts, strict=True):
            insort(self.placed.setdefault(lane_id, []), (first, first + count, lsn, lsn_end))

    def _keep(self, lanes: Iterable[int], firsts: Iterable[int], count: int, lsn_end: int) -> None:
        """A run stays, and lies below this LSN."""
        self._name_all(lanes, firsts, count)
        for lane_id, first in zip(lanes, firsts, strict=True):
            if self.directory.unsettled(lane_id, first, count):
                self.waiting[lane_id] = max(self.waiting.get(lane_id, 0), lsn_end)

    def _name_all(self, lanes: Iterable[int], firsts: Iterable[int], count: int) -> None:
        for lane_id, first in zip(lanes, firsts, strict=True):
            self._name(lane_id, first + count)

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

    def _counting(self) -> list[FileView]:
        """The segments whose messages count. A message that is in two segments counts in one."""
        directory, views, segments = self.directory, self.found.views, self.segments
        replaced = directory.ledger.segments.replaced
        standings = directory.standings([view.file_id for view in views])
        by_id = {view.file_id: view for view in views}
        for segment_id in sorted(set(replaced.values())):
            sources = {one for one, into in replaced.items() if into == segment_id}
            lost = segment_id not in by_id or segments[segment_id].damage
            if lost and all(one in by_id and segments[one].whole for one in sources):
                self.plan.notes.append(
                    f"what had been put together in segment {segment_id} is still there in those "
                    "that it was made of"
                )
                standings[segment_id] = "damaged"
                for source in sources:
                    standings.pop(source, None)
        if directory.ledger.damaged:  # that one of them came to count may be what is lost
            for segment_id in [id_ for id_, why in standings.items() if why == "unfinished"]:
                del standings[segment_id]
                segment = segments[segment_id]
                if not segment.whole:  # which the survey tells in a note
                    segment.damage.append(Damage(segment.file, "it is damaged"))
        counting = [view for view in views if view.file_id not in standings]
        for view in [one for one in counting if one.file_id >= COMPACTED]:
            segment = segments[view.file_id]
            lsn, end = segment.base_lsn or 0, segment.end_lsn or 0
            made_of = [
                other
                for other in counting
                if other.file_id < view.file_id
                and other.header is not None
                and lsn <= other.header.base < end
            ]
            if segment.whole:  # what it is made of does not count beside it
                counting = [other for other in counting if other not in made_of]
                continue
            for other in made_of:  # in the order of their LSNs
                found = segments[other.file_id]
                if found.whole and (found.base_lsn or 0) <= lsn:
                    lsn = max(lsn, found.end_lsn or 0)
            if made_of and lsn >= end:  # all that was in it is still there
                counting = [other for other in counting if other is not view]
        return counting

    def _plan_log(self, counting: list[FileView]) -> None:
        directory, plan, segments = self.directory, self.plan, self.segments
        lsn = 0
        kept: list[_Placed] = []
        bases = self._bases(counting)
        counting = sorted(counting, key=lambda view: (bases[view.file_id], view.file_id))
        for view, following in zip_longest(counting, counting[1:]):
            segment = segments[view.file_id]
            if segment.state == "reserved":
                if segment.damage:
                    plan.discarded.append(view)
                    plan.actions.append(f"give {segment.file} up: nothing was written to it")
                continue
            sealed = view.footer_verdict is Verdict.WHOLE
            if not segment.damage:
                lsn = segment.end_lsn or lsn
                kept.append(_Placed(view, segment.base_lsn or 0, lsn, sealed))
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
            if self._mend(segment, view, base, end):
                kept.append(_Placed(view, base, end, True))
            lsn = max(lsn, end)
        self._plan_missing(kept)
        self._seal(kept)
        sealed_ends = [rewrite.end_lsn for rewrite in plan.rewrites]
        gone = plan.end_lsn - max([lsn, *sealed_ends, directory.ledger.segments.end_lsn])
        if gone > 0 and not any(one.state == "missing" for one in segments.values()):
            self._lose(Loss("log", messages=gone, lsn=plan.end_lsn - gone))
        plan.segment_ids = sorted(one.view.file_id for one in kept)
        plain = [id_ for id_ in segments if id_ < COMPACTED]
        # One id is left out, so that `following_lsn` says where the log goes on: see act.py.
        plan.next_segment_id = 2 + max([*plain, directory.ledger.segments.next_id])

    def _mend(self, segment: Segment, view: FileView, base: int, end: int) -> bool:
        """Write a damaged segment again, or give it up if nothing is left of it."""
        rewrite = self._rewrite(view, base, end)
        lost = _lost_text(self._take(rewrite))
        if rewrite.kept:
            self.plan.rewrites.append(rewrite)
            self.plan.actions.append(
                f"write {segment.file} again with the {counted(rewrite.kept, 'message')} that "
                f"are whole{lost}; the damaged file is moved out"
            )
            return True
        self.plan.discarded.append(view)
        why = "is of use here" if view.is_strange else "is whole"
        self.plan.actions.append(
            f"give {segment.file} up: no message in it {why}{lost}; the file is moved out"
        )
        return False

    def _bases(self, counting: list[FileView]) -> dict[int, int]:
        """Where each segment begins, as the survey has found it."""
        bases: dict[int, int] = {}
        before = 0  # where the last one ended whose place is known
        for view in counting:
            segment = self.segments[view.file_id]
            bases[view.file_id] = before if segment.base_lsn is None else segment.base_lsn
            before = segment.end_lsn or before
        return bases

    def _rewrite(self, view: FileView, base: int, end: int) -> Rewrite:
        known = known_of(self.directory, view, self.pointers.get(view.file_id, {}))
        rewrite = Rewrite(view, base, end)
        rewrite.parts = partial(self._parts, rewrite, known)
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
        for part in rewrite.parts():
            if isinstance(part, Kept):
                rewrite.keep(part)
                self._keep(part.lanes, part.firsts, len(part.lengths), part.lsn + 1)
            else:
                self._lose(part)
                losses.append(part)
        return losses

    def _lose(self, loss: Loss) -> None:
        for lane_id, qseq in loss.targets:
            if self._is_near(lane_id, qseq):
                self._name(lane_id, qseq + 1)
        if not loss.targets:
            self.lost_count += loss.messages or 0
        if loss.waits(self.directory):
            self.plan.losses.append(loss)
        else:
            self.plan.settled_losses += loss.messages or 0

    def _is_near(self, lane_id: int, qseq: int) -> bool:
        """Whether a lane can have come so far."""
        return lane_id in self.next_qseqs and qseq < self.next_qseqs[lane_id] + _QSEQ_MARGIN

    def _is_credible(self, casualty: Casualty, lsn: int, lsn_end: int) -> bool:
        """Whether the targets of a message can be right, by all that is whole.

        The message's hash does not cover its targets. The message lies somewhere in [lsn, lsn_end),
        and within a lane LSNs go up with the qseqs.
        """
        for lane_id, qseq in casualty.targets:
            if not self._is_near(lane_id, qseq):
                return False
            runs = self.placed.get(lane_id, [])
            at = bisect_right(runs, (qseq, 1 << 64))
            if at and (runs[at - 1][1] > qseq or runs[at - 1][2] >= lsn_end):
                return False
            if at < len(runs) and runs[at][3] <= lsn:
                return False
        return bool(casualty.targets)

    def _plan_missing(self, kept: list[_Placed]) -> None:
        directory, plan = self.directory, self.plan
        needed = {} if self.contents is None else self.contents.live
        accounted = 0  # up to this LSN
        for segment_id, segment in sorted(self.segments.items()):
            if segment.state != "missing":
                continue
            before = [one.end for one in kept if one.view.file_id < segment_id]
            after = [one.base for one in kept if segment_id < one.view.file_id < COMPACTED]
            first = max([accounted, *before, *directory.ledger.segments.dropped.values()])
            end = min(after, default=plan.end_lsn)
            covered = any(one.base <= first and end <= one.end for one in kept)
            alive = segment_id in needed and needed[segment_id].count
            if directory.ledger.damaged and not alive and (covered or first >= end):
                continue  # it was given up, and the ledger does not know it any more
            pointers = self.pointers.get(segment_id, {})
            losses = [_loss_of(segment.file, casualty) for casualty in missing(pointers)]
            rest = max(end - first, 0) - len(losses)
            accounted = max(accounted, end)
            if rest > 0 and not self._index_knows(end):
                losses.append(Loss(segment.file, messages=rest))
            for loss in losses:
                self._lose(loss)
            plan.actions.append(f"give {segment.file} up, which is missing{_lost_text(losses)}")

    def _seal(self, kept: list[_Placed]) -> None:
        """Have segments sealed that come before a gap in the LSNs: a start accepts no others."""
        plan = self.plan
        rewritten = {rewrite.view.file_id for rewrite in plan.rewrites}
        for one, following in zip_longest(kept, kept[1:]):
            next_base = plan.end_lsn if following is None else following.base
            next_to_it = following is not None and following.view.file_id == one.view.file_id + 1
            if one.view.file_id in rewritten or one.end >= next_base:
                continue
            if one.sealed and not next_to_it:
                continue
            rewrite = self._rewrite(one.view, one.base, next_base if next_to_it else one.end)
            for part in rewrite.parts():
                if isinstance(part, Kept):
                    rewrite.keep(part)
            plan.rewrites.append(rewrite)
            plan.actions.append(
                f"seal {self.directory.relative(one.view.path)}: messages behind it are lost"
            )

    # -- ledger, lanes, definitions

    def _plan_ledger(self) -> None:
        plan = self.plan
        if not self.directory.ledger.damaged:
            plan.actions.append(
                "write a new ledger with all that was settled, which says which segments count"
            )
            return
        source = "what is left of it"
        if self.contents is not None and self.contents.checkpoint is not None:
            source += " and from the index, which has what was settled until its last checkpoint"
        plan.actions.append(f"write a new ledger from {source}; the damaged one is moved out")
        plan.notes.append(
            "settlements are lost: messages that had been acknowledged come back, marked as "
            "redelivered, and so are all others that wait"
        )

    def _fold_lanes(self) -> None:
        ledger, plan = self.directory.ledger, self.plan
        lane_ids = self.next_qseqs.keys() | plan.definitions.lanes.keys()
        for lane_id in sorted(lane_ids - ledger.deleted):
            settled = ledger.lanes.get(lane_id) or Settled()
            # No qseq is given twice: all that any file names counts, and each message that is lost
            # without a trace may have had one more.
            next_qseq = self.next_qseqs.get(lane_id, 0) + self.lost_count
            if ledger.damaged:
                if self.contents is not None and lane_id in self.contents.lanes:
                    _add_indexed(settled, lane_id, self.contents)
                settled.delivered = next_qseq
            plan.lanes[lane_id] = (next_qseq, settled)

    def _plan_definitions(self) -> None:
        directory, plan = self.directory, self.plan
        mend = plan.definitions
        lane_end = max(
            directory.identity.lane_ids_reserved,
            max([*self.next_qseqs, *mend.lanes, *directory.ledger.deleted, 0]) + 1,
        )
        if directory.ledger.damaged:
            lane_end += _LANE_IDS_MARGIN  # some may have been given, and never used
            mend.adopt_streams(directory.stream_files(), directory.ledger.deleted)
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

    def _parts(self, rewrite: Rewrite, known: dict[int, Known]) -> Iterator[Kept | Loss]:
        """What is kept and what is lost of a segment, in order."""
        view, lsn, end = rewrite.view, rewrite.base_lsn, 0
        sparse = view.file_id >= COMPACTED or (view.header is not None and view.header.sparse)
        last: Gap | None = None
        for part in walk(self.directory, view, lsn, sparse=sparse):
            if isinstance(part, Batch):
                yield from _whole(part)
                lsn = part.header.base + part.header.count
                end = part.end
            elif part.lsn_end is None:
                last = part
            else:
                yield from self._between(view, part, known, sparse)
        if lsn < rewrite.end_lsn or any(place >= end for place in known):
            gap = replace(last or Gap(end, end, lsn, None), lsn_end=rewrite.end_lsn)
            yield from self._between(view, gap, known, sparse, last=True)

    def _between(
        self, view: FileView, gap: Gap, known: dict[int, Known], sparse: bool, *, last: bool = False
    ) -> Iterator[Kept | Loss]:
        """What was in the gap; `last`: the file ends here."""
        file = self.directory.relative(view.path)
        lsn, lsn_end = gap.lsn_first, gap.lsn_end or 0
        is_foreign = self.directory.is_foreign(view)
        found = casualties_in(self.directory, view, gap, known)
        found = [one for one in found if one.record is not None or one.position in known]
        credible = {
            one.position
            for one in found
            if one.position in known or self._is_credible(one, lsn, lsn_end)
        }
        whole = {one.position for one in _in_order(one for one in found if one.whole)} & credible
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
            elif not one.whole and one.position in credible:
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
            yield Loss(file, place, lsn=known[place].lsn, targets=known[place].targets)
        rest = lsn_end - lsn - len(found) - len(beyond)
        if self._index_knows(lsn_end):
            return  # all that waited is known
        if sparse:  # how many there were cannot be told from LSNs
            has_bytes = gap.end > gap.position and not is_foreign
            if has_bytes or view.footer_verdict is not Verdict.WHOLE:
                yield Loss(file, gap.position, messages=None)
        elif rest > 0:
            yield Loss(file, gap.position, messages=rest)


def _add_indexed(settled: Settled, lane_id: int, contents: IndexContents) -> None:
    """Settle what the index says of a lane, whose attempts are older than the ledger's."""
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
    record = casualty.record
    loss = Loss(file, casualty.position, lsn=casualty.lsn, targets=casualty.targets)
    if record is None:
        return loss
    loss = replace(loss, body_bytes=len(record.body))
    with suppress(*UNDECODABLE):
        envelope = Envelope.unpack(record.meta, len(record.body))
        exchange, routing_key = well_formed(envelope.exchange), well_formed(envelope.routing_key)
        loss = replace(loss, exchange=exchange, routing_key=routing_key)
    return loss


def _lost_text(losses: list[Loss]) -> str:
    count = sum(loss.messages or 0 for loss in losses)
    more = " or more are" if any(loss.messages is None for loss in losses) else ""
    return f", {counted(count, 'message')}{more} lost" if count else ""
