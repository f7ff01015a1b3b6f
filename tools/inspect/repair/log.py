"""What a repair does with the segments: which of them count, and what becomes of damaged ones.

Sound segments stay as they are. Damaged ones are written again with what is left of them, or given
up. At the end the LSNs of those that stay may have gaps only behind sealed segments, as a start
wants it.
"""

from dataclasses import dataclass, field
from itertools import zip_longest

from qlog.storage.start.examine import FileView, Verdict
from qlog.storage.start.fold import COMPACTED
from qlog.storage.write.segment import columns_of
from qlog.tools.inspect.look.casualties import known_of, missing, pointers_into
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.look.log import Segment, Survey
from qlog.tools.inspect.repair.lanes import KnownLanes
from qlog.tools.inspect.repair.pieces import Kept, Loss, Rewrite, loss_of, lost_text
from qlog.tools.inspect.rows import Damage, counted


@dataclass(slots=True)
class LogMend:
    """What is done with the log. `actions` are for people, in the order in which it is done."""

    actions: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    settled_losses: int = 0  # messages that nobody waited for any more
    untraced: int = 0  # lost messages of which nothing says where they went
    rewrites: list[Rewrite] = field(default_factory=list)
    discarded: list[FileView] = field(default_factory=list)
    segment_ids: list[int] = field(default_factory=list)  # that count afterwards
    next_segment_id: int = 1


@dataclass(frozen=True, slots=True)
class _Placed:
    """A segment that counts afterwards, with its first LSN and its end."""

    view: FileView
    base: int
    end: int
    sealed: bool


