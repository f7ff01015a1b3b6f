"""What a channel has handed out and not got back: runs of delivery tags, in order.

A delivery of 250 messages is one entry, not 250; an acknowledgement takes whole entries or cuts
one in two. Tags are exact: taking one that is not outstanding is the client's error, as in RabbitMQ.
Knows nothing of what an acknowledgement means: the caller settles, requeues or dead-letters.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qlog.server.broker.channels.consumer import Consumer
    from qlog.server.broker.queues.queue import Queue


class UnackedRun:
    """`count` messages of one queue from `qseq` on, delivered under the tags from `tag` on."""

    __slots__ = ("consumer", "count", "delivered_at_s", "qseq", "queue", "tag")

    def __init__(
        self,
        tag: int,
        count: int,
        queue: Queue,
        qseq: int,
        consumer: Consumer | None,
        delivered_at_s: float,
    ) -> None:
        self.tag = tag
        self.count = count
        self.queue = queue
        self.qseq = qseq
        self.consumer = consumer  # None: taken by basic.get
        self.delivered_at_s = delivered_at_s

    @property
    def end(self) -> int:
        """The first tag behind the run."""
        return self.tag + self.count

    def _cut(self, count: int) -> UnackedRun:
        """Take the first `count` messages off as a run of their own."""
        head = UnackedRun(
            self.tag, count, self.queue, self.qseq, self.consumer, self.delivered_at_s
        )
        self.tag += count
        self.qseq += count
        self.count -= count
        return head


def _first_tag(run: UnackedRun) -> int:
    return run.tag


class Unacked:
    """The outstanding delivery tags of one channel."""

    def __init__(self) -> None:
        self._runs: list[UnackedRun] = []

    def __iter__(self) -> Iterator[UnackedRun]:
        return iter(self._runs)

    def __bool__(self) -> bool:
        return bool(self._runs)

    def add(self, run: UnackedRun) -> None:
        """Append a delivery; its tags are higher than all before it."""
        self._runs.append(run)

    def take(self, tag: int) -> UnackedRun | None:
        """Take the run that starts at `tag` or the tail of the one that holds it, cut to begin there.

        None: `tag` is not outstanding.
        """
        index = bisect_right(self._runs, tag, key=_first_tag) - 1
        if index < 0 or self._runs[index].end <= tag:
            return None
        run = self._runs[index]
        if run.tag == tag:
            return self._runs.pop(index)
        head = run._cut(tag - run.tag)
        self._runs[index] = head
        return run

    def take_range(self, first: int, last: int) -> tuple[list[UnackedRun], int]:
        """Take the tags `first`…`last` one after the other.

        Returns what was taken, and the first tag that was not outstanding (`last + 1` if all were).
        """
        taken: list[UnackedRun] = []
        tag = first
        while tag <= last:
            run = self.take(tag)
            if run is None:
                return taken, tag
            if run.end > last + 1:
                taken.append(run._cut(last + 1 - tag))
                index = bisect_right(self._runs, run.tag, key=_first_tag)
                self._runs.insert(index, run)
                return taken, last + 1
            taken.append(run)
            tag = run.end
        return taken, tag

    def __contains__(self, tag: int) -> bool:
        index = bisect_right(self._runs, tag, key=_first_tag) - 1
        return index >= 0 and tag < self._runs[index].end

    def take_through(self, tag: int) -> list[UnackedRun]:
        """Take everything up to and including `tag`."""
        runs = self._runs
        index = bisect_right(runs, tag, key=_first_tag)
        taken = runs[:index]
        del runs[:index]
        if taken and taken[-1].end > tag + 1:
            rest = taken[-1]
            taken[-1] = rest._cut(tag + 1 - rest.tag)
            runs.insert(0, rest)
        return taken

    def take_all(self) -> list[UnackedRun]:
        """Take everything, in tag order."""
        taken, self._runs = self._runs, []
        return taken

    def give_back(self, runs: list[UnackedRun]) -> None:
        """Put back what was taken (tx.rollback)."""
        self._runs = sorted(self._runs + runs, key=_first_tag)
