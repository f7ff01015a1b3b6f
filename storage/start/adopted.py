"""Messages of one lane that a start has found in the log, and that the index does not have yet.

They are flat columns of integers: some 28 bytes for a message that stands alone, and 12 for one
among its neighbours. When the index is rebuilt, all messages of the log may be here at once.
"""

from array import array
from collections.abc import Iterator

from qlog.storage.index.index import Placed


class Adopted:
    """Stretches of consecutive qseqs in one segment, in order."""

    __slots__ = (
        "_counts",
        "_dues_ms",
        "_firsts",
        "_has_dues",
        "_lengths",
        "_positions",
        "_segments",
        "_sizes",
    )

    def __init__(self) -> None:
        self._firsts = array("Q")
        self._counts = array("I")
        self._segments = array("I")
        self._positions = array("I")  # one a message
        self._lengths = array("I")
        self._sizes = array("I")
        self._has_dues = array("B")  # one a stretch
        self._dues_ms = array("Q")  # one a message of those stretches

    @property
    def end(self) -> int:
        """The qseq above all that were added; 0 when none was."""
        return self._firsts[-1] + self._counts[-1] if self._firsts else 0

    def add(
        self,
        first: int,
        segment_id: int,
        positions: "array[int]",
        lengths: "array[int]",
        sizes: "array[int]",
        dues_ms: "array[int] | None",
    ) -> None:
        """Add messages. The log is read in order, so they are behind all that were added before."""
        self._positions += positions
        self._lengths += lengths
        self._sizes += sizes
        if dues_ms is not None:
            self._dues_ms += dues_ms
        has_dues = dues_ms is not None
        firsts = self._firsts
        if firsts:
            end = self.end
            assert first >= end
            if (first, segment_id, has_dues) == (end, self._segments[-1], self._has_dues[-1]):
                self._counts[-1] += len(positions)
                return
        firsts.append(first)
        self._counts.append(len(positions))
        self._segments.append(segment_id)
        self._has_dues.append(has_dues)

    def stretches(self) -> Iterator[tuple[int, int]]:
        """(first, end) of each stretch."""
        for first, count in zip(self._firsts, self._counts, strict=True):
            yield first, first + count

    def placed(self, count_max: int) -> Iterator[Placed]:
        """All messages, for the index, in portions of at most `count_max`."""
        at = due_at = 0
        for first, count, segment_id, has_dues in zip(
            self._firsts, self._counts, self._segments, self._has_dues, strict=True
        ):
            for start in range(0, count, count_max):
                low = at + start
                high = at + min(start + count_max, count)
                yield Placed(
                    first + start,
                    segment_id,
                    self._positions[low:high],
                    self._lengths[low:high],
                    self._sizes[low:high],
                    self._dues_ms[due_at : due_at + high - low] if has_dues else None,
                )
                due_at += high - low if has_dues else 0
            at += count
