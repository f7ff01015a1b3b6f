"""What a channel has handed out and not got back: runs of delivery tags, in order.

A delivery of 250 messages is one entry, not 250. An acknowledgement takes whole entries, or cuts
one in pieces. Tags are exact: to acknowledge a tag that is not outstanding is the client's error,
as in RabbitMQ. Promises that taking a tag costs the same with ten entries as with 300,000, in
whatever order tags are taken: entries lie in chunks, and only one chunk is touched. Knows nothing
of what an acknowledgement means: the caller settles, requeues or discards.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from operator import attrgetter

from qlog.server.broker.queues.backlog import Backlog
from qlog.server.broker.queues.type import QueueType, Taker

# Entries in a chunk: few enough that moving them is cheap, many enough that there are few chunks.
CHUNK_RUNS = 256


class UnackedRun:
    """`count` messages of one queue from `qseq` on, delivered under the tags from `tag` on.

    `sizes` are the octets of all messages that were delivered together; the first of this run's is
    at index `at`. `taker` None: they were taken by basic.get. `grace_s`: by so many seconds
    its deadline was put off.
    """

    grace_s: float = 0.0

    __slots__ = (
        "at",
        "backlog",
        "count",
        "delivered_at_s",
        "qseq",
        "queue",
        "sizes",
        "tag",
        "taker",
    )

    def __init__(
        self,
        tag: int,
        count: int,
        queue: QueueType,
        backlog: Backlog,
        qseq: int,
        sizes: Sequence[int],
        at: int,
        taker: Taker | None,
        delivered_at_s: float,
    ) -> None:
        self.tag = tag
        self.count = count
        self.queue = queue
        self.backlog = backlog
        self.qseq = qseq
        self.sizes = sizes
        self.at = at
        self.taker = taker
        self.delivered_at_s = delivered_at_s

    @property
    def end(self) -> int:
        """The first tag behind the run."""
        return self.tag + self.count

    @property
    def size(self) -> int:
        """The octets of its messages."""
        if self.count == 1:
            return self.sizes[self.at]
        if self.count == len(self.sizes):
            return sum(self.sizes)
        return sum(self.sizes[self.at : self.at + self.count])

    def cut(self, count: int) -> UnackedRun:
        """Take the first `count` messages off as a run of their own."""
        head = UnackedRun(
            self.tag,
            count,
            self.queue,
            self.backlog,
            self.qseq,
            self.sizes,
            self.at,
            self.taker,
            self.delivered_at_s,
        )
        self.tag += count
        self.qseq += count
        self.at += count
        self.count -= count
        return head


class _Extended(UnackedRun):
    """One delivery whose deadline was put off: most runs need no place for that."""

    __slots__ = ("grace_s",)

    def __init__(self, run: UnackedRun, seconds: float) -> None:
        for name in UnackedRun.__slots__:
            setattr(self, name, getattr(run, name))
        self.grace_s = run.grace_s + seconds


class _Chunk:
    """Runs in order, and their first tags. `holders`: the holders of runs that are or were here."""

    __slots__ = ("holders", "runs", "tags")

    def __init__(
        self, runs: list[UnackedRun], tags: list[int], holders: set[Taker | QueueType]
    ) -> None:
        self.runs = runs
        self.tags = tags
        self.holders = holders

    @classmethod
    def of(cls, runs: list[UnackedRun]) -> _Chunk:
        """The chunk with these runs."""
        return cls(runs, list(map(_tag, runs)), set(map(_holder, runs)))


_tag = attrgetter("tag")


def _holder(run: UnackedRun) -> Taker | QueueType:
    """The consumer whose timeout applies to a run; its queue, if basic.get took the run."""
    return run.queue if run.taker is None else run.taker


class Unacked:
    """The outstanding delivery tags of one channel."""

    def __init__(self) -> None:
        self._chunks: list[_Chunk] = []  # none of them empty
        # For each chunk a tag: no tag in the chunk is lower, all tags in earlier chunks are.
        self._firsts: list[int] = []

    def __iter__(self) -> Iterator[UnackedRun]:
        for chunk in self._chunks:
            yield from chunk.runs

    def __bool__(self) -> bool:
        return bool(self._chunks)

    @property
    def few(self) -> bool:
        """There are so few runs that taking all of them needs no job."""
        return len(self._chunks) <= 1

    def __contains__(self, tag: int) -> bool:
        place = bisect_right(self._firsts, tag) - 1
        if place < 0:
            return False
        chunk = self._chunks[place]
        index = bisect_right(chunk.tags, tag) - 1
        return index >= 0 and tag < chunk.runs[index].end

    def add(self, run: UnackedRun) -> None:
        """Append a delivery; its tags are higher than all before it."""
        chunks = self._chunks
        holder = run.queue if run.taker is None else run.taker
        if chunks and len(chunks[-1].runs) < CHUNK_RUNS:
            chunk = chunks[-1]
            chunk.runs.append(run)
            chunk.tags.append(run.tag)
            chunk.holders.add(holder)
        else:
            chunks.append(_Chunk([run], [run.tag], {holder}))
            self._firsts.append(run.tag)

    def take_range(self, first: int, last: int) -> tuple[list[UnackedRun], int]:
        """Take the tags `first`…`last` one after the other.

        Returns what was taken, and the first tag that was not outstanding (`last + 1` if all were).
        """
        taken: list[UnackedRun] = []
        tag = first
        while tag <= last:
            place = bisect_right(self._firsts, tag) - 1
            if place < 0:
                break
            chunk = self._chunks[place]
            index = bisect_right(chunk.tags, tag) - 1
            if index < 0:
                break
            run = chunk.runs[index]
            if run.tag == first and run.end > last:  # mostly: what was delivered, or its front
                if run.end == last + 1:
                    self._remove(place, index, index + 1)
                    return [run], run.end
                head = run.cut(last + 1 - first)
                chunk.tags[index] = run.tag
                return [head], run.tag
            if run.end <= tag:
                break
            if chunk.tags[index] < tag:
                self._split(chunk, index, tag)
                index += 1
            tag = self._take_whole(place, index, tag, last, taken)
        return taken, tag

    def _split(self, chunk: _Chunk, index: int, tag: int) -> None:
        """Cut a run of a chunk in two, so that one begins with `tag`."""
        rest = chunk.runs[index]
        chunk.runs[index] = rest.cut(tag - rest.tag)
        chunk.runs.insert(index + 1, rest)
        chunk.tags.insert(index + 1, tag)

    def _take_whole(
        self, place: int, index: int, tag: int, last: int, taken: list[UnackedRun]
    ) -> int:
        """Take the runs of one chunk that follow one another from `tag` on, and not beyond `last`.

        Returns the tag behind them.
        """
        chunk = self._chunks[place]
        runs = chunk.runs
        end = index
        while end < len(runs) and tag <= last and runs[end].tag == tag:
            run = runs[end]
            if run.end > last + 1:
                taken += runs[index:end]
                taken.append(run.cut(last + 1 - tag))
                chunk.tags[end] = run.tag
                self._remove(place, index, end)
                return last + 1
            tag = run.end
            end += 1
        taken += runs[index:end]
        self._remove(place, index, end)
        return tag

    def _remove(self, place: int, index: int, end: int) -> None:
        chunk = self._chunks[place]
        runs = chunk.runs
        del runs[index:end]
        del chunk.tags[index:end]
        if not runs:
            del self._chunks[place]
            del self._firsts[place]
        elif len(runs) > 2 * CHUNK_RUNS:  # cut in many pieces
            self._halve(place)

    def _halve(self, place: int) -> None:
        chunk = self._chunks[place]
        half = len(chunk.runs) // 2
        upper = _Chunk.of(chunk.runs[half:])
        self._chunks[place] = _Chunk.of(chunk.runs[:half])
        self._chunks.insert(place + 1, upper)
        self._firsts.insert(place + 1, upper.tags[0])

    def take_through(self, tag: int, runs_max: int | None = None) -> list[UnackedRun]:
        """Take everything up to and including `tag`, in tag order.

        With `runs_max` about that many runs at most: call again until nothing is returned.
        """
        taken: list[UnackedRun] = []
        while self._chunks and self._firsts[0] <= tag:
            if runs_max is not None and len(taken) >= runs_max:
                break
            chunk = self._chunks[0]
            if chunk.runs[-1].end <= tag + 1:
                taken += chunk.runs
                del self._chunks[0], self._firsts[0]
                continue
            end = bisect_right(chunk.tags, tag)
            taken += chunk.runs[:end]
            if taken and taken[-1].end > tag + 1:
                rest = taken.pop()
                taken.append(rest.cut(tag + 1 - rest.tag))
                end -= 1
                chunk.tags[end] = rest.tag
            self._remove(0, 0, end)
            break
        return taken

    def give_back(self, run: UnackedRun) -> None:
        """Put back what was taken (tx.rollback)."""
        place = max(bisect_right(self._firsts, run.tag) - 1, 0)
        if not self._chunks:
            self.add(run)
            return
        chunk = self._chunks[place]
        index = bisect_right(chunk.tags, run.tag)
        chunk.runs.insert(index, run)
        chunk.tags.insert(index, run.tag)
        chunk.holders.add(_holder(run))
        self._firsts[place] = min(self._firsts[place], run.tag)
        if len(chunk.runs) > 2 * CHUNK_RUNS:
            self._halve(place)

    def of_queue(self, queue: QueueType) -> Iterator[list[UnackedRun]]:
        """The runs of a queue: a list a chunk, which may be empty.

        The runs stay here; any may be taken, and others added, between two lists.
        """
        for chunk in self._each():
            yield [run for run in chunk.runs if run.queue is queue]

    def _each(self) -> Iterator[_Chunk]:
        """Each chunk once, however they change between two of them.

        What comes back or is added meanwhile may be in none of them.
        """
        chunks = self._chunks
        place = 0
        while place < len(chunks):
            chunk = chunks[place]
            last = chunk.tags[-1]
            yield chunk
            if place < len(chunks) and chunks[place] is chunk:
                place += 1
            else:  # chunks have gone, or were halved
                place = bisect_right(self._firsts, last)

    def extend(self, tag: int, seconds: float) -> None:
        """A delivery that is outstanding may stay out so much longer."""
        assert tag in self
        place = bisect_right(self._firsts, tag) - 1
        chunk = self._chunks[place]
        index = bisect_right(chunk.tags, tag) - 1
        if chunk.tags[index] < tag:
            self._split(chunk, index, tag)
            index += 1
        if chunk.runs[index].count > 1:
            self._split(chunk, index, tag + 1)
        chunk.runs[index] = _Extended(chunk.runs[index], seconds)
        if len(chunk.runs) > 2 * CHUNK_RUNS:
            self._halve(place)

    def overdue(self, now_s: float) -> Iterator[list[UnackedRun]]:
        """The runs that are out for longer than the timeout of their holder: a list a chunk.

        A list may be empty. The runs stay here; any may be taken, and others added, between two
        lists. The first run of a chunk is its oldest. The chunk's other runs are looked at only if
        the first would be overdue with one of the timeouts that apply in the chunk.
        """
        for chunk in self._each():
            age_s = now_s - chunk.runs[0].delivered_at_s
            if any(0 < holder.timeout_s < age_s for holder in chunk.holders):
                yield [
                    run
                    for run in chunk.runs
                    if 0 < _holder(run).timeout_s < now_s - run.delivered_at_s - run.grace_s
                ]
            else:
                yield []
