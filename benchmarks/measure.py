"""Rates and latencies out of what the load processes wrote down; pure.

A `Progress` says how far a process had come at which time: record i means that at `times_ns[i]`
the first `counts[i]` messages were done. Both columns never fall. All times are CLOCK_MONOTONIC,
which the processes of one machine share.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


def _column() -> array[int]:
    return array("q")


@dataclass(slots=True)
class Progress:
    """How many messages were done by when."""

    times_ns: array[int] = field(default_factory=_column)
    counts: array[int] = field(default_factory=_column)

    def note(self, time_ns: int, count: int) -> None:
        """From `time_ns` on the first `count` messages are done."""
        self.times_ns.append(time_ns)
        self.counts.append(count)

    @property
    def count(self) -> int:
        """How many messages are done by the end."""
        return self.counts[-1] if self.counts else 0

    def count_at(self, time_ns: int) -> int:
        """How many messages were done at `time_ns`."""
        index = bisect_right(self.times_ns, time_ns)
        return self.counts[index - 1] if index else 0


@dataclass(frozen=True, slots=True)
class Span:
    """The time from the end of the warm-up to the stop: what counts."""

    start_ns: int
    stop_ns: int

    @property
    def seconds(self) -> float:
        return (self.stop_ns - self.start_ns) / 1e9


# A latency in nanoseconds and how many messages had it.
Latencies = list[tuple[int, int]]


def rate(progresses: Iterable[Progress], span: Span) -> float:
    """Messages per second that were done within `span`, of all `progresses` together."""
    done = sum(one.count_at(span.stop_ns) - one.count_at(span.start_ns) for one in progresses)
    return done / span.seconds


def latencies(
    begun: Progress, done: Progress, span: Span, early_ns: Mapping[int, int] | None = None
) -> Latencies:
    """How long each message took, for the messages that were begun within `span`.

    Message n is the nth of both: neither side loses, repeats or reorders. Ranges of messages that
    began in one record and ended in one record share one entry. Messages that were never done are
    left out; that none are missing is checked elsewhere.

    Args:
        begun: when messages were published.
        done: when messages were confirmed or delivered, with all before them.
        span: which messages count.
        early_ns: when single messages were done that did not have to wait for those before them.
    """
    result: Latencies = []
    index = 0
    first = 0
    for begun_ns, upto in zip(begun.times_ns, begun.counts, strict=True):
        if not span.start_ns <= begun_ns < span.stop_ns:
            first = upto
            continue
        while first < upto:
            while index < len(done.counts) and done.counts[index] <= first:
                index += 1
            if index == len(done.counts):
                return result
            last = min(upto, done.counts[index])
            done_ns = done.times_ns[index]
            if early_ns:
                result += [(early_ns.get(n, done_ns) - begun_ns, 1) for n in range(first, last)]
            else:
                result.append((done_ns - begun_ns, last - first))
            first = last
    return result


def overlapping(begun: Progress, done: Progress, span: Span) -> Latencies:
    """How long each message took that was under way within `span`, for messages done in order.

    Unlike `latencies` it has those that were begun before the span and done in it: what is stopped
    when something begins was begun before it.
    """
    first = done.count_at(span.start_ns)
    index = bisect_right(begun.counts, first)
    if index == len(begun.counts):
        return []
    start_ns = min(span.start_ns, begun.times_ns[index])
    return latencies(begun, done, Span(start_ns, span.stop_ns))


def quantile_ms(samples: Latencies, fraction: float) -> float:
    """The latency in milliseconds that `fraction` of the messages did not exceed."""
    if not samples:
        return float("nan")
    ordered = sorted(samples)
    wanted = fraction * sum(count for _, count in ordered)
    seen = 0
    for latency_ns, count in ordered:
        seen += count
        if seen >= wanted:
            return latency_ns / 1e6
    raise AssertionError("a fraction is at most 1")
