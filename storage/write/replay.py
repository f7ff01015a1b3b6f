"""The durable stream of a directory, read from its files: entries in an order that can be applied.

Log and ledger are two streams. A batch of the ledger says how far the log had been synced before
it: the messages up to there come first. So a definition comes before the messages of its queue, and
a settlement after its message. There is one exception in the files: consumers get messages before
these are durable, so a settlement may have reached the ledger first (on a full disk, or beside the
definition of another queue). What was said of a message before it comes is said again after it.

Reads batch by batch. What it keeps meanwhile is what recovery keeps of lanes: what is settled and
what came back, as ranges. The state of lanes is folded by start/fold.py, as recovery does it.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

from qlog.storage import journal
from qlog.storage.bytes.batch import BATCH_HEADER_BYTES, FILE_HEADER_BYTES
from qlog.storage.bytes.datadir import Paths, numbered
from qlog.storage.bytes.disk import Disk
from qlog.storage.bytes.record import RECORD_HEADER
from qlog.storage.errors import CorruptLog, PositionGone
from qlog.storage.identity import IDENTITY
from qlog.storage.journal import OF_LANE, Defined, Entry, Messages, Position, Replay
from qlog.storage.lanes.settled import Settled
from qlog.storage.start.fold import LaneFacts
from qlog.storage.write.ledger import LedgerPosition, Record, SnapshotEnd, unpack_body
from qlog.storage.write.placement import Segment
from qlog.storage.write.segment import Batch, BatchFile, columns_of

_ADVICE = "begin again with the snapshot"
_DAMAGED = "run `qlog inspect verify`"


class Stretch(NamedTuple):
    """A segment, as it was when the replay began."""

    base_lsn: int
    segment_id: int
    end_lsn: int
    log_end: int

    @classmethod
    def of(cls, segment: Segment) -> "Stretch":
        """Segments change: this does not."""
        return cls(segment.base_lsn, segment.segment_id, segment.end_lsn, segment.log_end)


class Places(NamedTuple):
    """Where a position is in the files: there the next batch of the ledger and of the log begin."""

    position: Position
    ledger: LedgerPosition
    segment_id: int
    segment_position: int


@dataclass(frozen=True, slots=True)
class _LedgerFile:
    file_id: int
    base: int  # the number of its first batch


class Stream:
    """See the head of this file.

    Arguments: `stretches` are the segments that count, `end` is how far the files are to be read:
    all that is settled before `end` must be of messages before `end`. `known`: a replay after this
    position need not look for the place where it begins.
    """

    def __init__(
        self,
        disk: Disk,
        paths: Paths,
        uuid: bytes,
        stretches: Sequence[Stretch],
        end: Position,
        known: Places | None = None,
    ) -> None:
        self._disk = disk
        self._paths = paths
        self._uuid = uuid
        self._stretches = sorted(one for one in stretches if one.base_lsn < end.lsn)
        self._end = end
        self._known = known

    def replay(self, after: Position | None) -> Replay:
        """What came after a position; None: all there is. Raises PositionGone, OSError."""
        files = self._files(self._end.batch if after is None else after.batch)
        if after is None:
            return Replay(self._end, self._all(files[-1]))
        if after.lsn > self._end.lsn or after.batch > self._end.batch:
            raise PositionGone("the position is ahead of the journal: this is an older copy of it")
        self._check_log(after.lsn)
        return Replay(self._end, self._since(files, after))

    # -- what there is

    def _files(self, batch: int) -> list[_LedgerFile]:
        """The ledger's files from the one with this batch on, up to the end."""
        found: list[_LedgerFile] = []
        for file_id in reversed(numbered(self._disk, self._paths.ledger, ".qack")):
            header = None
            try:
                file = self._ledger_file(file_id)
            except FileNotFoundError:  # the next one has taken over
                continue
            try:
                if file.header_belongs_here:
                    header = file.header
            finally:
                file.close()
            if header is None:
                break
            if header.base > self._end.batch:  # it is younger than the end
                continue
            found.insert(0, _LedgerFile(file_id, header.base))
            if header.base <= batch:
                return found
        raise PositionGone(f"the ledger does not go back to batch {batch}: {_ADVICE}")

    def _check_log(self, lsn: int) -> None:
        """Every message from `lsn` on is there: no segment was given up or compacted."""
        for one in self._stretches:
            if one.end_lsn <= lsn:
                continue
            file = self._segment(one)
            try:
                sparse = file.header is not None and file.header.sparse
            finally:
                file.close()
            if sparse or one.base_lsn > lsn:
                break
            lsn = one.end_lsn
        if lsn < self._end.lsn:
            raise PositionGone(f"the log does not have message {lsn} any more: {_ADVICE}")

    # -- both streams as one

    def _all(self, file: _LedgerFile) -> Iterator[Entry]:
        """The snapshot, and what came since.

        The snapshot has definitions behind lanes: they are read first. The log still has messages
        of lanes that were deleted before: the snapshot does not name these.
        """
        with closing(self._log(0)) as log:
            merge = Merge(log)
            named: set[int] = set()
            for _, records in self._snapshot(file):
                for record in records:
                    if isinstance(record, Defined):
                        yield from merge.entry(record)
                    elif isinstance(record, journal.LaneState):
                        named.add(record.lane_id)
            merge.named = named
            for durable_lsn, records in self._snapshot(file):
                others = [record for record in records if not isinstance(record, Defined)]
                yield from merge.batch(durable_lsn, others)
            merge.named = None
            yield from self._rest(merge, [file], file.base)

    def _since(self, files: Sequence[_LedgerFile], after: Position) -> Iterator[Entry]:
        with closing(self._log(after.lsn)) as log:
            yield from self._rest(Merge(log), files, after.batch)

    def _rest(self, merge: "Merge", files: Sequence[_LedgerFile], first: int) -> Iterator[Entry]:
        for durable_lsn, records in self._batches(files, first):
            yield from merge.batch(durable_lsn, records)
        yield from merge.messages(self._end.lsn)

    # -- the ledger

    def _snapshot(self, file: _LedgerFile) -> Iterator[tuple[int, list[Record]]]:
        """(the log's durable LSN, records) of each batch of a file's snapshot."""
        for batch in self._read(file, file.base):
            durable_lsn, records = unpack_body(batch.body)
            yield durable_lsn, records
            if SnapshotEnd() in records:
                return

    def _batches(
        self, files: Sequence[_LedgerFile], first: int
    ) -> Iterator[tuple[int, list[Record]]]:
        """(the log's durable LSN, records) of each batch from number `first` on, to the end.

        Snapshots say what came before them once more, and are passed over.
        """
        number = first
        for file in files:
            if file.base > number:  # a full disk: the snapshot has what was never written
                raise PositionGone(f"the ledger has no batch {number}: {_ADVICE}")
            is_snapshot = number == file.base  # no position lies within a snapshot
            for batch in self._read(file, number):
                if batch.header.base >= self._end.batch:
                    return
                number = batch.header.base + 1
                durable_lsn, records = unpack_body(batch.body)
                if not is_snapshot:
                    yield durable_lsn, records
                elif SnapshotEnd() in records:
                    is_snapshot = False
        if number < self._end.batch:
            path = self._paths.ledger_file(files[-1].file_id)
            if files[-1].file_id not in numbered(self._disk, self._paths.ledger, ".qack"):
                raise PositionGone(f"{path} was removed: {_ADVICE}")
            raise CorruptLog(f"{path} is damaged: batch {number} is not there; {_DAMAGED}")

    def _read(self, file: _LedgerFile, first: int) -> Iterator[Batch]:
        """The batches of a file from number `first` on."""
        opened = self._open(lambda: self._ledger_file(file.file_id))
        try:
            known = self._known
            position, at = FILE_HEADER_BYTES, file.base
            if known is not None and (known.ledger.file_id, known.ledger.number) == (
                file.file_id,
                first,
            ):
                position, at = known.ledger.position, first
            for number in count(at):
                header = opened.header_at(position)
                if header is None or header.base != number:
                    return
                if number >= first:
                    batch = opened.batch_at(position)
                    if batch is None:
                        return
                    yield batch
                position += BATCH_HEADER_BYTES + header.body_bytes
        finally:
            opened.close()

    def _ledger_file(self, file_id: int) -> BatchFile:
        return BatchFile(self._disk, self._paths.ledger_file(file_id), self._uuid, file_id)

    # -- the log

    def _log(self, first: int) -> Generator[tuple[int, Messages], None, None]:
        """(LSN of the first, run) of all messages from LSN `first` on, to the end."""
        for one in self._stretches:
            if one.end_lsn > first:
                yield from self._runs(one, first)

    def _runs(self, one: Stretch, first: int) -> Iterator[tuple[int, Messages]]:
        file = self._segment(one)
        try:
            known = self._known
            position, lsn = FILE_HEADER_BYTES, one.base_lsn
            if known is not None and (known.segment_id, known.position.lsn) == (
                one.segment_id,
                first,
            ):
                position, lsn = known.segment_position, first
            end_lsn = min(one.end_lsn, self._end.lsn)
            while lsn < end_lsn and position < one.log_end:
                header = file.header_at(position)
                if header is None:
                    raise CorruptLog(f"{file.path} is damaged at byte {position}; {_DAMAGED}")
                lsn = header.base + header.count
                if lsn > first:
                    batch = file.batch_at(position)
                    if batch is None:
                        raise CorruptLog(f"{file.path} is damaged at byte {position}; {_DAMAGED}")
                    for at, messages in runs_of(batch):
                        skipped = min(max(first - at, 0), len(messages.bodies))
                        if skipped < len(messages.bodies):
                            yield at + skipped, _part(messages, skipped, None)
                position += BATCH_HEADER_BYTES + header.body_bytes
        finally:
            file.close()

    def _segment(self, one: Stretch) -> BatchFile:
        path = self._paths.segment(one.segment_id)
        return self._open(lambda: BatchFile(self._disk, path, self._uuid, one.segment_id))

    def _open(self, open_: Callable[[], BatchFile]) -> BatchFile:
        try:
            return open_()
        except FileNotFoundError as error:
            raise PositionGone(f"{error.filename} was removed: {_ADVICE}") from error


