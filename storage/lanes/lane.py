"""The messages of one queue at one priority, by a sequence number without gaps (qseq).

A lane knows which of its messages are settled (settled.py), and where the others are: in memory as
runs, or in the index as pointers. Promises that a message can be read until it is settled, as it
was published. Knows nothing of durability, which the store sees to.
"""

from array import array
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import accumulate, compress
from typing import Any, Generic, Protocol

from qlog.storage.errors import CorruptLog
from qlog.storage.lanes.cache import Cache
from qlog.storage.lanes.page import FEW, PAGE_BYTES_MAX, PAGE_COUNT, Page
from qlog.storage.lanes.run import M, Pointers, Run, Slice
from qlog.storage.lanes.settled import BLOCK, FULL, Settled, add

# So many runs are looked at in one go, to be joined: the next message goes on with the others.
_JOINED_AT_ONCE = 500
# So few runs are all looked at by each checkpoint, so that what is given up is freed at once.
_FEW_RUNS = 16


class Shelf(Protocol[M]):
    """Where a lane finds what it does not have in memory."""

    def pointers(self, lane_id: int, qseq: int, count_max: int) -> Pointers:
        """The index's pointers from `qseq` on, at least one. Raises CorruptLog."""

    def fetch(
        self,
        lane_id: int,
        qseq: int,
        pointers: Pointers,
        into: Slice[M],
    ) -> None:
        """Read and verify these messages, and add them to the slice.

        Raises CorruptLog, OutOfDescriptors.
        """

    def segments(self, lane_id: int, block: int) -> Sequence[int]:
        """The segment of each message of a block, 0 where the index has none. Raises CorruptLog."""

    def may_restore(self, segment_id: int) -> bool:
        """Whether settled messages of this segment can be restored."""


@dataclass(slots=True)
class Changes(Generic[M]):
    """What lanes leave for the store to write: shared by all of them."""

    acked: "list[Lane[M]]"  # lanes with settlements that the ledger does not have
    delivered: "list[Lane[M]]"  # lanes with deliveries that the ledger does not have
    attempted: "list[Lane[M]]"  # lanes with messages that came back, which the ledger does not have
    dirty: "dict[Lane[M], None]"  # lanes with changes that the index does not have, in their order
    await_acks: Callable[[], None]  # called when the first change for the ledger comes
    acked_count: int = 0
    operations: int = 0  # since the last checkpoint
    # Settlements that wait for the log: (LSN, serial, lane, first, count, size), a heap.
    waiting: "list[tuple[int, int, Lane[M], int, int, int]]" = field(default_factory=list)
    waiting_serial: int = 0
    # Called when messages were restored, with their lane, their ranges as first, end, first, end,
    # and the segments that they are in. Set by the store.
    restored: "Callable[[Lane[M], list[int], set[int]], None]" = field(
        default=lambda lane, flat, segment_ids: None
    )

    def release(self, durable_lsn: int) -> None:
        """The log is durable up to this LSN: settle the messages that waited for it."""
        waiting = self.waiting
        while waiting and waiting[0][0] <= durable_lsn:
            _, _, lane, first, count, size = heappop(waiting)
            lane.released(first, count, size)


