"""What is settled in one lane, put together from the ledger.

A floor, below which everything is settled, and bits above it. Knows nothing of messages: qseqs that
never had one may count as settled or not.
"""

from __future__ import annotations

from qlog.storage.lanes.attempts import Attempts
from qlog.storage.lanes.settled import BLOCK


class Settled:
    """A lane by the ledger's account."""

    __slots__ = ("attempts", "blocks", "delivered", "floor")

    def __init__(self) -> None:
        self.floor = 0
        self.blocks: dict[int, int] = {}  # block of qseqs -> bits of those settled
        self.delivered = 0  # everything below was handed to a consumer once
        self.attempts = Attempts()  # of messages that came back

    def mark(self, first: int, end: int) -> None:
        """[first, end) is settled."""
        self.attempts.settle(first, end)
        if first <= self.floor:
            self.floor = max(self.floor, end)
            return
        while first < end:
            block, slot = divmod(first, BLOCK)
            stop = min(end - block * BLOCK, BLOCK)
            self.add_settled(block, (1 << stop) - (1 << slot))
            first = block * BLOCK + stop

    def add_settled(self, block: int, bits: int) -> None:
        """These of a block are settled too."""
        self.blocks[block] = self.blocks.get(block, 0) | bits

    def unsettled(self, first: int, count: int) -> int:
        """Bits: which of `count` messages from qseq `first` on are not settled."""
        if self.floor >= first + count:
            return 0
        bits = (1 << count) - 1
        if self.floor > first:
            below = self.floor - first
            bits = bits >> below << below
        if self.blocks:
            for block in range(max(first, self.floor) // BLOCK, (first + count - 1) // BLOCK + 1):
                settled = self.blocks.get(block)
                if settled:
                    shift = block * BLOCK - first
                    bits &= ~(settled << shift if shift >= 0 else settled >> -shift)
        return bits
