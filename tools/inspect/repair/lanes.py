"""What is known of the lanes: how far each has come, and where its whole messages lie.

A message's hash does not cover where it went, so that what is left of damaged ones has to fit in.
"""

from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Iterable, Sequence

from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.look.pointers import IndexContents
from qlog.tools.inspect.look.salvage import Target

_QSEQ_MARGIN = 4096  # what a damaged message may name above all others


class KnownLanes:
    """See the head of this file. `contents`: the index, if it can be read."""

    def __init__(self, directory: Directory, contents: IndexContents | None) -> None:
        self.contents = contents
        self.next_qseqs: defaultdict[int, int] = defaultdict(int)  # all below were given
        self.waiting: defaultdict[int, int] = defaultdict(int)  # above the LSNs of those that wait
        self._directory = directory
        # lane -> (first, end, LSN, end LSN) of whole runs; these LSNs are rough
        self._placed: defaultdict[int, list[tuple[int, int, int, int]]] = defaultdict(list)
        for lane_id in directory.ledger.lanes:
            self.name(lane_id, directory.ledger.next_qseq(lane_id))
        for lane_id, row in contents.lanes.items() if contents else ():
            self.name(lane_id, row.next_qseq)

    def name(self, lane_id: int, end: int) -> None:
        """All qseqs of the lane below `end` were given, as far as is known."""
        self.next_qseqs[lane_id] = max(self.next_qseqs[lane_id], end)

    def note(
        self,
        lanes: Iterable[int],
        firsts: Iterable[int],
        count: int,
        lsns: tuple[int, int] | None = None,
        *,
        whole: bool = True,
    ) -> None:
        """A run is in the log; if it stays, it is somewhere from one LSN to another.

        `whole`: so is the batch that it lies in.
        """
        for lane_id, first in zip(lanes, firsts, strict=True):
            self.name(lane_id, first + count)
            if lsns is None:
                continue
            if self._directory.unsettled(lane_id, first, count):
                self.waiting[lane_id] = max(self.waiting[lane_id], lsns[1])
            if whole:
                insort(self._placed[lane_id], (first, first + count, *lsns))

    def is_near(self, lane_id: int, qseq: int) -> bool:
        """Whether a lane can have come so far."""
        return lane_id in self.next_qseqs and qseq < self.next_qseqs[lane_id] + _QSEQ_MARGIN

    def is_credible(self, targets: Sequence[Target], lsn: int, lsn_end: int) -> bool:
        """Whether a message can have gone there, by all that is whole.

        It lies somewhere in [lsn, lsn_end), and within a lane LSNs go up with the qseqs.
        """
        for lane_id, qseq in targets:
            if not self.is_near(lane_id, qseq):
                return False
            runs = self._placed.get(lane_id, [])
            at = bisect_right(runs, (qseq, 1 << 64))
            if at and (runs[at - 1][1] > qseq or runs[at - 1][2] >= lsn_end):
                return False
            if at < len(runs) and runs[at][3] <= lsn:
                return False
        return bool(targets)

    def index_knows(self, lsn_end: int) -> bool:
        """Every message below this LSN that waits has a pointer in the index."""
        contents = self.contents
        if contents is None or contents.checkpoint is None or contents.damaged:
            return False
        return contents.checkpoint.lsn >= lsn_end
