"""Which messages of a lane are settled: a floor, bits above it, and ranges of blocks above it.

Everything below the floor is settled. Above the floor, a block of 254 messages that is settled in
part has an integer of bits. Blocks that are settled as a whole are kept as ranges: so one message
that nobody acknowledges costs no memory for millions of settled ones behind it. What was delivered,
and how often messages came back, is kept here, too. Knows qseqs only.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator

from qlog.storage import journal
from qlog.storage.lanes.attempts import Attempts

# Messages in a block: 254 pointers of 16 bytes and a head of 16 fill one overflow page of LMDB.
BLOCK = 254
FULL = (1 << BLOCK) - 1


class Settled:
    """See the head of this file. Ranges are flat: start, end, start, end, … in ascending order."""

    __slots__ = ("attempts", "bits", "delivered", "dirty", "floor", "full")

    def __init__(self, floor: int = 0) -> None:
        self.floor = floor
        self.bits: dict[int, int] = {}  # block -> what is settled in it, if not all
        self.full: list[int] = []  # ranges of blocks that are settled
        self.dirty: set[int] = set()  # blocks that changed; the owner clears it
        self.delivered = 0  # everything below was handed to a consumer once
        self.attempts = Attempts()  # of messages that came back

    @property
    def in_order(self) -> bool:
        """Nothing above the floor is settled."""
        return not self.bits and not self.full

    def mark(self, first: int, end: int) -> int:
        """The messages [first, end) are settled. Returns how many were not settled before."""
        if first > self.floor:
            fresh = self._mark_above(first, end)
        elif end <= self.floor:
            fresh = 0
        else:  # the floor jumps; bits below it mean nothing any more
            fresh = end - self.floor - self.between(self.floor, end)
            self._raise(end)
        self._settle_floor()
        if self.attempts.firsts:
            self.attempts.settle(first, end)
        return fresh

    def add_settled(self, block: int, bits: int) -> None:
        """These messages of a block are settled. Call `mark` afterwards, which raises the floor."""
        if (block + 1) * BLOCK > self.floor and not contains(self.full, block):
            self._set(block, self.bits.get(block, 0) | bits)

    def forget(self) -> None:
        """Nothing is known of what lies above the floor, nor of attempts: a snapshot says it."""
        self.dirty.update(self.bits)
        for low, high in zip(self.full[0::2], self.full[1::2], strict=True):
            self.dirty.update(range(low, high))
        self.bits.clear()
        self.full.clear()
        self.attempts.forget()

    def restore(self, first: int, end: int) -> None:
        """The messages [first, end) are not settled any more, and have no attempts.

        A floor above `first` is lowered to `first`; messages between `end` and the old floor stay
        settled. So the ledger's records can be applied to a state in which more is settled.
        """
        floor = self.floor
        if first < floor:
            self.floor = first
            if end < floor:
                self._mark_above(end, floor)
        at = first
        while at < end:
            block, slot = divmod(at, BLOCK)
            stop = min(end - block * BLOCK, BLOCK)
            bits = self.bits_of(block) & ~((1 << stop) - (1 << slot))
            remove(self.full, block, block + 1)
            if bits:
                self.bits[block] = bits
            else:
                self.bits.pop(block, None)
            self.dirty.add(block)
            at = block * BLOCK + stop
        self.attempts.note(first, end, 0)

    def bits_of(self, block: int) -> int:
        """The bits of the settled messages of a block that is not below the floor."""
        return FULL if contains(self.full, block) else self.bits.get(block, 0)

    def unsettled(self, first: int, count: int) -> int:
        """Bits: which of `count` messages from qseq `first` on are not settled."""
        return unsettled(first, count, self.floor, None if self.in_order else self.bits_of)

    def stretch(self, qseq: int, end: int, count_max: int) -> tuple[int, int]:
        """The first unsettled stretch at or after `qseq`: (start, stop), empty at `end`."""
        start = max(qseq, self.floor)
        if not (self.bits or self.full):
            return min(start, end), min(start + count_max, end)
        bits_of = self.bits.get
        full = self.full
        while start < end:
            block, slot = divmod(start, BLOCK)
            place = bisect_right(full, block)
            if place & 1:
                start = full[place] * BLOCK
                continue
            bits = bits_of(block, 0) >> slot
            if not bits & 1:
                break
            start += _trailing_ones(bits)
        start = min(start, end)
        stop = min(start + count_max, end)
        place = bisect_right(full, start // BLOCK)
        if place < len(full):
            stop = min(stop, full[place] * BLOCK)
        at = start
        while at < stop:
            block, slot = divmod(at, BLOCK)
            bits = bits_of(block, 0) >> slot
            if bits:
                stop = min(stop, at + (bits & -bits).bit_length() - 1)
                break
            at += BLOCK - slot
        return start, max(stop, start)

    def _mark_above(self, first: int, end: int) -> int:
        """Settle what lies above the floor."""
        fresh = 0
        at = first
        while at < end:
            block, slot = divmod(at, BLOCK)
            whole = end // BLOCK
            if not slot and whole > block + 1:  # many at once
                fresh += (whole - block) * BLOCK - self.between(at, whole * BLOCK)
                for known in _keys(self.bits, block, whole):
                    del self.bits[known]
                self.dirty.update(range(block, whole))
                add(self.full, block, whole)
                at = whole * BLOCK
                continue
            stop = min(end - block * BLOCK, BLOCK)
            old = self.bits_of(block)
            new = old | ((1 << stop) - (1 << slot))
            if new != old:
                fresh += (new ^ old).bit_count()
                self._set(block, new)
            at = block * BLOCK + stop
        return fresh

    def _set(self, block: int, bits: int) -> None:
        if bits == FULL:
            self.bits.pop(block, None)
            add(self.full, block, block + 1)
        else:
            self.bits[block] = bits
        self.dirty.add(block)

    def between(self, first: int, end: int) -> int:
        """How many are settled in [first, end), which begins at or above the floor."""
        if self.in_order:
            return 0
        count = 0
        first_block, first_slot = divmod(first, BLOCK)
        end_block, end_slot = divmod(end, BLOCK)
        for block in _keys(self.bits, first_block, end_block + 1):
            bits = self.bits[block]
            if block == end_block:
                bits &= (1 << end_slot) - 1
            if block == first_block:
                bits = bits >> first_slot << first_slot
            count += bits.bit_count()
        full = self.full
        for place in range(bisect_right(full, first_block) & ~1, len(full), 2):
            if full[place] > end_block:
                break
            low = max(full[place] * BLOCK, first)
            high = min(full[place + 1] * BLOCK, end)
            count += max(high - low, 0)
        return count

    def _raise(self, floor: int) -> None:
        """Everything below `floor` is settled: forget the bits and ranges below it."""
        before, block = self.floor // BLOCK, floor // BLOCK
        self.floor = floor
        for known in _keys(self.bits, before, block):
            del self.bits[known]
        full = self.full
        place = bisect_right(full, block)
        full[:place] = [block] if place & 1 else []

    def _settle_floor(self) -> None:
        """Move the floor over what is settled right above it."""
        while self.bits or self.full:
            block, slot = divmod(self.floor, BLOCK)
            if self.full and self.full[0] == block:
                self._raise(self.full[1] * BLOCK)
                continue
            bits = self.bits.get(block)
            if bits is None:
                return
            self.floor += _trailing_ones(bits >> slot)
            if self.floor == (block + 1) * BLOCK:
                del self.bits[block]  # and look at the next
                continue
            if not bits >> (self.floor - block * BLOCK):
                del self.bits[block]  # nothing settled above the floor in this block
            return


def unsettled(first: int, count: int, floor: int, bits_of: Callable[[int], int] | None) -> int:
    """Bits: which of `count` messages from qseq `first` on are not settled.

    `bits_of` gives the settled messages of a block that is not below the floor; None: there are
    none.
    """
    if floor >= first + count:
        return 0
    bits = (1 << count) - 1
    if floor > first:
        bits = bits >> (floor - first) << (floor - first)
    if bits_of is not None:
        for block in range(max(first, floor) // BLOCK, (first + count - 1) // BLOCK + 1):
            settled = bits_of(block)
            if settled:
                shift = block * BLOCK - first
                bits &= ~(settled << shift if shift >= 0 else settled >> -shift)
    return bits


def add(ranges: list[int], start: int, end: int) -> None:
    """Put [start, end) into the ranges."""
    low = bisect_left(ranges, start)
    high = bisect_right(ranges, end)
    ends = [] if low & 1 else [start]
    if not high & 1:
        ends.append(end)
    ranges[low:high] = ends


def remove(ranges: list[int], start: int, end: int) -> None:
    """Take [start, end) out of the ranges."""
    low = bisect_left(ranges, start)
    high = bisect_right(ranges, end)
    ends = [start] if low & 1 else []
    if high & 1:
        ends.append(end)
    ranges[low:high] = ends


def contains(ranges: list[int], value: int) -> bool:
    """Whether a value lies in one of the ranges."""
    return bool(bisect_right(ranges, value) & 1)


def _keys(bits: dict[int, int], first: int, end: int) -> list[int]:
    """The blocks in [first, end) that have bits."""
    if end - first < len(bits):
        return [block for block in range(first, end) if block in bits]
    return [block for block in bits if first <= block < end]


def _trailing_ones(bits: int) -> int:
    return (~bits & (bits + 1)).bit_length() - 1


def lane_entries(lane_id: int, next_qseq: int, settled: Settled) -> Iterator[journal.OfLane]:
    """All that is settled in a lane, and what came back to it, for a snapshot."""
    yield journal.LaneState(
        lane_id, next_qseq, settled.floor, settled.delivered, dict(settled.bits)
    )
    if settled.full:
        yield journal.Settled(lane_id, [block * BLOCK for block in settled.full])
    if settled.attempts:
        yield journal.Attempts(lane_id, settled.attempts.flat())
