"""Backoff: what came back to a quorum queue waits before it is delivered again.

Promises what RabbitMQ 4.4 does (rabbit_fifo:should_delay), by the arguments or policies
`x-delayed-retry-type`, `-min` and `-max` (ms): a message that came back n times waits n times the
minimum, and at most the maximum, which is the minimum if it is not given. Which messages wait says
the type: `failed` are those that were rejected (basic.reject), or whose consumer is gone;
`returned` those that a client gave back otherwise (basic.nack, basic.recover); `all` both. It is
some hundredths longer, so that however many messages wait, few times are kept.

A message that waits is out, so that it counts as unacknowledged, and no purge takes it. How often it
came back is durable, and so is until when it waits, by the wall clock: a small record in a hidden
lane of the queue says it for the messages that came back together. After a start it waits on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple, Protocol

from qlog.server.amqp.envelope import Envelope
from qlog.server.broker.numbers import Numbers
from qlog.server.broker.queues.backlog import Backlog
from qlog.server.broker.queues.effective import Backoff
from qlog.server.broker.queues.returns import Returns
from qlog.server.broker.timers import Timer, Timers
from qlog.storage.errors import CorruptLog, OutOfDescriptors
from qlog.storage.lanes.lane import Lane
from qlog.storage.store import Store

logger = logging.getLogger("qlog.broker")

# Times are rounded up to this, or to a part of the delay if that is longer.
GRAIN_S = 0.01
GRAINS = 64
_READ_COUNT, _READ_BYTES = 1024, 1024 * 1024
_NO_PROPERTIES = bytes(2)


class Services(Protocol):
    """What this file needs of what the parts of a broker share."""

    store: Store[Envelope]
    timers: Timers
    now_s: Callable[[], float]
    now_ms: Callable[[], int]


class Record(NamedTuple):
    """What the hidden lane has: messages, and until when they wait (wall clock, ms)."""

    first: int
    length: int
    due_ms: int
    lane_id: int = 0  # 0: the queue has one lane only, as earlier versions had

    def pack(self) -> Envelope:
        """As an envelope without a body: the numbers are its routing key."""
        return Envelope.pack("", " ".join(map(str, self)), _NO_PROPERTIES, 0)

    @classmethod
    def unpack(cls, envelope: Envelope) -> Record:
        """The inverse."""
        return cls(*map(int, envelope.routing_key.split()))


class Ripe(NamedTuple):
    """Messages whose time has come, `size` octets in all, and the order in which they came back."""

    backlog: Backlog
    numbers: Numbers
    size: int
    order: Returns


class _Waiting:
    __slots__ = ("backlog", "numbers", "order", "records", "size", "timer")

    def __init__(self, backlog: Backlog) -> None:
        self.backlog = backlog
        self.numbers = Numbers()
        self.records = Numbers()  # their qseqs
        self.order = Returns()
        self.size = 0
        self.timer: Timer | None = None


class Waits:
    """What waits in one queue.

    Arguments: `lane` is its hidden lane; `ripe` is called with messages that are to be ready again.
    """

    def __init__(
        self, services: Services, lane: Callable[[], Lane[Envelope]], ripe: Callable[[Ripe], None]
    ) -> None:
        self._services = services
        self._lane = lane
        self._ripe = ripe
        # By the time when it is over, and the lane.
        self._waiting: dict[tuple[float, int], _Waiting] = {}

    def add(
        self, backlog: Backlog, first: int, count: int, backoff: Backoff
    ) -> Iterator[tuple[int, int, int]]:
        """Messages that are out came back, and wait.

        Yields those that wait: the first, how many they are, the octets of their bodies. Raises
        CorruptLog when the index, where the sizes are, is wrong.
        """
        now_ms = self._services.now_ms()
        for attempts, group in groupby(backlog.lane.attempts_of(first, count)):
            length = sum(1 for _ in group)
            size = backlog.lane.bytes_of(first, length)
            delay_ms = backoff.delay_ms(attempts)
            waiting = self._at(delay_ms / 1000, backlog)
            lane = self._lane()
            record = Record(first, length, now_ms + delay_ms, backlog.lane.id)
            waiting.records.add(lane.next_qseq, 1)
            self._services.store.append(
                [lane], [record.pack()], [b""], persistent=True, now_ms=now_ms
            )
            self._put(waiting, first, length, size)
            yield first, length, size
            first += length

    def recall(self, backlogs: Sequence[Backlog]) -> None:
        """After a start: what waited then waits on. Raises nothing.

        What is damaged is logged, and does not wait; nor does what is said of a lane that the
        queue has not.
        """
        by_lane = {backlog.lane.id: backlog for backlog in backlogs}
        by_lane[0] = backlogs[-1]
        lane, now_ms = self._lane(), self._services.now_ms()
        at = 0
        try:
            while (slice_ := lane.read(at, _READ_COUNT, _READ_BYTES, passing=False)) is not None:
                at = slice_.first_qseq + len(slice_.metas)
                for qseq, envelope in enumerate(slice_.metas, slice_.first_qseq):
                    record = Record.unpack(envelope)
                    if record.due_ms <= now_ms:
                        lane.settle(qseq, 1, 0)
                        continue
                    backlog = by_lane.get(record.lane_id)
                    if backlog is None:
                        logger.error(
                            "messages of lane=%d do not wait on: record=%d in lane=%d, "
                            "but the queue has no such lane",
                            record.lane_id,
                            qseq,
                            lane.id,
                        )
                        lane.settle(qseq, 1, 0)
                        continue
                    waiting = self._at((record.due_ms - now_ms) / 1000, backlog)
                    waiting.records.add(qseq, 1)
                    for first, count, size in backlog.withdraw_at(record.first, record.length):
                        self._put(waiting, first, count, size)
        except (CorruptLog, OutOfDescriptors) as error:
            logger.error("cannot read what waited in lane=%d error=%s", lane.id, error)

    def _put(self, waiting: _Waiting, first: int, count: int, size: int) -> None:
        waiting.numbers.add(first, count)
        waiting.order.add(first, count)
        waiting.size += size

    def _at(self, delay_s: float, backlog: Backlog) -> _Waiting:
        grain_s = max(GRAIN_S, delay_s / GRAINS)
        due_s = -(-(self._services.now_s() + delay_s) // grain_s) * grain_s
        key = due_s, backlog.lane.id
        waiting = self._waiting.get(key)
        if waiting is None:
            waiting = self._waiting[key] = _Waiting(backlog)
            waiting.timer = self._services.timers.at(due_s, lambda: self._over(key))
        return waiting

    def _over(self, key: tuple[float, int]) -> None:
        waiting, lane = self._waiting.pop(key), self._lane()
        for first, count in waiting.records:
            lane.settle(first, count, 0)
        self._ripe(Ripe(waiting.backlog, waiting.numbers, waiting.size, waiting.order))

    def close(self) -> None:
        """The queue is deleted."""
        for waiting in self._waiting.values():
            if waiting.timer is not None:
                waiting.timer.cancel()
        self._waiting.clear()
