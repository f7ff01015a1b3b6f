"""The ready set of one lane: what waits for a consumer, what is out with one, and what comes next.

The lane (`qlog.storage`) has the messages themselves, by a sequence number without gaps (qseq).
This file alone knows which of them are ready:

    0 …                    cursor …                      lane.next_qseq
    | settled, out, returned | never taken in this run, or settled |

Within a lane messages are taken in order, so whatever comes back lies below the cursor and goes
first: that is "requeued to its original place". When a message is withdrawn from behind the cursor
(it has expired, and is handed on), the cursor moves behind it, and what was passed counts as
returned, though not as redelivered. Each unsettled message is in exactly one of three
states: ready (returned, or at the cursor and above), out (taken and not given back), or leaving
(purged, and on its way to the lane's ledger). Promises that `take` gives each ready message once,
lowest qseq first, whatever was settled, given back or removed in between. Knows no consumer and
no rule: who takes, and why something is removed, is the caller's business.
"""

from __future__ import annotations

from qlog.server.amqp.envelope import Envelope
from qlog.server.broker.numbers import Numbers
from qlog.storage.lanes.lane import Lane
from qlog.storage.lanes.run import Slice

# The largest take, in bytes. What one take brings is one join and one send; more gains nothing.
TAKE_BYTES_MAX = 256 * 1024
# And in messages: a take of smaller ones gains nothing either, and to look for the end of a stretch
# costs a step for each block of messages, of which a long backlog has thousands.
TAKE_COUNT_MAX = 4096


class Taken:
    """Messages with consecutive qseqs, as they were taken (or looked at) together.

    `times_ms`: when each was published, by the wall clock; `dues_ms`: when each is due, 0 for one
    that has no such time, or None for all of them; `sizes`: the octets of the bodies;
    `redelivered`: somebody had them before.
    """

    __slots__ = (
        "backlog",
        "bodies",
        "dues_ms",
        "envelopes",
        "first_qseq",
        "redelivered",
        "sizes",
        "times_ms",
    )

    def __init__(self, backlog: Backlog, slice_: Slice[Envelope], redelivered: bool) -> None:
        self.backlog = backlog
        self.first_qseq = slice_.first_qseq
        self.envelopes = slice_.metas
        self.bodies = slice_.bodies
        self.times_ms = slice_.times_ms
        self.dues_ms = slice_.dues_ms
        self.sizes = slice_.sizes
        self.redelivered = redelivered

    def part(self, start: int, stop: int) -> Taken:
        """Those from index `start` to before `stop`."""
        dues_ms = self.dues_ms
        slice_ = Slice(
            self.first_qseq + start,
            self.envelopes[start:stop],
            self.bodies[start:stop],
            self.times_ms[start:stop],
            self.sizes[start:stop],
            None if dues_ms is None else dues_ms[start:stop],
        )
        return Taken(self.backlog, slice_, self.redelivered)


# Messages that are out since they were withdrawn: the first qseq, the number, the octets in all.
Withdrawn = tuple[int, int, int]


