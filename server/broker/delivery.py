"""The queues that may have something to deliver, and what happens when one cannot.

Promises that a queue that cannot read its next message costs its own consumers, and nobody else;
and that a tick does not deliver for much longer than PUMP_S: the queues that are left take turns in
the ticks that follow.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from typing import Protocol

from qlog.server.amqp.errors import internal_error
from qlog.server.broker.durability import Durability
from qlog.server.broker.jobs import Jobs, Steps
from qlog.server.broker.outcome import Outcome
from qlog.server.broker.queues.cold_reads import ColdReads
from qlog.server.broker.queues.pump_time import PumpTime
from qlog.server.broker.queues.type import QueueType
from qlog.storage.errors import OutOfDescriptors, StorageError

logger = logging.getLogger("qlog.broker")


class Feeding(Protocol):
    """A channel whose consumers share a prefetch."""

    @property
    def has_room(self) -> bool:
        """More messages may be out with consumers."""

    def feed_refused(self) -> bool:
        """There is room again: feed the consumers that had to wait, in their order.

        False: they are very many, and some are left.
        """


class Delivery:
    """See the head of this file."""

    def __init__(
        self, durability: Durability, jobs: Jobs, cold_reads: ColdReads, time: PumpTime
    ) -> None:
        self.cold_reads = cold_reads
        self.time = time
        self._feeding: dict[Feeding, None] = {}
        self._unfed: list[Feeding] = []  # channels with consumers for the next tick
        self._awake: dict[QueueType, None] = {}
        self._waiting: dict[QueueType, None] = {}
        self._behind: dict[QueueType, None] = {}  # for the next tick: see ColdReads
        self._gone: list[QueueType] = []
        self._durability = durability
        self._jobs = jobs

    def wake(self, queue: QueueType) -> None:
        """The queue may have something to deliver: `pump` will look."""
        self._awake[queue] = None

    def came(self, queues: Iterable[QueueType]) -> None:
        """Messages came into these queues."""
        awake = self._awake
        for queue in queues:
            if not queue.idle:
                awake[queue] = None

    def feed_later(self, channel: Feeding) -> None:
        """The channel's consumers are fed by the next `pump`: once, whatever is settled till then.

        Their queues come before all others, in the order in which they are fed.
        """
        self._feeding[channel] = None

    def gone(self, queue: QueueType) -> None:
        """The queue was deleted: its consumers are told when that is durable.

        `pump` sees to it, so that who deleted it is answered first.
        """
        self._gone.append(queue)

    def pump(self) -> None:
        """Deliver from all queues that were touched, and tell of those that are gone.

        Nothing is delivered if this tick's time is up.
        """
        while self._gone:
            queue = self._gone.pop()
            self._durability.defined().then(partial(self._cancel_takers, queue))
        if self._feeding:
            self._feed()
        if not self._awake or self.time.up:
            return
        self.time.begin()
        while self._awake and not self.time.up:
            awake, self._awake = self._awake, {}
            queues = iter(awake)
            for queue in queues:
                if not queue.deleted:
                    self._pump(queue)
                if self.time.up:
                    left = dict.fromkeys(queues)
                    left.update(self._awake)
                    self._awake = left
                    return

    def _cancel_takers(self, queue: QueueType, _: Outcome[None]) -> None:
        self._jobs.start(_cancelling(queue))

    def _pump(self, queue: QueueType) -> None:
        try:
            if queue.pump():
                return
            if self.time.up:
                self._awake[queue] = None  # behind all that had no turn yet
            else:
                self._behind[queue] = None
        except OutOfDescriptors as error:
            self._put_off(queue, error)
        except Exception as error:  # noqa: BLE001 - reported there
            self._cannot_deliver(queue, error)

    def _feed(self) -> None:
        feeding, self._feeding = self._feeding, {}
        woken, self._awake = self._awake, {}
        for channel in feeding:
            if not channel.feed_refused():
                self._unfed.append(channel)
        self._awake.update(woken)

    @property
    def awaits_pump(self) -> bool:
        """Something may be deliverable."""
        return bool(self._awake or self._feeding)

    @property
    def left(self) -> bool:
        """Queues, or consumers, wait for `go_on`."""
        return self.time.up or bool(self._behind or self._unfed)

    def go_on(self) -> None:
        """A new tick: have `pump` ask the queues again that had read enough from disk.

        They come first now, or others that read from disk in each tick would always be before them.
        """
        self.time.renew()
        self.cold_reads.renew()
        unfed, self._unfed = self._unfed, []
        for channel in unfed:
            if channel.has_room:  # else they are fed when there is some
                self.feed_later(channel)
        awake, self._behind = self._behind, {}
        awake.update(self._awake)
        self._awake = awake

    def _put_off(self, queue: QueueType, error: OutOfDescriptors) -> None:
        """The queue's next message cannot be read now: `try_again` will ask the queue again."""
        if not self._waiting:
            logger.warning("cannot deliver now from %s error=%s", queue, error)
        self._waiting[queue] = None

    def try_again(self) -> None:
        """Have `pump` ask the queues again that could not be read for want of file descriptors."""
        self._awake.update(self._waiting)
        self._waiting.clear()

    def _cannot_deliver(self, queue: QueueType, error: Exception) -> None:
        """The queue's next message cannot be read, or worse. That is reported, never skipped.

        The consumers of the queue are thrown out: they notice, and the queue is not asked again and
        again. All other clients go on.
        """
        if isinstance(error, StorageError):
            logger.error("cannot deliver from %s error=%s", queue, error)
        else:
            logger.error("cannot deliver from %s", queue, exc_info=error)
        for taker in list(queue.takers):
            taker.fail(internal_error(f"cannot deliver from {queue}"))


def _cancelling(queue: QueueType) -> Steps[None]:
    while not queue.cancel_takers():
        yield
