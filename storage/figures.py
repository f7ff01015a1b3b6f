"""What the disk has done since the start, for operators: commits, their sizes and times, compaction.

Counted once a commit. The numbers only grow.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

# Upper ends: a sync takes from some 50 microseconds (a RAM disk) to seconds (a disk in trouble).
TIME_BOUNDS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
MESSAGE_BOUNDS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)
OCTET_BOUNDS = (1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22)


class Histogram:
    """How often values up to each bound came, and above; and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """One more."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.counts)


class CommitFigures:
    """Commits of the log: what each took in all and for its sync, in seconds, and its size."""

    __slots__ = ("messages", "octets", "sync_s", "took_s")

    def __init__(self) -> None:
        self.took_s = Histogram(TIME_BOUNDS_S)
        self.sync_s = Histogram(TIME_BOUNDS_S)
        self.messages = Histogram(MESSAGE_BOUNDS)
        self.octets = Histogram(OCTET_BOUNDS)

    def add(self, took_s: float, sync_s: float, messages: int, octets: int) -> None:
        """One more commit."""
        self.took_s.add(took_s)
        self.sync_s.add(sync_s)
        self.messages.add(messages)
        self.octets.add(octets)


class StoreFigures(NamedTuple):
    """A store as it is now. Octets, unless it says otherwise; `live_bytes` as of a checkpoint."""

    commits: CommitFigures
    segment_count: int
    segment_bytes: int
    live_bytes: int
    cache_bytes: int
    cold_bytes: int  # read back from disk
    pending_bytes: int  # that wait to be written
    compaction_count: int
    compacted_bytes: int
    lsn: int
    durable_lsn: int
