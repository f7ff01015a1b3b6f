"""One queue moves, window by window; the head of the package says how, and what is true when."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, islice

from qlog.tools.migrate.source import Arrived, InUse, Source
from qlog.tools.migrate.target import ACKING, OPEN, State, Target
from qlog.tools.transfer.link import LinkFailed

# What is sent to qlog in one request: whichever comes first.
BATCH_BYTES = 1 << 20
BATCH_COUNT = 500
# Two looks at when RabbitMQ was started differ by the age of its statistics, 5 s.
STARTED_S_APART = 8


class Rejected(Exception):
    """qlog's queue does not take some messages (its limit); they are at RabbitMQ."""


class Interrupted(Exception):
    """The user wants the migration to end. What had begun is complete."""


@dataclass(slots=True)
class Counts:
    """What became of a queue's messages.

    `moved`: put into qlog's queue; `seen`: dropped, as qlog had them; `twice`: moved although qlog
    may have had them.
    """

    moved: int = 0
    seen: int = 0
    twice: int = 0


@dataclass(frozen=True, slots=True)
class Setting:
    """What all moves of a migration share.

    `prefetch`: the messages of a window; `started_s`: when RabbitMQ was started, in seconds since
    1970; `interrupted`: whether to end behind the window; `advance`: told of messages that are done.
    """

    prefetch: int
    started_s: int
    interrupted: Callable[[], bool]
    advance: Callable[[int], None]


@dataclass(slots=True)
class Passed:
    """A window that was passed on; `ends` is where qlog's queue ends behind it."""

    ends: str
    tag: int = 0  # of the last delivery
    offset: int = -1  # its offset in a stream
    fresh: bool = False  # it had never been delivered before
    rejected: list[int] = field(default_factory=list)  # tags


class Move:
    """One queue or stream. `run` moves all of it.

    It raises LinkFailed, ApiError and Unreachable; then the same move can be made again.
    """

    def __init__(self, source: Source, target: Target, queue: str, setting: Setting) -> None:
        self.counts = Counts()
        self._source = source
        self._target = target
        self._queue = queue
        self._setting = setting
        self._state = State("")
        self._known: Counter[str] = Counter()  # digests of what qlog has and RabbitMQ has, too

    def _begin(self) -> bool:
        """Take up the state that an earlier migration has left; False: there was none."""
        left = self._target.state()
        if left is not None:
            # All of an earlier window has to fit into the next one.
            left.prefetch = max(left.prefetch, self._setting.prefetch)
            self._target.keep(left)
            self._state = left
            return True
        state = State(secrets.token_hex(8))
        state.prefetch, state.started_s = self._setting.prefetch, self._setting.started_s
        state.ends = self._target.ends(state.mark)
        state.ready = self._ready()
        self._state = state
        self._target.keep(state)
        return False

    def _ready(self) -> int:
        """How many messages RabbitMQ has; streams have no use for that."""
        return 0

    def _open_next(self, ends: str, prefetch: int) -> None:
        """The window is done with, and qlog's queue ends there; the next has up to `prefetch`."""
        self._state.open_next(ends)
        self._state.prefetch = prefetch
        self._state.started_s = self._setting.started_s
        self._target.keep(self._state)

    def _pass_on(self, arrived: Iterator[Arrived]) -> Passed:
        """Put a window into qlog's queue, but what the queue has already."""
        passed = Passed(self._state.ends)
        batch: list[Arrived] = []
        size = 0
        for one in arrived:
            passed.tag, passed.offset, passed.fresh = one.tag, one.offset, not one.redelivered
            if self._is_known(one):
                self.counts.seen += 1
                self._setting.advance(1)
                continue
            batch.append(one)
            size += len(one.body) + len(one.properties)
            if size >= BATCH_BYTES or len(batch) >= BATCH_COUNT:
                self._adopt(batch, passed)
                batch, size = [], 0
        if batch:
            self._adopt(batch, passed)
        return passed

    def _adopt(self, batch: list[Arrived], passed: Passed) -> None:
        rejected, passed.ends = self._target.adopt(self._state.mark, batch)
        passed.rejected += [batch[index].tag for index in rejected]
        self.counts.moved += len(batch) - len(rejected)
        self._setting.advance(len(batch) - len(rejected))

    def _is_known(self, one: Arrived) -> bool:
        """Whether qlog has the message already."""
        if not self._known or not self._known[one.digest]:
            return False
        self._known[one.digest] -= 1
        return True