class Lane(Generic[M]):
    """See the head of this file. Made by the store only."""

    def __init__(self, lane_id: int, shelf: Shelf[M], cache: Cache[M], changes: Changes[M]) -> None:
        self.id = lane_id
        self.next_qseq = 0
        self.settled = Settled()
        self.alive = 0  # messages not settled, nor about to be (`settle_after`)
        self.alive_bytes = 0  # the sum of their bodies' sizes
        self.dropped = False
        self.ledger_entries: list[Any] | None = None  # see `checkpoint.entries_of`
        self.open_run: Run[M] | None = None  # the newest: it may take more messages
        self.unwritten: list[int] = []  # first, end, first, end, … for the ledger
        self.attempts_unwritten: list[int] = []  # first, end, attempts, … in their order
        self.delivered_unwritten = False
        self._shelf = shelf
        self._cache = cache
        self._changes = changes
        self._firsts: list[int] = []  # the first qseq of each run in memory
        self._runs: list[Run[M]] = []
        self._read_runs = 0  # so many of the first runs were read to their end
        self._joined_runs = 0  # so many of the first runs are joined as far as they can be
        self._indexed_runs = 0  # so many of the first runs are in the index
        self._kept_runs = 0  # how many runs were left when all of them were looked at
        self._waiting_bytes = 0  # of messages that are settled once the log is durable
        self._page: Page[M] | None = None
        self._read_upto = -1  # where the last read ended: who goes on there reads in order

    @property
    def delivered(self) -> int:
        """Everything below was handed to a consumer once."""
        return self.settled.delivered

    # -- appending

    def add(self, run: Run[M]) -> None:
        """A new run, whose messages get the next qseqs; `grown` tells of them."""
        if self._joined_runs < len(self._runs):
            self._join_durable()
        self._firsts.append(self.next_qseq)
        self._runs.append(run)
        self.open_run = run

    def grown(self, run: Run[M], count: int, body_bytes: int) -> None:
        """So many messages were added to the newest run."""
        assert self.open_run is run
        if self._read_runs == len(self._runs):  # it had been read to what was its end
            self._read_runs -= 1
            run.readers += 1
        self.next_qseq += count
        self.ledger_entries = None
        self.alive += count
        self.alive_bytes += body_bytes
        self._changes.dirty[self] = None

    def _join_durable(self) -> None:
        """Join runs that are on disk, so that messages which came one by one are few runs."""
        runs = self._runs
        firsts = self._firsts
        at = self._joined_runs
        durable_lsn = self._cache.durable_lsn
        gathering_lsn = self._cache.gathering_lsn
        left = _JOINED_AT_ONCE
        while left and at < len(runs) and runs[at].lsn_end <= durable_lsn:
            left -= 1
            before = runs[at - 1] if at and at != self._read_runs else None
            if (
                before is not None
                and firsts[at - 1] + before.count == firsts[at]
                and not before.lsn_end <= gathering_lsn < runs[at].lsn_end
                and before.can_join(runs[at])
            ):
                self._cache.joined(before, runs[at])
                del runs[at], firsts[at]
                if at < self._read_runs:
                    self._read_runs -= 1
                if at < self._indexed_runs:
                    self._indexed_runs -= 1
            else:
                at += 1
        self._joined_runs = at

    # -- reading

    def read(
        self, qseq: int, count_max: int, bytes_max: int, *, passing: bool = True
    ) -> Slice[M] | None:
        """The first unsettled message at or after `qseq` and those right behind it.

        Stops at a settled message, or at the limits (bytes of whole records), but reads at least
        one message. None: there is no message. `passing`: the messages will not be read again
        soon, so memory may forget them. Raises CorruptLog when what is on disk is not what was
        written.
        """
        start, stop = self.settled.stretch(qseq, self.next_qseq, count_max)
        if start == stop:
            return None
        firsts = self._firsts
        runs = self._runs
        page = self._page
        ahead = passing and count_max <= FEW and qseq == self._read_upto
        slice_: Slice[M] | None = None
        at = start
        bytes_left = bytes_max
        place = bisect_right(firsts, at) - 1
        while at < stop:
            if place + 1 < len(firsts) and firsts[place + 1] <= at:
                place += 1
            run = runs[place] if place >= 0 else None
            index = at - firsts[place] if run is not None else 0
            source: Run[M] | Page[M] | None = None
            if run is not None and index < run.count and run.bodies is not None:
                source = run
            elif page is not None and page.first <= at < page.end and page.bodies is not None:
                source = page
                index = at - page.first
            if source is not None:
                assert source.metas is not None and source.bodies is not None
                if index + 1 == source.count or at + 1 == stop:  # one, as it is mostly then
                    count, size = 1, source.lengths[index]
                    if size > bytes_left and at > start:
                        break
                else:
                    lengths = source.lengths[index : index + stop - at]
                    count, size = _within(lengths, bytes_left, at == start)
                    if not count:
                        break
                end = index + count
                dues_ms = source.dues_ms
                part: Slice[M] = Slice(
                    at,
                    source.metas[index:end],
                    source.bodies[index:end],
                    source.times(index, end),
                    source.sizes[index:end],
                    None if dues_ms is None else list(dues_ms[index:end]),
                )
                if slice_ is None:
                    slice_ = part
                else:
                    slice_.join(part)
            else:
                if ahead:
                    ahead = False
                    page = self._read_ahead(at, place)
                    if page is not None:
                        continue
                if slice_ is None:
                    slice_ = Slice(start)
                pointers = self._pointers(at, stop, place)
                count, size = _within(pointers.lengths, bytes_left, at == start)
                if not count:
                    break
                self._cache.cold_bytes += size
                self._shelf.fetch(self.id, at, pointers.head(count), slice_)
            bytes_left -= size
            at += count
        if passing:
            self._was_read(at)
        return slice_

    def on_disk(self, qseq: int) -> bool:
        """Whether the first unsettled message at or after `qseq` has to be read from disk."""
        start, stop = self.settled.stretch(qseq, self.next_qseq, 1)
        page = self._page
        if start == stop or (
            page is not None and page.first <= start < page.end and page.bodies is not None
        ):
            return False
        place = bisect_right(self._firsts, start) - 1
        if place < 0:
            return True
        run = self._runs[place]
        return run.bodies is None or start - self._firsts[place] >= run.count

    def _pointers(self, at: int, stop: int, place: int) -> Pointers:
        """Where on disk messages from `at` on are: one at least, in one run, or between two.

        `place`: of the run that begins at or before `at`; -1: none does. Raises CorruptLog.
        """
        firsts = self._firsts
        if place >= 0:
            run = self._runs[place]
            index = at - firsts[place]
            if index < run.count:
                end = index + stop - at
                return Pointers(
                    run.segment_id,
                    run.positions[index:end],
                    run.lengths[index:end],
                    run.sizes[index:end],
                )
        if place + 1 < len(firsts):
            stop = min(stop, firsts[place + 1])
        return self._shelf.pointers(self.id, at, stop - at)

    def _read_ahead(self, at: int, place: int) -> Page[M] | None:
        """Read a page from `at` on, and keep it. None: there is nothing to gain from that.

        So it is when any of it is damaged: who asked for the messages in front of the damage has
        nothing to do with it. Raises CorruptLog when the index is wrong, OutOfDescriptors.
        """
        _, stop = self.settled.stretch(at, self.next_qseq, PAGE_COUNT)
        pointers = self._pointers(at, stop, place)
        count, size = _within(pointers.lengths, PAGE_BYTES_MAX, True)
        if count == 1:
            return None
        self._cache.cold_bytes += size
        pointers = pointers.head(count)
        slice_: Slice[M] = Slice(at)
        try:
            self._shelf.fetch(self.id, at, pointers, slice_)
        except CorruptLog:
            return None
        self._drop_page()
        page = self._page = Page(slice_, pointers.lengths)
        self._cache.keep(page)
        return page

    def _drop_page(self) -> None:
        if self._page is not None:
            self._cache.drop_page(self._page)
            self._page = None

    def _was_read(self, upto: int) -> None:
        self._read_upto = upto
        if self._page is not None and self._page.end <= upto:
            self._drop_page()
        firsts = self._firsts
        runs = self._runs
        place = self._read_runs
        while place < len(runs) and firsts[place] + runs[place].count <= upto:
            self._cache.was_read(runs[place])
            place += 1
        self._read_runs = place

    # -- settling

    def settle(self, first: int, count: int, size: int | None = None) -> int:
        """Settle messages (acked, purged or expired). Returns how many were not settled yet.

        Idempotent. Lasts when the ledger is written (some milliseconds later) and synced. `size` is
        the sum of the bodies' sizes; a caller that gives it says that none of the messages is
        settled yet. Without it the sizes are looked up, in the index if need be. Raises CorruptLog
        when the index is wrong; nothing is settled then.
        """
        assert first >= 0 and count >= 0
        end = min(first + count, self.next_qseq)
        if end <= first:
            return 0
        settled = self.settled
        size_given = size is not None
        if size is None:
            size = self._unsettled_bytes(first, end)
        if first <= settled.floor and not (settled.bits or settled.full):
            fresh = max(end - settled.floor, 0)
            settled.floor += fresh
            if settled.attempts.firsts:
                settled.attempts.settle(first, end)
        else:
            fresh = settled.mark(first, end)
        assert fresh == count or not size_given, "settled twice"
        if not fresh:
            return 0
        self.alive -= fresh
        self.alive_bytes -= size
        assert self.alive_bytes >= 0
        changes = self._changes
        unwritten = self.unwritten
        if not unwritten:
            unwritten += (first, end)
            changes.acked.append(self)
            changes.await_acks()
        elif unwritten[-1] == first:
            unwritten[-1] = end
        else:
            unwritten += (first, end)
        self.ledger_entries = None
        changes.acked_count += 1
        changes.operations += fresh
        changes.dirty[self] = None
        runs = self._runs
        if runs and self._firsts[0] + runs[0].count <= settled.floor:
            self._forget_settled()
        if self._page is not None and self._page.end <= settled.floor:
            self._drop_page()
        return fresh

    def skip_to(self, qseq: int) -> None:
        """All messages below `qseq` were given and are settled: it is the next one's number.

        For a stream whose segments have more than log and ledger know of, after a repair.
        """
        assert qseq > self.next_qseq
        self.settle(self.settled.floor, self.next_qseq - self.settled.floor)
        first, self.next_qseq = self.next_qseq, qseq
        self.alive += qseq - first
        self.settle(first, qseq - first, 0)

    def settle_after(self, lsn: int, first: int, count: int, size: int) -> None:
        """Settle messages once the log is durable up to `lsn`, and never before.

        This is for messages that were handed on, for example to a dead letter queue: the copies
        have to be on disk first. The messages do not count as alive any more, but come back if the
        process dies before. `size` is the sum of the bodies' sizes. Nobody else may settle these
        messages.
        """
        if lsn <= self._cache.durable_lsn:
            self.settle(first, count, size)
            return
        self.alive -= count
        self.alive_bytes -= size
        self._waiting_bytes += size
        assert self.alive >= 0 and self.alive_bytes >= 0
        changes = self._changes
        changes.waiting_serial += 1
        heappush(changes.waiting, (lsn, changes.waiting_serial, self, first, count, size))

    def released(self, first: int, count: int, size: int) -> None:
        """The log is durable as far as these messages waited for: settle them."""
        if self.dropped:
            return
        self._waiting_bytes -= size
        self.alive += count
        self.alive_bytes += size
        self.settle(first, count, size)

    def bytes_of(self, first: int, count: int) -> int:
        """The sum of the sizes of these messages' bodies, as far as they are not settled.

        Raises CorruptLog when the index is wrong.
        """
        return self._unsettled_bytes(first, min(first + count, self.next_qseq))

    def _unsettled_bytes(self, first: int, end: int) -> int:
        """The sum of the sizes of the unsettled messages in [first, end).

        The sizes of these messages are looked up, or of all others if these are fewer.
        """
        floor = self.settled.floor
        first = max(first, floor)
        if first >= end:
            return 0
        count = end - first - self.settled.between(first, end)
        if count <= self.alive // 2:
            return self._look_up_bytes(first, end)
        others = self._look_up_bytes(floor, first) + self._look_up_bytes(end, self.next_qseq)
        return self.alive_bytes + self._waiting_bytes - others

    def _look_up_bytes(self, first: int, end: int) -> int:
        size = 0
        while first < end:
            start, stop = self.settled.stretch(first, end, end - first)
            size += self._stretch_bytes(start, stop)
            first = stop if stop > start else end
        return size

    def _stretch_bytes(self, at: int, stop: int) -> int:
        """The sum of the sizes of messages none of which is settled."""
        firsts = self._firsts
        runs = self._runs
        place = bisect_right(firsts, at) - 1
        size = 0
        while at < stop:
            if place + 1 < len(firsts) and firsts[place + 1] <= at:
                place += 1
            run = runs[place] if place >= 0 else None
            index = at - firsts[place] if run is not None else 0
            if run is not None and index < run.count:
                sizes = run.sizes[index : index + stop - at]
            else:
                following = firsts[place + 1] if place + 1 < len(firsts) else stop
                wanted = min(stop, following) - at
                sizes = self._shelf.pointers(self.id, at, wanted).sizes
            size += sum(sizes)
            at += len(sizes)
        return size

    def restore(self, first: int, count: int) -> list[int]:
        """Restore settled messages. Returns which were restored: first, end, first, end, …

        A message can be restored if the index still knows its place: if it lies above the floor, in
        a block that is not settled as a whole, and in a segment that is there and has no part in a
        compaction. Lasts with the next acks. Raises CorruptLog when the index is wrong.
        """
        settled = self.settled
        end = min(first + count, self.next_qseq)
        at = max(first, settled.floor)
        flat: list[int] = []
        segment_ids = set()
        while at < end:
            block, slot = divmod(at, BLOCK)
            stop = min(end - block * BLOCK, BLOCK)
            bits = settled.bits_of(block)
            if bits != FULL and bits & ((1 << stop) - (1 << slot)):
                segments = self._segments(block)
                for index in range(slot, min(stop, len(segments))):
                    if bits >> index & 1 and self._shelf.may_restore(segments[index]):
                        add(flat, block * BLOCK + index, block * BLOCK + index + 1)
                        segment_ids.add(segments[index])
            at = block * BLOCK + stop
        for low, high in zip(flat[0::2], flat[1::2], strict=True):
            self.alive_bytes += self._stretch_bytes(low, high)
            self.alive += high - low
            settled.restore(low, high)
        if flat:
            self.ledger_entries = None
            self._changes.dirty[self] = None
            self._changes.restored(self, flat, segment_ids)
        return flat

    def _segments(self, block: int) -> list[int]:
        """The segment of each message of a block; 0 for a message that is not in the log yet."""
        segments = list(self._shelf.segments(self.id, block))
        base = block * BLOCK
        for first, run in zip(self._firsts, self._runs, strict=True):
            low, high = max(first, base), min(first + run.count, base + BLOCK)
            if low < high and not run.indexed:
                segments.extend([0] * (high - base - len(segments)))
                segment_id = run.segment_id if run.lsn_end else 0
                segments[low - base : high - base] = [segment_id] * (high - low)
        return segments

    def note_delivered(self, upto: int) -> None:
        """Everything below `upto` was handed to a consumer once. Lasts with the next acks."""
        if upto > self.settled.delivered:
            self.settled.delivered = upto
            self.ledger_entries = None
            if not self.delivered_unwritten:
                self.delivered_unwritten = True
                self._changes.delivered.append(self)
                self._changes.dirty[self] = None
                self._changes.await_acks()

    def note_attempts(self, first: int, count: int, attempts: int) -> None:
        """These messages came back, `attempts` times by now. None of them may be settled.

        Lasts with the next acks.
        """
        end = first + count
        assert self.settled.floor <= first < end <= self.next_qseq
        assert not self.settled.between(first, end)
        self.settled.attempts.note(first, end, attempts)
        self.ledger_entries = None
        unwritten = self.attempts_unwritten
        if not unwritten:
            self._changes.attempted.append(self)
            self._changes.dirty[self] = None
            self._changes.await_acks()
        if unwritten and unwritten[-2:] == [first, attempts]:
            unwritten[-2] = end
        else:
            unwritten += (first, end, attempts)

    def attempts_of(self, first: int, count: int) -> list[int]:
        """How often each of these unsettled messages was handed out and came back, in order."""
        return self.settled.attempts.of(first, count)

    def recovered(
        self, placed_upto: int, next_qseq: int, present: Iterable[tuple[int, int]]
    ) -> None:
        """Recovery is done: all qseqs below `next_qseq` were given once.

        The index was complete up to `placed_upto`. Messages above that which neither log nor index
        has were lost before they were durable, and count as settled. `present`: the stretches
        (first, end) that log and index have above `placed_upto`, in the order of their firsts.
        """
        at = placed_upto
        settled = self.settled
        for first, end in present:
            if first > at:
                settled.mark(at, first)
            at = max(at, end)
        self.next_qseq = max(next_qseq, at)
        if self.next_qseq > at:
            settled.mark(at, self.next_qseq)
        settled.mark(0, 0)  # lets the floor rise over what was added

    def _forget_settled(self) -> None:
        """Give up the runs that lie below the floor."""
        floor = self.settled.floor
        count = 0
        for first, run in zip(self._firsts, self._runs, strict=True):
            if first + run.count > floor:
                break
            self._cache.was_settled(run)
            count += 1
        if count:
            self._cut(count)
            if not self._runs:
                self.open_run = None

    def _cut(self, count: int) -> None:
        """Take the first runs off the list."""
        del self._firsts[:count]
        del self._runs[:count]
        self._read_runs = max(self._read_runs - count, 0)
        self._joined_runs = max(self._joined_runs - count, 0)
        self._indexed_runs = max(self._indexed_runs - count, 0)

    # -- for checkpoint and recovery

    def runs(self) -> list[tuple[int, Run[M]]]:
        """The runs in memory with their first qseqs, in order."""
        return list(zip(self._firsts, self._runs, strict=True))

    def durable_upto(self, durable_lsn: int) -> int:
        """The first qseq that is not on disk."""
        return next(
            (first for first, run in self._behind_index() if run.lsn_end > durable_lsn),
            self.next_qseq,
        )

    def unindexed(self, durable_lsn: int) -> list[tuple[int, Run[M]]]:
        """The runs that the index lacks, and that are on disk, or only in memory."""
        return [
            (first, run)
            for first, run in self._behind_index()
            if not run.indexed and run.lsn_end <= durable_lsn
        ]

    def _behind_index(self) -> Iterator[tuple[int, Run[M]]]:
        """All runs but those at the beginning that are known to be in the index."""
        start = self._indexed_runs
        return zip(self._firsts[start:], self._runs[start:], strict=True)

    def forget_indexed(self) -> bool:
        """Give up runs that the index has and that have no bodies in memory.

        Returns whether any run is left. All runs are looked at only if they are few, or twice as
        many as were left the last time; else only the first and the newest: a lane that many
        messages wait in must not cost more at each checkpoint.
        """
        runs = self._runs
        known = at = self._indexed_runs
        while at < len(runs) and runs[at].indexed:
            at += 1
        self._indexed_runs = at
        # Runs that the index did not have could not be joined with those that it had.
        self._joined_runs = min(self._joined_runs, known)
        if len(runs) <= _FEW_RUNS or len(runs) > 2 * self._kept_runs:
            return self._forget_all_indexed()
        count = 0
        while count < at and runs[count].bodies is None:
            count += 1
        self._cut(count)
        return bool(runs)

    def _forget_all_indexed(self) -> bool:
        runs = self._runs
        kept = [not run.indexed or run.bodies is not None for run in runs]
        self._kept_runs = kept.count(True)
        if self._kept_runs < len(runs):
            self._read_runs = kept[: self._read_runs].count(True)
            self._joined_runs = kept[: self._joined_runs].count(True)
            self._indexed_runs = kept[: self._indexed_runs].count(True)
            self._firsts = list(compress(self._firsts, kept))
            self._runs = list(compress(runs, kept))
        return bool(self._kept_runs)

    @property
    def run_count(self) -> int:
        """How many runs it has in memory."""
        return len(self._runs)

    def forget_segments(self, segment_ids: Collection[int]) -> None:
        """Give up runs in these segments: the index has another place for them."""
        firsts = self._firsts
        runs = self._runs
        read_runs = self._read_runs
        self._joined_runs = self._indexed_runs = 0
        self._firsts = []
        self._runs = []
        for place, (first, run) in enumerate(zip(firsts, runs, strict=True)):
            if run.segment_id in segment_ids:
                assert run.indexed
                self._cache.was_settled(run)
                self._read_runs -= place < read_runs
            else:
                self._firsts.append(first)
                self._runs.append(run)

    def forget(self) -> None:
        """The lane is deleted: everything in memory goes."""
        for run in self._runs:
            self._cache.was_settled(run)
        self._drop_page()
        self._firsts = []
        self._runs = []
        self._read_runs = self._joined_runs = self._indexed_runs = self._kept_runs = 0
        self.open_run = None
        self.alive = self.alive_bytes = 0
        self.settled = Settled(self.next_qseq)
        self.dropped = True


def _within(lengths: "array[int]", bytes_left: int, one_at_least: bool) -> tuple[int, int]:
    """How many of the first records fit in `bytes_left`, and their size."""
    size = sum(lengths)
    if size <= bytes_left:
        return len(lengths), size
    ends = list(accumulate(lengths))
    count = bisect_right(ends, bytes_left)
    if not count and one_at_least:
        count = 1
    return count, ends[count - 1] if count else 0
