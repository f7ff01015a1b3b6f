"""A set of whole numbers that mostly come in stretches: sequence numbers, delivery tags.

Promises that adding, taking away and finding the lowest number cost the same in whatever order
numbers come, and however many there are, and that only the numbers that are there take memory.
Promises that joining a set of a million with another one,
or walking through it, takes a fraction of a millisecond if its stretches are long.

The numbers are bits of integers of BLOCK bits each, found by a dict; a heap knows the lowest block.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush

# Large enough that a long stretch is few integers, small enough that changing one bit copies
# little.
BLOCK = 1024


class Numbers:
    """See the head of this file. `count` is how many numbers there are."""

    __slots__ = ("_blocks", "_heap", "count")

    def __init__(self) -> None:
        self.count = 0
        self._blocks: dict[int, int] = {}  # none of them is empty
        # All blocks, some of them twice, and as many again that are gone.
        self._heap: list[int] = []

    def __contains__(self, number: int) -> bool:
        block, slot = divmod(number, BLOCK)
        return bool(self._blocks.get(block, 0) >> slot & 1)

    def add(self, first: int, count: int) -> None:
        """Add `count` numbers from `first` on, none of which may be there."""
        self.count += count
        blocks = self._blocks
        block, slot = divmod(first, BLOCK)
        while count:
            width = min(BLOCK - slot, count)
            mask = ((1 << width) - 1) << slot
            bits = blocks.get(block)
            if bits is None:
                heappush(self._heap, block)
                bits = 0
            assert not bits & mask, f"some of {width} numbers from {block * BLOCK + slot} are there"
            blocks[block] = bits | mask
            count -= width
            block += 1
            slot = 0

    def join(self, other: Numbers) -> None:
        """Add all numbers of another set, none of which may be there."""
        self.count += other.count
        blocks = self._blocks
        for block, more in other._blocks.items():
            bits = blocks.get(block)
            if bits is None:
                heappush(self._heap, block)
                bits = 0
            assert not bits & more, f"some numbers of block {block} are there"
            blocks[block] = bits | more

    def discard(self, first: int, count: int) -> int:
        """Take away `count` numbers from `first` on, as far as they are there.

        Returns how many were.
        """
        blocks = self._blocks
        block, slot = divmod(first, BLOCK)
        if slot + count <= BLOCK:  # mostly: no list of blocks is needed
            bits = blocks.get(block, 0)
            going = bits & (((1 << count) - 1) << slot)
            if going == bits:
                self._empty(block)
            elif going:
                blocks[block] = bits ^ going
            gone = going.bit_count()
            self.count -= gone
            return gone
        gone = 0
        for block, mask in self._masks(first, first + count):
            bits = blocks[block]
            going = bits & mask
            gone += going.bit_count()
            if going == bits:
                self._empty(block)
            elif going:
                blocks[block] = bits ^ going
        self.count -= gone
        return gone

    def _empty(self, block: int) -> None:
        """All numbers of a block are taken away, if there were any."""
        blocks, heap = self._blocks, self._heap
        if blocks.pop(block, 0) and len(heap) > 2 * len(blocks) + _GONE_MAX:
            heap[:] = sorted(blocks)

    def clear(self) -> None:
        """Take away all of them."""
        self.count = 0
        self._blocks.clear()
        self._heap.clear()

    def lowest(self, count_max: int) -> tuple[int, int]:
        """The lowest number, and how many follow one another from there on, at most `count_max`.

        The set must not be empty.
        """
        assert self.count and count_max > 0
        blocks, heap = self._blocks, self._heap
        while (block := heap[0]) not in blocks:
            heappop(heap)
        slot = _lowest_bit(blocks[block])
        return block * BLOCK + slot, self._stretch(block, slot, count_max)

    def at_or_after(self, number: int, count_max: int) -> tuple[int, int] | None:
        """The same for the lowest number that is not below `number`; None: there is none."""
        stretch = next(self.within(number, None), None)
        return None if stretch is None else (stretch[0], min(stretch[1], count_max))

    def within(self, first: int, end: int | None) -> Iterator[tuple[int, int]]:
        """The stretches (first, count) of the numbers in [first, end), in ascending order.

        `end` None: up to the highest. A stretch that crosses from one block to the next is given in
        two parts. The set may change while it is walked: the stretches are those of the first step.
        """
        known = [(block, self._blocks[block] & mask) for block, mask in self._masks(first, end)]
        for block, bits in known:
            base = block * BLOCK
            while bits:
                slot = _lowest_bit(bits)
                bits >>= slot
                count = _lowest_bit(~bits)
                base += slot
                yield base, count
                bits >>= count
                base += count

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """All stretches, as `within` gives them."""
        return self.within(0, None)

    def _stretch(self, block: int, slot: int, count_max: int) -> int:
        """How many numbers follow one another from a place on, at most `count_max`."""
        count = 0
        while True:
            here = _lowest_bit(~(self._blocks.get(block, 0) >> slot))
            count += here
            if here < BLOCK - slot or count >= count_max:
                return min(count, count_max)
            block += 1
            slot = 0

    def _masks(self, first: int, end: int | None) -> list[tuple[int, int]]:
        """The blocks that have some of [first, end), in order, with the bits that lie in there."""
        blocks = self._blocks
        low, low_slot = divmod(first, BLOCK)
        if end is None:
            high, high_slot = max(blocks, default=low), BLOCK
        else:
            high, high_slot = divmod(end, BLOCK)
        if high - low < len(blocks):
            known = [block for block in range(low, high + 1) if block in blocks]
        else:
            known = sorted(block for block in blocks if low <= block <= high)
        masks = []
        for block in known:
            mask = _ALL
            if block == high:
                mask &= (1 << high_slot) - 1
            if block == low:
                mask = mask >> low_slot << low_slot
            masks.append((block, mask))
        return masks


_ALL = (1 << BLOCK) - 1
_GONE_MAX = 64  # the heap of a small set is not made anew again and again


def _lowest_bit(bits: int) -> int:
    """The place of the lowest 1."""
    return (bits & -bits).bit_length() - 1