class QueueMove(Move):
    """A queue that is emptied.

    `by_get`: nobody may consume, since the queue is deleted with its last consumer. `shared`: it
    has a single active consumer, so that nobody may be the only one. `in_order`: what was delivered
    before comes first, as from every queue without priorities.
    """

    def __init__(
        self,
        source: Source,
        target: Target,
        queue: str,
        setting: Setting,
        *,
        by_get: bool,
        shared: bool,
        in_order: bool,
    ) -> None:
        super().__init__(source, target, queue, setting)
        self._by_get = by_get
        self._shared = shared
        self._in_order = in_order
        self._suspects = 0  # so many of the next redelivered messages may be in qlog

    def run(self) -> None:
        """Move until the queue is empty. Raises InUse, Rejected and Interrupted, too."""
        if self._begin():
            self._resume()
        while self._move_window(self._window()):
            if self._setting.interrupted():
                raise Interrupted
        self._target.forget()

    def _move_window(self, arrived: Iterator[Arrived]) -> bool:
        """Move a window; False: there is none, since the queue is empty."""
        first = next(arrived, None)
        if first is None:
            return False
        passed = self._pass_on(chain([first], arrived))
        state = self._state
        state.phase = ACKING
        # What is behind a message that had never been delivered has never been delivered, either.
        # What is rejected goes to the front again.
        fresh = state.fresh or passed.fresh
        state.fresh = fresh and self._in_order and not passed.rejected
        # All that was known has come, or (behind messages of a higher priority) is still to come.
        self._suspects += self._known.total()
        self._known.clear()
        state.suspects_after = self._suspects
        self._target.keep(state)
        self._source.acknowledge(passed.tag, passed.rejected)
        self._open_next(passed.ends, self._setting.prefetch)
        if passed.rejected:
            raise Rejected(f"qlog's queue rejected {len(passed.rejected)} messages")
        return True

    def _window(self) -> Iterator[Arrived]:
        """The next deliveries, none of them acknowledged; nothing: the queue is empty."""
        ready, consumers = self._source.look(self._queue)
        if consumers:
            raise InUse(f"it has {consumers} consumers")
        prefetch = self._state.prefetch
        got = False
        if ready and not self._by_get:
            for one in self._source.window(self._queue, ready, prefetch, shared=self._shared):
                got = True
                yield one
        if not got:  # a count may be late: the answer to basic.get is not
            yield from self._source.get(self._queue, prefetch if self._by_get else 1)

    def _ready(self) -> int:
        return self._source.look(self._queue)[0]

    def _open_next(self, ends: str, prefetch: int) -> None:
        self._state.suspects = self._suspects
        self._state.ready = self._ready()
        super()._open_next(ends, prefetch)

    # -- after an interruption

    def _resume(self) -> None:
        state = self._state
        if abs(state.started_s - self._setting.started_s) > STARTED_S_APART:
            self._note_restart()
        if state.phase == OPEN:
            self._recall()
            return
        arrived = self._window_to_decide()
        first = next(arrived, None)
        if first is not None:
            self._decide(first.redelivered)
            self._move_window(chain([first], arrived))

    def _note_restart(self) -> None:
        """RabbitMQ was restarted: what it flags is its own affair.

        A killed one may bring back messages whose acknowledgement it had not written. They cannot
        be told from new ones, which may be equal: they come twice, and are counted.
        """
        state = self._state
        ready = self._ready()
        came_back = max(ready - state.ready, 0)
        state.fresh, state.ready, state.started_s = False, ready, self._setting.started_s
        if state.phase == OPEN:
            state.suspects += came_back
        else:
            state.suspects_after += came_back
        self._target.keep(state)

    def _window_to_decide(self) -> Iterator[Arrived]:
        """The first window after a life that ended when the acknowledgement was due.

        To read it makes all of it redelivered. So that a life which ends here leads to no wrong
        decision, the state says before that none is possible any more.
        """
        state = self._state
        fresh = state.fresh
        state.fresh = False
        self._target.keep(state)
        state.fresh = fresh
        yield from self._window()

    def _decide(self, redelivered: bool) -> None:
        """Whether RabbitMQ has taken the last acknowledgement, by what it delivers first now."""
        state = self._state
        if state.fresh and redelivered:  # it was not: the same window comes again
            state.phase = OPEN
            self._target.keep(state)
            self._recall()
            return
        self._suspects = state.suspects_after + (state.prefetch if redelivered else 0)
        self._open_next(self._target.ends(state.mark), state.prefetch)  # which is being read

    def _recall(self) -> None:
        """All of the window is still at RabbitMQ: find out what qlog has of it."""
        state = self._state
        self._known = self._target.found(state)
        came = self._target.came_since(state)
        # What came and is not found was consumed since, or is somebody else's.
        lost_sight_of = max(came - self._known.total(), 0)
        self._suspects = state.suspects + min(lost_sight_of, state.prefetch)

    def _is_known(self, one: Arrived) -> bool:
        """Whether qlog has the message; counts those of which nobody can tell."""
        if not one.redelivered:
            if self._in_order:
                self._suspects = 0  # nothing behind it was delivered before
            return False
        if super()._is_known(one):
            return True
        if self._suspects:
            self._suspects -= 1
            self.counts.twice += 1
        return False


class StreamMove(Move):
    """A stream, which keeps its messages: the state stays, and says where to go on."""

    def run(self) -> None:
        """Move what is behind the offset where the last migration ended. Raises Interrupted, too."""
        if self._begin():
            self._known = self._target.found(self._state)
        state, prefetch = self._state, self._setting.prefetch
        last = self._source.last_offset(self._queue)
        if last is None or last < state.offset:
            return
        stream = self._source.stream(self._queue, state.offset, prefetch)
        with closing(stream) as arrived:
            while state.offset <= last:
                passed = self._pass_on(islice(arrived, prefetch))
                if passed.offset < 0:
                    raise LinkFailed(f"RabbitMQ sends nothing of offset {state.offset} to {last}")
                state.offset = passed.offset + 1
                self._known.clear()
                self._open_next(passed.ends, prefetch)
                if self._setting.interrupted():
                    raise Interrupted
