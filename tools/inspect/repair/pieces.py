"""A segment, damaged or not, piece by piece: what stays of it, and what is lost.

Every whole batch stays, and every whole message of damaged batches of which it is known where it
went. What is lost is named message by message, as far as a footer, the index, or the rest of the
message itself tells.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from qlog.server.amqp.envelope import Envelope
from qlog.storage.start.examine import FileView, Verdict
from qlog.storage.write.segment import Batch, columns_of
from qlog.tools.inspect.look.decode import UNDECODABLE
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.look.reader import Gap, casualties_in, is_sparse, walk
from qlog.tools.inspect.look.salvage import Casualty, Known, Target
from qlog.tools.inspect.repair.lanes import KnownLanes
from qlog.tools.inspect.rows import counted, well_formed


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

    It has the messages [base_lsn, end_lsn), and some of them at `known` places.
    """

    directory: Directory
    lanes: KnownLanes
    view: FileView
    base_lsn: int
    end_lsn: int
    known: dict[int, Known]
    kept: int = 0
    kept_bytes: int = 0

    def count(self) -> Iterator[Kept | Loss]:
        """The pieces; what stays is counted."""
        for piece in self.pieces():
            if isinstance(piece, Kept):
                self.kept += len(piece.lengths)
                self.kept_bytes += len(piece.data)
            yield piece

    def pieces(self) -> Iterator[Kept | Loss]:
        """What stays and what does not, in order: read anew each time, since it may be large."""
        lsn, end = self.base_lsn, 0
        last: Gap | None = None
        for part in walk(self.directory, self.view, lsn):
            if isinstance(part, Batch):
                yield from _whole(part)
                lsn = part.header.base + part.header.count
                end = part.end
            elif part.lsn_end is None:
                last = part
            else:
                yield from self._between(part)
        if lsn < self.end_lsn or any(place >= end for place in self.known):
            gap = replace(last or Gap(end, end, lsn, None), lsn_end=self.end_lsn)
            yield from self._between(gap, last=True)

    def _between(self, gap: Gap, *, last: bool = False) -> Iterator[Kept | Loss]:
        """What was in the gap; `last`: the file ends here."""
        directory, view, known = self.directory, self.view, self.known
        file = directory.relative(view.path)
        lsn, lsn_end = gap.lsn_first, gap.lsn_end or 0
        is_foreign = directory.is_foreign(view)
        found = casualties_in(directory, view, gap, known)
        found = [one for one in found if one.record is not None or one.position in known]
        credible = {
            one.position
            for one in found
            if one.position in known or self.lanes.is_credible(one.targets, lsn, lsn_end)
        }
        stay = credible.intersection(in_order([one for one in found if one.whole]))
        next_lsn = lsn
        for at, one in enumerate(found):
            # LSNs go up, and leave enough for those that follow.
            next_lsn = min(max(next_lsn, one.lsn or 0), max(lsn_end - (len(found) - at), next_lsn))
            if one.position in stay:
                lanes = tuple(lane_id for lane_id, _ in one.targets)
                firsts = tuple(qseq for _, qseq in one.targets)
                data = directory.read(view, one.length, one.position)
                yield Kept(next_lsn, lanes, firsts, array("I", (one.length,)), data)
            elif not one.whole and one.position in credible:
                yield loss_of(file, one)
            else:  # where it went is damaged, too
                yield replace(loss_of(file, one), targets=())
            next_lsn += 1
        beyond = sorted(
            place
            for place in known
            if (last and place >= gap.end) or (is_foreign and gap.position <= place < gap.end)
        )
        for place in beyond:  # the file was cut, or another one is in its place
            yield Loss(file, place, lsn=known[place].lsn, targets=known[place].targets)
        rest = lsn_end - lsn - len(found) - len(beyond)
        if self.lanes.index_knows(lsn_end):
            return  # all that waited is known
        if is_sparse(view):  # how many there were cannot be told from LSNs
            has_bytes = gap.end > gap.position and not is_foreign
            if has_bytes or view.footer_verdict is not Verdict.WHOLE:
                yield Loss(file, gap.position, messages=None)
        elif rest > 0:
            yield Loss(file, gap.position, messages=rest)


def _whole(batch: Batch) -> Iterator[Kept]:
    lsn = batch.header.base
    start = batch.end - len(batch.body)
    for lanes, firsts, positions, lengths, *_ in columns_of(batch).runs():
        data = batch.body[positions[0] - start : positions[-1] + lengths[-1] - start]
        yield Kept(lsn, tuple(lanes), tuple(firsts), lengths, data)
        lsn += len(lengths)


def in_order(casualties: Sequence[Casualty]) -> list[int]:
    """Where the longest sequence lies in which each lane's qseqs go up; the others are wrong."""
    kept = list(casualties)
    for lane_id in {lane_id for one in kept for lane_id, _ in one.targets}:
        of_lane = [
            (at, qseq)
            for at, one in enumerate(kept)
            for lane, qseq in one.targets
            if lane == lane_id
        ]
        # The lowest qseq in which a sequence of each length ends, and where that is.
        tails: list[tuple[int, int]] = []
        before: dict[int, int | None] = {}  # what comes before each in its sequence
        for at, qseq in of_lane:
            length = bisect_left(tails, (qseq, -1))
            before[at] = tails[length - 1][1] if length else None
            tails[length : length + 1] = [(qseq, at)]
        fitting = set()
        last = tails[-1][1] if tails else None
        while last is not None:
            fitting.add(last)
            last = before[last]
        kept = [one for at, one in enumerate(kept) if at not in before or at in fitting]
    return [one.position for one in kept]


def loss_of(file: str, casualty: Casualty) -> Loss:
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


def lost_text(losses: list[Loss]) -> str:
    """How many are lost, behind what is done; empty when it is none."""
    count = sum(loss.messages or 0 for loss in losses)
    more = " or more are" if any(loss.messages is None for loss in losses) else ""
    return f", {counted(count, 'message')}{more} lost" if count else ""