class Backlog:
    """See the head of this file.

    `out` and `out_bytes` are the messages that were taken and are neither settled nor given back.
    """

    __slots__ = (
        "_closed",
        "_cursor",
        "_leaving",
        "_leaving_bytes",
        "_redelivered_below",
        "_returned",
        "after_lsn",
        "lane",
        "out",
        "out_bytes",
    )

    def __init__(self, lane: Lane[Envelope]) -> None:
        self.lane = lane
        self.out = 0
        self.out_bytes = 0
        self.after_lsn = 0  # all that was settled is so when the log is durable up to here
        # An earlier run of the broker may have handed these out: they count as redelivered.
        self._redelivered_below = lane.delivered
        self._cursor = 0
        self._returned = Numbers()
        self._leaving = Numbers()
        self._leaving_bytes = 0
        self._closed = False

    @property
    def ready(self) -> int:
        """Messages that wait for a consumer."""
        return self.lane.alive - self.out - self._leaving.count

    @property
    def bound(self) -> int:
        """Messages from this qseq on cannot be taken yet."""
        return self.lane.next_qseq

    @property
    def takeable(self) -> int:
        """How many of them `take` can give now; it may be less than that while some arrive."""
        return self.lane.alive - self.out - self._leaving.count

    @property
    def ready_bytes(self) -> int:
        """The octets of their bodies."""
        return self.lane.alive_bytes - self.out_bytes - self._leaving_bytes

    @property
    def cold(self) -> bool:
        """What is taken next has to be read from disk. There must be something."""
        returned = self._returned
        return self.lane.on_disk(returned.lowest(1)[0] if returned.count else self._cursor)

    # -- taking ------------------------------------------------------------------------------

    def take(self, count_max: int, bytes_max: int = TAKE_BYTES_MAX) -> Taken:
        """Take the next ready messages: at least one, and either all or none are redelivered.

        They are out from now on. A message must be ready. Raises CorruptLog and OutOfDescriptors;
        nothing has happened then.
        """
        count_max = min(count_max, TAKE_COUNT_MAX)
        returned = self._returned
        if returned.count:
            return self._take_returned(*returned.lowest(count_max), bytes_max)
        return self._take_next(count_max, bytes_max)

    def _take_returned(self, first: int, count: int, bytes_max: int) -> Taken:
        """Take the first of these messages, which came back, or were passed."""
        lane, delivered = self.lane, self.lane.delivered
        again = first < delivered
        if again:
            count = min(count, delivered - first)
        taken = Taken(self, self._read(first, count, bytes_max), again)
        self._returned.discard(first, len(taken.bodies))
        if not again:
            lane.note_delivered(first + len(taken.bodies))
        self._now_taken(taken)
        return taken

    def _take_next(self, count_max: int, bytes_max: int) -> Taken:
        """Take messages from the cursor on."""
        cursor = self._cursor
        if cursor >= self._redelivered_below:
            taken = Taken(self, self._read(cursor, count_max, bytes_max), False)
        else:
            taken = self._next_of_earlier(count_max, bytes_max)
        self._cursor = taken.first_qseq + len(taken.bodies)
        self.lane.note_delivered(self._cursor)
        self._now_taken(taken)
        return taken

    def _now_taken(self, taken: Taken) -> None:
        self.out += len(taken.bodies)
        self.out_bytes += sum(taken.sizes)

    def _next_of_earlier(self, count_max: int, bytes_max: int) -> Taken:
        """Messages from the cursor on, which is below what an earlier run handed out.

        Those that an earlier run handed out are not mixed with new.
        """
        below = self._redelivered_below
        slice_ = self._read(self._cursor, min(count_max, below - self._cursor), bytes_max)
        # Settled messages are passed over, so the slice may begin or end behind `below`.
        count = below - slice_.first_qseq
        if count <= 0:
            return Taken(self, slice_, False)
        slice_.keep(count)
        return Taken(self, slice_, True)

    def _read(self, qseq: int, count_max: int, bytes_max: int) -> Slice[Envelope]:
        slice_ = self.lane.read(qseq, count_max, bytes_max)
        assert slice_ is not None, (
            f"lane {self.lane.id}: {self.ready} ready, but none from {qseq} on"
        )
        return slice_

    def peek(self, qseq: int, count_max: int, bytes_max: int = TAKE_BYTES_MAX) -> Taken | None:
        """The first ready message at or after `qseq`, and the ready ones right behind it.

        Nothing changes, and the cache does not count them as read. None: nothing is ready there.
        Raises CorruptLog and OutOfDescriptors.
        """
        lane = self.lane
        redelivered = True
        found = self._returned.at_or_after(qseq, count_max)
        if found is not None:
            delivered = lane.delivered
            redelivered = found[0] < delivered
            if redelivered:
                found = found[0], min(found[1], delivered - found[0])
        else:
            at = max(qseq, self._cursor)
            start, stop = lane.settled.stretch(at, lane.next_qseq, count_max)
            if start == stop:
                return None
            redelivered = start < self._redelivered_below
            if redelivered:
                stop = min(stop, self._redelivered_below)
            found = start, stop - start
        slice_ = lane.read(*found, bytes_max, passing=False)
        assert slice_ is not None and slice_.first_qseq == found[0]
        return Taken(self, slice_, redelivered)

    # -- what becomes of messages that are out -----------------------------------------------

    def settle(self, qseq: int, count: int, size: int, after_lsn: int = 0) -> None:
        """Messages that are out, `size` octets in all, were acknowledged or discarded.

        The settlement does not survive a crash before the log is durable up to `after_lsn`.
        """
        if self._closed:
            return
        self.out -= count
        self.out_bytes -= size
        assert self.out >= 0 and qseq + count <= self._cursor
        if after_lsn:
            self.after_lsn = max(self.after_lsn, after_lsn)
            self.lane.settle_after(after_lsn, qseq, count, size)
        else:
            self.lane.settle(qseq, count, size)

    def give_back(self, qseq: int, count: int, size: int) -> None:
        """Messages that are out, `size` octets in all, are ready again, at their old place."""
        if self._closed:
            return
        self.out -= count
        self.out_bytes -= size
        assert self.out >= 0 and qseq + count <= self._cursor
        self._returned.add(qseq, count)

    def give_all_back(self, numbers: Numbers, size: int) -> None:
        """The same for messages anywhere, all at once."""
        if self._closed:
            return
        self.out -= numbers.count
        self.out_bytes -= size
        assert self.out >= 0
        self._returned.join(numbers)

    # -- messages that go to somebody else than a consumer -----------------------------------

    def withdraw(self, count_max: int) -> list[Withdrawn]:
        """The first ready messages, in the order of `take`, are out, though nobody has them.

        They do not count as delivered, and none is read; `read_out` does that. Raises CorruptLog
        when the index, where their sizes are, is wrong; so does `withdraw_at`.
        """
        lane, returned = self.lane, self._returned
        withdrawn: list[Withdrawn] = []
        left = count_max
        while left and returned.count:
            first, count = returned.lowest(left)
            withdrawn.append(self._now_out(first, count))
            returned.discard(first, count)
            left -= count
        while left:
            start, stop = lane.settled.stretch(self._cursor, lane.next_qseq, left)
            if start == stop:
                break
            withdrawn.append(self._now_out(start, stop - start))
            self._cursor = stop
            left -= stop - start
        return withdrawn

    def withdraw_at(self, qseq: int, count: int) -> list[Withdrawn]:
        """The same for those that are ready among these messages, wherever they are."""
        lane, returned = self.lane, self._returned
        end = min(qseq + count, lane.next_qseq)
        while self._cursor < end:  # what is out lies below the cursor
            start, stop = lane.settled.stretch(self._cursor, end, end - self._cursor)
            if stop > start:
                returned.add(start, stop - start)
            self._cursor = stop if stop > start else end
        withdrawn: list[Withdrawn] = []
        for first, length in returned.within(qseq, end):
            withdrawn.append(self._now_out(first, length))
            returned.discard(first, length)
        return withdrawn

    def _now_out(self, first: int, count: int) -> Withdrawn:
        size = self.lane.bytes_of(first, count)
        self.out += count
        self.out_bytes += size
        return first, count, size

    def read_out(self, qseq: int, count_max: int, bytes_max: int = TAKE_BYTES_MAX) -> Taken:
        """Read messages that are out, from `qseq` on: at least one. Nothing changes.

        Raises CorruptLog and OutOfDescriptors.
        """
        slice_ = self.lane.read(qseq, count_max, bytes_max, passing=False)
        assert slice_ is not None and slice_.first_qseq == qseq
        return Taken(self, slice_, True)

    # -- messages that go without having been taken ------------------------------------------

    def drop(self, count_max: int) -> int:
        """Settle the first ready messages, in the order of `take`; how many there were.

        No message is read, and none counts as delivered. The sizes are looked up in the index.
        Raises CorruptLog when the index is wrong; so do `remove`, `purge` and `sweep`.
        """
        lane, returned = self.lane, self._returned
        left = count_max
        while left and returned.count:
            first, count = returned.lowest(left)
            left -= lane.settle(first, count)
            returned.discard(first, count)
        while left:
            start, stop = lane.settled.stretch(self._cursor, lane.next_qseq, left)
            if start == stop:
                break
            left -= lane.settle(start, stop - start)
            self._cursor = stop
        return count_max - left

    def remove(self, qseq: int, count: int) -> int:
        """Settle what is ready among these messages, wherever they are; how many there were.

        A message that is out stays out: if it expires or is deleted while a consumer has it, the
        consumer keeps it until it comes back. (RabbitMQ, too, looks only at messages that are in
        the queue.)
        """
        lane, returned, cursor = self.lane, self._returned, self._cursor
        end = min(qseq + count, lane.next_qseq)
        removed = 0
        if qseq < cursor and returned.count:
            for first, length in returned.within(qseq, min(end, cursor)):
                removed += lane.settle(first, length)
                returned.discard(first, length)
        first = max(qseq, cursor)
        if end > first:
            removed += lane.settle(first, end - first)
        return removed

    def purge(self) -> int:
        """Every ready message leaves. Returns how many there were; `ready` is 0 at once.

        The caller has to call `sweep` until nothing is left. What is out stays out.
        """
        count, lane = self.ready, self.lane
        if lane.next_qseq > self._cursor:
            lane.settle(self._cursor, lane.next_qseq - self._cursor)
            self._cursor = lane.next_qseq
        if self._returned.count:
            self._leaving_bytes = lane.alive_bytes - self.out_bytes
            self._leaving.join(self._returned)
            self._returned.clear()
        return count

    def sweep(self, stretches_max: int) -> bool:
        """Settle some of the purged messages; True: none is left."""
        lane, leaving = self.lane, self._leaving
        while leaving.count and stretches_max:
            first, count = leaving.lowest(leaving.count)
            before = lane.alive_bytes
            lane.settle(first, count)
            self._leaving_bytes -= before - lane.alive_bytes
            leaving.discard(first, count)
            stretches_max -= 1
        return not leaving.count

    def close(self) -> None:
        """The lane is deleted: nothing is ready, and calls about messages that are out are void."""
        self._closed = True
        self.out = self.out_bytes = self._leaving_bytes = 0
        self._returned.clear()
        self._leaving.clear()
