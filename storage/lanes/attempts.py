"""How often messages of a lane were handed out and came back.

Only messages that came back are kept, as ranges of messages with the same number. A queue to which
nothing came back costs nothing; if a million messages came back at once, that is one range. Knows
qseqs only.

Nobody asks for settled messages. So a message that is settled in the middle of a range stays in it:
otherwise each acknowledgement out of order would cut a range in two.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class Attempts:
    """See the head of this file. Ranges are in order, and two never touch with the same number.

    `firsts` is empty when no message has come back, as it mostly is.
    """

    __slots__ = ("_ends", "_numbers", "firsts")

    def __init__(self) -> None:
        self.firsts: list[int] = []
        self._ends: list[int] = []
        self._numbers: list[int] = []  # above 0

    def __bool__(self) -> bool:
        return bool(self.firsts)

    def note(self, first: int, end: int, number: int) -> None:
        """The messages [first, end) have come back `number` times by now."""
        assert first < end and number >= 0
        at = self._cut(first, end)
        if not number:
            return
        firsts, ends, numbers = self.firsts, self._ends, self._numbers
        if at < len(firsts) and firsts[at] == end and numbers[at] == number:
            end = ends[at]
            del firsts[at], ends[at], numbers[at]
        if at and ends[at - 1] == first and numbers[at - 1] == number:
            ends[at - 1] = end
            return
        firsts.insert(at, first)
        ends.insert(at, end)
        numbers.insert(at, number)

    def settle(self, first: int, end: int) -> None:
        """The messages [first, end) are settled: nobody will ask for them again."""
        low = self._remove_whole(first, end)
        firsts, ends = self.firsts, self._ends
        if low and first < ends[low - 1] <= end:
            ends[low - 1] = first
        if low < len(firsts) and firsts[low] < end:
            firsts[low] = end

    def forget(self) -> None:
        """Forget everything."""
        self.firsts.clear()
        self._ends.clear()
        self._numbers.clear()

    def of(self, first: int, count: int) -> list[int]:
        """The number for each of `count` messages from qseq `first` on; 0: never came back."""
        found = [0] * count
        end = first + count
        place = bisect_right(self._ends, first)
        while place < len(self.firsts) and self.firsts[place] < end:
            low = max(self.firsts[place], first) - first
            high = min(self._ends[place], end) - first
            found[low:high] = [self._numbers[place]] * (high - low)
            place += 1
        return found

    def ranges(self) -> Iterator[tuple[int, int, int]]:
        """(first, end, number) of each range, in order."""
        return zip(self.firsts, self._ends, self._numbers, strict=True)

    def flat(self) -> list[int]:
        """First, end, number, first, end, number, …: for `load`."""
        return [part for range_ in self.ranges() for part in range_]

    def load(self, flat: Iterable[int]) -> None:
        """Take over what `flat` has returned."""
        parts = list(flat)
        self.firsts, self._ends, self._numbers = parts[0::3], parts[1::3], parts[2::3]

    def _remove_whole(self, first: int, end: int) -> int:
        """Remove the ranges that lie in [first, end). Returns the place where they were."""
        low = bisect_left(self.firsts, first)
        high = max(bisect_right(self._ends, end), low)
        del self.firsts[low:high], self._ends[low:high], self._numbers[low:high]
        return low

    def _cut(self, first: int, end: int) -> int:
        """Cut ranges so that none reaches into [first, end). Returns the place for a new range."""
        low = self._remove_whole(first, end)
        firsts, ends, numbers = self.firsts, self._ends, self._numbers
        if low and ends[low - 1] > end:  # what is cut lies within this one
            firsts.insert(low, end)
            ends.insert(low, ends[low - 1])
            numbers.insert(low, numbers[low - 1])
            ends[low - 1] = first
            return low
        if low and ends[low - 1] > first:
            ends[low - 1] = first
        if low < len(firsts) and firsts[low] < end:
            firsts[low] = end
        return low