class LogMending:
    """See the head of this file. Segments that do not count are given up."""

    def __init__(self, directory: Directory, found: Survey) -> None:
        self.directory = directory
        self.views = found.views
        self.segments = {segment.segment_id: segment for segment in found.segments}
        self.mend = LogMend()
        self.counting = self._counting()
        self.mend.discarded += [view for view in found.views if view not in self.counting]
        damaged = [segment.segment_id for segment in found.segments if segment.damage]
        self.pointers = pointers_into(directory, damaged)
        self.kept: list[_Placed] = []

    # -- which segments count

    def _counting(self) -> list[FileView]:
        """The segments whose messages count. A message that is in two segments counts in one."""
        segments = self.segments
        standings = self.directory.standings([view.file_id for view in self.views])
        self._count_sources(standings)
        if self.directory.ledger.damaged:  # that one of them came to count may be what is lost
            for segment_id in [id_ for id_, why in standings.items() if why == "unfinished"]:
                del standings[segment_id]
                segment = segments[segment_id]
                if not segment.whole:  # which the survey tells in a note
                    segment.damage.append(Damage(segment.file, "it is damaged"))
        counting = [view for view in self.views if view.file_id not in standings]
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
                one = segments[other.file_id]
                if one.whole and (one.base_lsn or 0) <= lsn:
                    lsn = max(lsn, one.end_lsn or 0)
            if made_of and lsn >= end:  # all that was in it is still there
                counting = [other for other in counting if other is not view]
        return counting

    def _count_sources(self, standings: dict[int, str]) -> None:
        """Where a compacted segment is lost, and all that it was made of is whole, that counts."""
        replaced = self.directory.ledger.segments.replaced
        present = {view.file_id for view in self.views}
        for segment_id in sorted(set(replaced.values())):
            sources = {one for one, into in replaced.items() if into == segment_id}
            lost = segment_id not in present or self.segments[segment_id].damage
            if lost and all(one in present and self.segments[one].whole for one in sources):
                self.mend.notes.append(
                    f"what had been put together in segment {segment_id} is still there in those "
                    "that it was made of"
                )
                standings[segment_id] = "damaged"
                for source in sources:
                    standings.pop(source, None)

    def note_runs(self, lanes: KnownLanes) -> None:
        """Note what footers and batches say; what decodes of damaged messages is no evidence."""
        views = {view.file_id: view for view in self.views}
        counting = {view.file_id for view in self.counting}
        for segment_id, segment in self.segments.items():
            view = views.get(segment_id)
            if segment.damage and (view is None or view.footer_verdict is not Verdict.WHOLE):
                continue
            lsns = (segment.base_lsn or 0, segment.end_lsn or 0)
            for lane_ids, firsts, positions, *_ in segment.columns.runs():
                lanes.note(
                    lane_ids, firsts, len(positions), lsns if segment_id in counting else None
                )

    # -- what becomes of them

    def run(self, lanes: KnownLanes, end_lsn: int) -> LogMend:
        """What is done with the segments; `end_lsn` is that of the next message."""
        self.lanes, self.end_lsn = lanes, end_lsn
        mend, segments, named = self.mend, self.segments, self.directory.ledger.segments
        bases = self._bases()
        counting = sorted(self.counting, key=lambda view: (bases[view.file_id], view.file_id))
        lsn = 0
        for view, following in zip_longest(counting, counting[1:]):
            segment = segments[view.file_id]
            if segment.state != "reserved":
                after = None
                if following is not None and segments[following.file_id].state != "reserved":
                    after = bases[following.file_id]
                lsn = self._place(view, max(bases[view.file_id], lsn), lsn, after)
            elif segment.damage:
                mend.discarded.append(view)
                mend.actions.append(f"give {segment.file} up: nothing was written to it")
        self._give_up_missing()
        self._seal()
        sealed_ends = [rewrite.end_lsn for rewrite in mend.rewrites]
        gone = end_lsn - max([lsn, *sealed_ends, named.end_lsn])
        if gone > 0 and not any(one.state == "missing" for one in segments.values()):
            self._lose(Loss("log", messages=gone, lsn=end_lsn - gone))
        mend.segment_ids = sorted(one.view.file_id for one in self.kept)
        plain = [id_ for id_ in segments if id_ < COMPACTED]
        # One id is left out, so that `following_lsn` says where the log goes on: see act.py.
        mend.next_segment_id = 2 + max([*plain, named.next_id])
        return mend

    def _bases(self) -> dict[int, int]:
        """Where each segment begins, as the survey has found it."""
        bases: dict[int, int] = {}
        before = 0  # where the last one ended whose place is known
        for view in self.counting:
            segment = self.segments[view.file_id]
            bases[view.file_id] = before if segment.base_lsn is None else segment.base_lsn
            before = segment.end_lsn or before
        return bases

    def _place(self, view: FileView, base: int, lsn: int, after: int | None) -> int:
        """Keep a segment, or what is left of it. Returns where it ends.

        `lsn`: where the one before it ends; `after`: where the next one begins.
        """
        segment = self.segments[view.file_id]
        sealed = view.footer_verdict is Verdict.WHOLE
        if not segment.damage:
            end = segment.end_lsn or lsn
            self.kept.append(_Placed(view, segment.base_lsn or 0, end, sealed))
            return end
        end = self.end_lsn
        if sealed and view.trailer is not None:
            end = view.trailer.end_lsn
        elif after is not None and base < after:  # else its place is not known either
            end = after
        self._write_again(segment, view, base, end)
        return max(lsn, end)

    def _write_again(self, segment: Segment, view: FileView, base: int, end: int) -> None:
        """Write a damaged segment again, or give it up if nothing is left of it."""
        mend = self.mend
        rewrite = self._rewrite(view, base, end)
        lost = lost_text(self._take(rewrite))
        if rewrite.kept:
            mend.rewrites.append(rewrite)
            self.kept.append(_Placed(view, base, end, sealed=True))
            mend.actions.append(
                f"write {segment.file} again with the {counted(rewrite.kept, 'message')} that "
                f"are whole{lost}; the damaged file is moved out"
            )
            return
        mend.discarded.append(view)
        why = "is of use here" if view.is_strange else "is whole"
        mend.actions.append(
            f"give {segment.file} up: no message in it {why}{lost}; the file is moved out"
        )

    def _rewrite(self, view: FileView, base: int, end: int) -> Rewrite:
        known = known_of(self.directory, view, self.pointers.get(view.file_id, {}))
        return Rewrite(self.directory, self.lanes, view, base, end, known)

    def _take(self, rewrite: Rewrite) -> list[Loss]:
        """Find out what a segment still has, and note what it has not."""
        for stretch in self.directory.stretches(rewrite.view):
            if stretch.batch is not None:
                header = stretch.batch.header
                lsns = header.base, header.base + header.count
                for lanes, firsts, positions, *_ in columns_of(stretch.batch).runs():
                    self.lanes.note(lanes, firsts, len(positions), lsns)
        losses = []
        for piece in rewrite.count():
            if isinstance(piece, Kept):
                lsns = piece.lsn, piece.lsn + 1
                self.lanes.note(piece.lanes, piece.firsts, len(piece.lengths), lsns, whole=False)
            else:
                self._lose(piece)
                losses.append(piece)
        return losses

    def _lose(self, loss: Loss) -> None:
        for lane_id, qseq in loss.targets:
            if self.lanes.is_near(lane_id, qseq):
                self.lanes.name(lane_id, qseq + 1)
        if not loss.targets:
            self.mend.untraced += loss.messages or 0
        if loss.waits(self.directory):
            self.mend.losses.append(loss)
        else:
            self.mend.settled_losses += loss.messages or 0

    def _give_up_missing(self) -> None:
        ledger, kept, contents = self.directory.ledger, self.kept, self.lanes.contents
        needed = {} if contents is None else contents.live
        accounted = 0  # up to this LSN
        for segment_id, segment in sorted(self.segments.items()):
            if segment.state != "missing":
                continue
            before = [one.end for one in kept if one.view.file_id < segment_id]
            after = [one.base for one in kept if segment_id < one.view.file_id < COMPACTED]
            first = max([accounted, *before, *ledger.segments.dropped.values()])
            end = min(after, default=self.end_lsn)
            covered = any(one.base <= first and end <= one.end for one in kept)
            alive = segment_id in needed and needed[segment_id].count
            if ledger.damaged and not alive and (covered or first >= end):
                continue  # it was given up, and the ledger does not know it any more
            pointers = self.pointers.get(segment_id, {})
            losses = [loss_of(segment.file, casualty) for casualty in missing(pointers)]
            rest = max(end - first, 0) - len(losses)
            accounted = max(accounted, end)
            if rest > 0 and not self.lanes.index_knows(end):
                losses.append(Loss(segment.file, messages=rest))
            for loss in losses:
                self._lose(loss)
            what = f"give {segment.file} up, which is missing{lost_text(losses)}"
            self.mend.actions.append(what)

    def _seal(self) -> None:
        """Have segments sealed that come before a gap in the LSNs: a start accepts no others."""
        mend, kept = self.mend, self.kept
        rewritten = {rewrite.view.file_id for rewrite in mend.rewrites}
        for one, following in zip_longest(kept, kept[1:]):
            next_base = self.end_lsn if following is None else following.base
            next_to_it = following is not None and following.view.file_id == one.view.file_id + 1
            if one.view.file_id in rewritten or one.end >= next_base:
                continue
            if one.sealed and not next_to_it:
                continue
            rewrite = self._rewrite(one.view, one.base, next_base if next_to_it else one.end)
            for _ in rewrite.count():
                pass
            mend.rewrites.append(rewrite)
            file = self.directory.relative(one.view.path)
            mend.actions.append(f"seal {file}: messages behind it are lost")