class Merge:
    """Merges the two streams, and knows what was said of lanes so far."""

    def __init__(self, log: Iterator[tuple[int, Messages]]) -> None:
        self._log = log
        self._next = next(log, None)
        self.named: set[int] | None = None  # if not None, all other lanes are gone
        self._lanes: dict[int, Settled] = {}
        self._facts: LaneFacts[Settled] = LaneFacts(
            lambda lane_id: self._lanes.setdefault(lane_id, Settled())
        )

    def batch(self, durable_lsn: int, records: Sequence[Record]) -> Iterator[Entry]:
        """A batch of the ledger, which was written when the log was durable up to this LSN."""
        yield from self.messages(durable_lsn)
        for record in records:
            yield from self.entry(record)

    def entry(self, record: Record) -> Iterator[Entry]:
        """What a record says to others: facts of this directory are kept back."""
        if isinstance(record, OF_LANE):
            self._facts.apply(record)
            if isinstance(record, journal.LaneDeleted):
                self._lanes.pop(record.lane_id, None)
            yield record
        elif isinstance(record, journal.Time) or (
            isinstance(record, Defined) and record[:2] != IDENTITY
        ):
            yield record

    def messages(self, upto: int) -> Iterator[Entry]:
        """The messages below this LSN that are still to come."""
        while self._next is not None:
            lsn, messages = self._next
            if lsn >= upto:
                return
            if lsn + len(messages.bodies) > upto:  # in a compacted segment batches are others
                self._next = (upto, _part(messages, upto - lsn, None))
                messages = _part(messages, 0, upto - lsn)
            else:
                self._next = next(self._log, None)
            yield from self._run(messages)

    def _run(self, messages: Messages) -> Iterator[Entry]:
        """A run, without lanes that were deleted, and what was said of it before it came."""
        deleted, named = self._facts.deleted, self.named
        targets = list(zip(messages.lane_ids, messages.firsts, strict=True))
        kept = [
            target
            for target in targets
            if target[0] not in deleted and (named is None or target[0] in named)
        ]
        if not kept:
            return
        if len(kept) < len(targets):
            lane_ids, firsts = zip(*kept, strict=True)
            messages = messages._replace(lane_ids=lane_ids, firsts=firsts)
        yield messages
        for lane_id, first in zip(messages.lane_ids, messages.firsts, strict=True):
            yield from self._again(lane_id, first, first + len(messages.bodies))

    def _again(self, lane_id: int, first: int, end: int) -> Iterator[Entry]:
        """What was said of the messages [first, end) of a lane before they came."""
        lane = self._lanes.get(lane_id)
        if lane is None:
            return
        attempts: list[int] = []
        for low, high, number in lane.attempts.ranges():
            if low < end and high > first:
                attempts += (max(low, first), min(high, end), number)
        if attempts:
            yield journal.Attempts(lane_id, attempts)
        ranges: list[int] = []
        at = first
        while at < end:
            start, stop = lane.stretch(at, end, end - at)
            if start > at:
                ranges += (at, start)
            at = max(start, stop)
        if ranges:
            yield journal.Settled(lane_id, ranges)


