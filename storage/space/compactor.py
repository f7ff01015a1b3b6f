"""When compactions happen: one at a time, step by step, no faster than is allowed.

This is the owner's thread; the steps themselves (compact.py) run on the checkpoint thread. The
result of a compaction is passed on in three parts: a record for the ledger, then moves for the
next checkpoints, then, when the index has all moves, the segment itself. For files of spill/ there
are the moves alone.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from qlog.storage.bytes.datadir import Paths
from qlog.storage.bytes.disk import Disk
from qlog.storage.identity import Identity
from qlog.storage.index.index import SPILL, Index, Live, Move
from qlog.storage.settings import StoreSettings
from qlog.storage.space.compact import Compaction, CompactionStep, choose
from qlog.storage.space.spilled import SpillCompaction, choose_spilled
from qlog.storage.write.ledger import SegmentReplaced
from qlog.storage.write.placement import Segment
from qlog.storage.write.spill import SpillWriter

_LOOK_S = 2.0  # between two looks for something to compact
_PAUSE_S = 60.0  # after a compaction that came to nothing
_NEVER_S = 60.0


class Compactor:
    """See the head of this file. `submit` runs a step; its result is to be given to `stepped`."""

    def __init__(
        self,
        disk: Disk,
        paths: Paths,
        index: Index,
        identity: Identity,
        settings: StoreSettings,
        segments: Mapping[int, Segment],
        replaced: dict[int, int],
        *,
        next_id: int,
        spill: SpillWriter[Any],
        submit: Callable[[Callable[[], object]], None],
    ) -> None:
        self.replaced = replaced  # segment that is still there -> the one that replaces it
        self.moves: list[Move] = []  # what the next checkpoints have to move
        self.made: Segment | None = None  # joins the log's segments when the index has all moves
        # The new segment, or file of spill/, as long as the index does not have all moves.
        self.target: int | None = None
        self.spilled: dict[int, int] = {}  # the bytes of each file of spill/ that has messages
        self.spill_current = -1  # the file of spill/ that is still written to
        self._disk = disk
        self._paths = paths
        self._index = index
        self._identity = identity
        self._settings = settings
        self._segments = segments
        self._next_id = next_id
        self._spill = spill
        self._submit = submit
        self._compaction: Compaction | None = None
        self._stepping = False
        self._due_s = 0.0  # the next step, or the next look
        self._unfit: set[int] = set()  # segments that could not be read as they were written
        self._findings: list[str] = []
        self.count = 0  # compactions that were finished since the start
        self.bytes_done = 0  # what they read and wrote

    def has_part(self, segment_id: int) -> bool:
        """Whether a segment is being compacted, or was compacted and is still there."""
        if segment_id in self.replaced:
            return True
        compaction = self._compaction
        return compaction is not None and any(
            source.segment_id == segment_id for source in compaction.sources
        )

    @property
    def working(self) -> bool:
        """A compaction is not finished."""
        return self._compaction is not None

    def tick(
        self,
        now_s: float,
        live: Mapping[int, Live],
        checkpoint_lsn: int,
        excluded: Collection[int],
        keeps: Callable[[Segment], bool],
        *,
        may_begin: bool,
    ) -> float:
        """Do the next step, or look for something to compact, if it is time.

        Returns the seconds until the next time.
        """
        if self._stepping:
            return _NEVER_S  # the result of the step will wake the owner
        if now_s >= self._due_s:
            self._due_s = now_s + _LOOK_S
            if self._compaction is None and may_begin and self.target is None:
                self._begin(now_s, live, checkpoint_lsn, excluded, keeps)
            if self._compaction is not None:
                self._stepping = True
                self._submit(self._compaction.step)
                return _NEVER_S
        return max(self._due_s - now_s, 0.01) if live else _NEVER_S

    def stepped(self, step: CompactionStep, now_s: float) -> SegmentReplaced | None:
        """Take the result of a step. Returns a record for the ledger, if it was the last step."""
        self._stepping = False
        self.bytes_done += step.bytes_done
        self._due_s = now_s + step.bytes_done / self._settings.compact_bytes_per_s
        if step.finished and step.segment is None:  # damage, no space: not at once again
            self._due_s = now_s + _PAUSE_S
        if step.unfit is not None:
            self._found_unfit(step.unfit)
        if not step.finished:
            return None
        self._compaction = None
        if step.segment is None:
            return None
        self.count += 1
        old_ids = [source.segment_id for source in step.compaction.sources]
        new_id = self.target = step.segment.segment_id
        if new_id >= SPILL:
            self.moves += step.moves
            self.spilled[new_id] = step.segment.log_end
            return None
        step.segment.sealed_s = now_s
        there = [id_ for id_ in old_ids if id_ in self._segments]  # some may have died
        self.replaced.update(dict.fromkeys(there, new_id))
        self.moves += step.moves
        self.made = step.segment
        return SegmentReplaced(new_id, old_ids)

    def _found_unfit(self, segment_id: int) -> None:
        if segment_id in self.spilled:
            self._unfit.add(segment_id)
            path = self._paths.spill_file(segment_id)
            self._findings.append(f"{path} is damaged and is not compacted; check the disk")
        elif segment_id in self._segments:  # else it died meanwhile
            self._unfit.add(segment_id)
            path = self._paths.segment(segment_id)
            self._findings.append(
                f"{path} is damaged and is not compacted; run `qlog inspect verify`"
            )

    @property
    def moving(self) -> set[int]:
        """The sources of the segment that was made, as long as the index lacks some of its moves."""
        made = self.made
        if made is None:
            return set()
        return {old for old, new in self.replaced.items() if new == made.segment_id}

    def take_moves(self) -> list[Move]:
        """The moves of the next checkpoint."""
        moves = self.moves[:1]
        del self.moves[:1]
        return moves

    def moved(self) -> Segment | None:
        """The index has the moves that were taken last.

        Returns the new segment if they were all.
        """
        if self.moves:
            return None
        self.target = None
        made, self.made = self.made, None
        return made

    def abandon(self) -> None:
        """Give up an unfinished compaction, unless a step of it is under way."""
        if self._compaction is not None and not self._stepping:
            self._compaction.abandon()
            self._compaction = None

    def take_findings(self) -> list[str]:
        """Damage that was found since the last call, a line each."""
        findings, self._findings = self._findings, []
        return findings

    def _begin(
        self,
        now_s: float,
        live: Mapping[int, Live],
        checkpoint_lsn: int,
        excluded: Collection[int],
        keeps: Callable[[Segment], bool],
    ) -> None:
        sources = choose(
            self._segments.values(),
            live,
            self._settings,
            checkpoint_lsn=checkpoint_lsn,
            now_s=now_s,
            excluded={*excluded, *self.replaced, *self._unfit},
            keeps=keeps,
        )
        if not sources:
            self._begin_spilled(live)
            return
        segment_id = self._next_id
        self._next_id += 1
        self._compaction = Compaction(
            self._disk,
            self._paths,
            self._index,
            self._identity.uuid,
            self._identity.epoch,
            sources,
            segment_id,
        )

    def _begin_spilled(self, live: Mapping[int, Live]) -> None:
        excluded = {self.spill_current, *self._unfit}
        sizes = {id_: size for id_, size in self.spilled.items() if id_ not in excluded}
        sources = choose_spilled(sizes, live, self._settings.segment_bytes_max)
        if sources:
            self._compaction = SpillCompaction(
                self._disk, self._paths, self._index, self._identity, sources, self._spill
            )
