"""Which segments are kept although nothing waits in them, for undelete and replay by time.

Reclaim and compaction ask before they give a segment up. By default nothing is kept.
"""

from typing import Protocol

from qlog.storage.write.placement import Segment


class Retention(Protocol):
    """Says which segments are kept. It is asked for sealed segments, on the owner's thread."""

    def keeps(self, segment: Segment, now_ms: int) -> bool:
        """Whether the segment is kept as it is. `now_ms`: the wall clock, 0 without one.

        The times of its messages lie between `segment.earliest_ms` and `segment.latest_ms`.
        """


class KeepNothing:
    """Segments go when nothing waits in them."""

    def keeps(self, segment: Segment, now_ms: int) -> bool:
        return False