def runs_of(batch: Batch) -> Iterator[tuple[int, Messages]]:
    """(LSN of the first, run) of a batch of the log."""
    data = batch.body
    base = batch.position + BATCH_HEADER_BYTES
    lsn = batch.header.base
    for run in columns_of(batch).runs():
        metas: list[bytes] = []
        bodies: list[bytes] = []
        times_ms: list[int] = []
        for position, length, size in zip(run.positions, run.lengths, run.sizes, strict=True):
            _, meta_bytes, _, _, _, _, time_ms, _ = RECORD_HEADER.unpack_from(data, position - base)
            end = position - base + length
            metas.append(data[end - size - meta_bytes : end - size])
            bodies.append(data[end - size : end])
            times_ms.append(time_ms)
        dues_ms = None if run.dues_ms is None else list(run.dues_ms)
        yield lsn, Messages(list(run.lanes), list(run.firsts), metas, bodies, times_ms, dues_ms)
        lsn += len(bodies)


def _part(messages: Messages, start: int, stop: int | None) -> Messages:
    """The messages of a run from index `start` to `stop`."""
    lane_ids, firsts, metas, bodies, times_ms, dues_ms = messages
    return Messages(
        lane_ids,
        [first + start for first in firsts],
        metas[start:stop],
        bodies[start:stop],
        times_ms[start:stop],
        None if dues_ms is None else dues_ms[start:stop],
    )
